"""Folded copies answer as their networks do, and networks that cannot be folded safely are left alone."""

import copy
from math import inf, nan

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toy import tiny_model, tiny_pair
from twinsight.engine import PairBank, erased_windows
from twinsight.models import TwoViewModel, deviation, folded, fused, small_two_view, torchvision_resnet
from twinsight.models.fused import FoldedConvolution, shifted
from twinsight.models.packed import PackedLinear
from twinsight.models.simclrv2 import Stage


def randomised(model):
    """With batch-norm statistics and scales that folding must not lose."""
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                values.copy_(0.3 * torch.randn(values.shape, generator=draw))
            for values in (module.running_var, module.weight.data):
                values.copy_(0.5 + torch.rand(values.shape, generator=draw))
    return model.eval()


def wide_head():
    return nn.Sequential(
        nn.Linear(1024, 1024), nn.ReLU(inplace=True), nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 2)
    )


NETWORKS = {
    "sequential": lambda: tiny_model(0),
    "two paths": lambda: tiny_model(0, asymmetric=True),
    "basic blocks": lambda: small_two_view(widths=(8, 16), blocks=2, input_size=32),
    "torchvision's": lambda: torchvision_resnet("resnet18", small_stem=True, input_size=32),
    "bottlenecks": lambda: TwoViewModel(Stage(3, 8, 2, 2, False), input_size=32),
    "selective kernels": lambda: TwoViewModel(Stage(3, 8, 2, 2, True), input_size=32),
    "a wide head": lambda: TwoViewModel(nn.Conv2d(3, 1024, 3, 2), wide_head(), input_size=32),
    "a pool first": lambda: TwoViewModel(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3)), input_size=32),
    "skips": lambda: TwoViewModel(Skips(), input_size=32),
    "a convolution alone": lambda: TwoViewModel(nn.Conv2d(3, 4, 3), input_size=32),
}


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return randomised(NETWORKS[request.param]())


def images_for(model, count=3):
    return torch.rand((count, 3, model.input_size, model.input_size), generator=torch.Generator().manual_seed(2))


def convolutions(model, kind=nn.Conv2d):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("fuse", [False, True])
@torch.no_grad()
def test_a_folded_copy_answers_as_its_network(model, fuse):
    images = images_for(model)
    fast = folded(model, images, fuse=fuse)
    assert fast is not None
    assert convolutions(fast) == 0
    assert convolutions(fast, FoldedConvolution) == convolutions(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    for count in (3, 1):  # laid out for three, right for any number
        for view in (1, 2):
            expected = model(images[:count], view)
            for layout in (torch.contiguous_format, torch.channels_last):
                found = fast(images[:count].contiguous(memory_format=layout), view)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


class Skips(nn.Module):
    """Sums whose summand is the image, is asked for again, is not, and lies in the memory of what is convolved."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(n, 3, 3, padding=1) for n in (3, 3, 3, 3, 3))

    def forward(self, x):
        a, b, c, d, e = self.convolutions
        of_image = a(x) + x
        again = F.relu(b(x) + of_image)
        last = c(again) + of_image
        handed_on = last.view(last.shape)
        return e(d(handed_on) + last)


def test_a_sum_takes_the_place_of_what_nobody_asks_for_again():
    torch.manual_seed(0)
    model = TwoViewModel(Skips(), input_size=16).eval()
    images = images_for(model)
    before = images.clone()
    fast = folded(model, images.contiguous(memory_format=torch.channels_last))
    overwrites = [module.overwrites for module in fast.modules() if isinstance(module, FoldedConvolution)]
    assert overwrites == [False, False, True, False, False]
    laid_out = images.contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(fast(laid_out), model(images), rtol=0, atol=1e-5)
    assert torch.equal(laid_out, before)
    gradients = []
    for network in (fast, model):
        leaf = laid_out.clone().requires_grad_()
        gradients += torch.autograd.grad(network(leaf).square().sum(), leaf)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_large_linear_layers_are_laid_out_anew_and_small_ones_shared():
    model = randomised(NETWORKS["a wide head"]())
    fast = folded(model, images_for(model))
    assert [type(module) for module in fast.head] == [PackedLinear, nn.ReLU, PackedLinear, nn.Linear]
    assert fast.head[3] is model.head[3]
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert not any(
        isinstance(module, PackedLinear) for module in folded(model, images_for(model), fuse=False).modules()
    )


@pytest.mark.parametrize("fuse", [False, True])
def test_gradients_go_back_through_a_folded_copy_as_through_its_network(model, fuse):
    images = images_for(model)
    found = []
    for network in (model.requires_grad_(False), folded(model, images, fuse=fuse)):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((network(leaf) ** 2).sum(), leaf)
        found.append(gradient)
    # A ReLU whose input is zero to rounding may let its gradient pass in one and not in the other.
    assert (found[1] - found[0]).norm() <= 1e-3 * found[0].norm()


@pytest.mark.parametrize("fuse", [False, True])
def test_the_gradient_at_a_shift_is_the_sum_of_those_at_the_images(model, fuse):
    images = images_for(model)
    network = folded(model.requires_grad_(False), images, fuse=fuse)
    for view in (1, 2):
        check_shift(lambda x, view=view: network(x, view), images)


def check_shift(network, images):
    leaf, shift = images.clone().requires_grad_(), torch.zeros_like(images[:1]).requires_grad_()
    answers = network(leaf), network(shifted(images, shift))
    assert torch.equal(*answers)
    (each,), (together,) = (torch.autograd.grad((z**2).sum(), x) for z, x in zip(answers, (leaf, shift), strict=True))
    torch.testing.assert_close(together, each.sum(dim=0, keepdim=True), rtol=0, atol=1e-5 * each.abs().max().item())


def test_at_a_shift_the_first_convolution_takes_one_image_back(monkeypatch):
    model = randomised(NETWORKS["torchvision's"]()).requires_grad_(False)
    images, taken_back, sizes = images_for(model), FoldedConvolution.taken_back, []

    def watched(self, gradient, size):
        sizes.append(len(gradient))
        return taken_back(self, gradient, size)

    monkeypatch.setattr(FoldedConvolution, "taken_back", watched)
    shift = torch.zeros_like(images[:1]).requires_grad_()
    torch.autograd.grad(folded(model, images)(shifted(images, shift)).sum(), shift)
    assert sizes == [3] * 19 + [1]


def test_images_and_their_shift_may_both_want_gradients():
    layer = FoldedConvolution(nn.Conv2d(3, 4, 3), None, relu=True)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    layer.pack(2, images.shape)
    shift = torch.zeros(1, 3, 8, 8, requires_grad=True)
    each, together = torch.autograd.grad(layer(shifted(images, shift)).sum(), (images, shift))
    torch.testing.assert_close(together, each.sum(dim=0, keepdim=True))
    (alone,) = torch.autograd.grad(layer(shifted(images, shift.detach())).sum(), images)
    torch.testing.assert_close(alone, each)


def test_with_a_graph_a_sum_takes_the_place_of_what_the_graph_does_not_keep(monkeypatch):
    model = randomised(NETWORKS["torchvision's"]())
    images, fused, in_place = images_for(model), FoldedConvolution.fused, []

    def watched(self, x, summand, overwrite=False):
        y = fused(self, x, summand, overwrite)
        if summand is not None:
            in_place.append(y.data_ptr() == summand.data_ptr())
        return y

    fast = folded(model, images)
    monkeypatch.setattr(FoldedConvolution, "fused", watched)
    images = images.contiguous(memory_format=torch.channels_last)
    for graph, sums in ((False, 8), (True, 3)):
        # Three of four stages begin with a projection of their own; other summands have been through a ReLU.
        in_place.clear()
        fast(images.requires_grad_(graph))
        assert (sum(in_place), len(in_place)) == (sums, 8)


@pytest.mark.parametrize("size", [(11, 12), (16, 9)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("channels", [3, 6])  # images' few go their own way
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (kernel, stride, padding, dilation)
        for kernel in (1, 2, 3, 7)
        for stride in (1, 2, 3)
        for padding in (0, 1, 3)
        for dilation in (1, 2)
        if dilation * (kernel - 1) + 1 <= 9 + 2 * padding
    ],
)
def test_gradients_go_back_through_any_packed_convolution(kernel, stride, padding, dilation, channels, groups, size):
    draw = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(channels, 6, kernel, stride, padding, dilation, groups).requires_grad_(False)
    packed = FoldedConvolution(layer, None, relu=False)
    images = torch.randn((2, channels, *size), generator=draw)
    packed.pack(2, images.shape)
    assert packed._packed is not None
    for leaf in (images, images[:1], images[..., 1:, :]):  # packed and the way back found for two of one size
        found = []
        for network in (layer, packed):
            leaf = leaf.clone().requires_grad_()
            answer = network(leaf)
            weights = torch.randn(answer.shape, generator=draw.manual_seed(1))
            found += torch.autograd.grad((answer * weights).sum(), leaf)
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-6 * found[0].abs().max().item() + 1e-9)


def turned(capfd, network, images):
    """How often weights were laid out anew during a pass there and back."""
    images = images.requires_grad_()
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.autograd.grad(network(images).sum(), images)
    said = capfd.readouterr().out.splitlines()
    assert any(",convolution," in line for line in said)
    return sum(",reorder," in line and ("256x1024x1x1" in line or "1024x256x1x1" in line) for line in said)


@pytest.fixture
def two_threads():
    """oneDNN wants weights for one image and for many in different layouts where threads share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_no_pass_turns_weights_round_whatever_the_number_of_images(capfd):
    layer = nn.Conv2d(1024, 256, 1).requires_grad_(False)
    packed = FoldedConvolution(layer, None, relu=True)
    images = torch.rand(16, 1024, 14, 14).to(memory_format=torch.channels_last)
    packed.pack(16, images.shape)
    for count in (1, 4, 16):
        packed(images[:count].requires_grad_()).sum().backward()  # the first pass of its number may
    assert [turned(capfd, packed, images[:count]) for count in (1, 4, 16)] == [0, 0, 0]
    kept = {id(packed._packed(count)) for count in range(1, 17)}
    assert len(kept) < 6  # what oneDNN wants alike is kept once


def test_the_network_itself_is_not_changed(model):
    before = copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    folded(model, images_for(model))
    assert [id(module) for module in model.modules()] == [id(module) for module in modules]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Guarded(nn.Module):
    """Its way depends on the values, which tracing cannot follow."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.convolution(x if x.sum() > 0 else -x)


class Suspicious(nn.Module):
    """Behaves differently where it is given no tensor, as while it is traced."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.convolution(x) * (1 if isinstance(x, torch.Tensor) else 2)


class Reused(nn.Module):
    """What a convolution gives is asked for twice, once after it was overwritten; one convolution runs twice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.norm(self.first(x))
        z = self.second(F.relu_(y))
        z += y
        return self.second(z) + self.second(y) + y


def hooked(model):
    model.trunk[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: TwoViewModel(Guarded(), input_size=32).eval(),
        lambda: TwoViewModel(Suspicious(), input_size=32).eval(),
        lambda: tiny_model(0).train(),
        lambda: hooked(tiny_model(0)),
        lambda: tiny_model(0).double(),
    ],
    ids=["its way depends on values", "traced it is another", "training", "hooked", "another type"],
)
def test_a_network_that_cannot_be_folded_safely_is_left_alone(build):
    model = build()
    assert folded(model, images_for(model)) is None


class Named(nn.Module):
    """Layers with the names of functions that are folded, which they are not."""

    def __init__(self):
        super().__init__()
        self.convolution, self.relu, self.add = nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Bilinear(30, 30, 30)

    def forward(self, x):
        y = self.relu(self.convolution(x))
        return self.add(self.convolution(x), y)


def test_a_layer_is_what_it_is_and_not_what_it_is_called():
    torch.manual_seed(0)
    model = TwoViewModel(Named(), input_size=32).eval()
    fast = folded(model, images_for(model))
    assert fast is not None
    x = 100 * images_for(model)  # noise in [0, 1) does not reach 6
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-5, atol=1e-5)


class Large(nn.Module):
    """A head that asks its layer for more than its weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1024, 1024)

    def forward(self, x):
        return self.layer(x.repeat(1, self.layer.in_features // x.shape[1]))


def test_a_head_that_cannot_be_packed_leaves_the_trunk_folded():
    torch.manual_seed(0)
    model = TwoViewModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), Large(), input_size=32).eval()
    fast = folded(model, images_for(model))
    assert fast is not None
    assert fast.head is model.head
    with torch.no_grad():
        assert deviation(fast(images_for(model)), model(images_for(model))) < 1e-5


def test_the_copy_of_a_network_with_small_answers_is_held_to_them(monkeypatch):
    model = tiny_model(0)
    with torch.no_grad():
        model.head[-1].weight.mul_(1e-4)
    assert folded(model, images_for(model)) is not None
    plain = fused.FoldedConvolution.forward
    monkeypatch.setattr(fused.FoldedConvolution, "forward", lambda self, *given: 1.01 * plain(self, *given))
    assert folded(model, images_for(model)) is None


@pytest.mark.parametrize(
    ("found", "expected", "off"),
    [([0.0], [0.0], 0.0), ([1.0], [0.0], inf), ([nan], [1.0], inf), ([1.0], [inf], inf), ([inf], [1.0], inf)],
)
def test_what_is_not_finite_never_passes_for_close(found, expected, off):
    assert deviation(torch.tensor(found), torch.tensor(expected)) == off


def test_what_is_asked_for_twice_is_not_folded_away():
    torch.manual_seed(0)
    model = randomised(TwoViewModel(Reused(), input_size=32))
    images = images_for(model)
    fast = folded(model, images)
    with torch.no_grad():
        torch.testing.assert_close((fast or model)(images), model(images), rtol=0, atol=1e-5)


def test_a_bank_notices_that_weights_changed():
    model, (image,) = tiny_model(0), tiny_pair(0, 1)[0]
    bank = PairBank(model, chunk_size=3)
    boxes = torch.tensor([(0, 0, 5, 5), (3, 9, 5, 5)])
    perturbation = erased_windows(image, torch.zeros_like(image), boxes)
    bank.perturbed(perturbation)
    with torch.no_grad():
        model.trunk[0].weight.mul_(-1.5)
    bank.clear()
    expected = model(perturbation.versions(torch.arange(2)))
    torch.testing.assert_close(bank.perturbed(perturbation), expected, rtol=0, atol=1e-5)


def test_a_bank_whose_network_is_hooked_later_runs_the_hook():
    model, (image,) = tiny_model(0), tiny_pair(0, 1)[0]
    bank, seen = PairBank(model, chunk_size=3), []
    perturbation = erased_windows(image, torch.zeros_like(image), torch.tensor([(0, 0, 5, 5), (3, 9, 5, 5)]))
    bank.perturbed(perturbation)
    model.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    bank.clear()
    bank.perturbed(perturbation)
    assert seen == [3]
