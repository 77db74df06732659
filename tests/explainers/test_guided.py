"""Guided gradients: whichever way a ReLU is written, and the network is not touched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

from toy import tiny_model, tiny_pair
from twinsight.errors import UserError
from twinsight.explainers import AveragedTransforms, InputXGradient, SmoothGrad
from twinsight.explainers.guided import guiding
from twinsight.models import SmallResNet, TwoViewModel


def small_model(trunk, head=None, **options):
    return TwoViewModel(trunk, head, input_size=32, similarity="dot", **options).eval()


class Activated(nn.Module):
    """Convolution, activation, convolution; the activation is given as a function."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2)
        self.activation = activation

    def forward(self, x):
        return self.second(self.activation(self.first(x)))


def ignoring_what_is_returned(x):
    F.relu(x, inplace=True)
    return x


def a_part_in_place(x):
    x[:, :2].relu_()
    return torch.cat([x[:, :2], x[:, 2:].relu()], dim=1)


RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "keyword": lambda x: F.relu(input=x),
    "function in place": lambda x: F.relu(x, True),
    "function in place, by keyword": lambda x: F.relu(x, inplace=True),
    "in place, ignoring what is returned": ignoring_what_is_returned,
    "a part in place": a_part_in_place,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "clamp": lambda x: torch.clamp(x, 0),
    "clamp method": lambda x: x.clamp(min=0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min in place": lambda x: x.clamp_min_(0),
    "clip": lambda x: torch.clip(x, min=0),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "bounded far above": lambda x: F.hardtanh(x, 0.0, 1e6),
    "relu6 of small values": lambda x: 1e3 * F.relu6(x * 1e-3),
    "relu6 module": nn.Sequential(nn.Identity(), nn.ReLU6()),
}


def guided_by_hand(trunk, x):
    """Embedding's summed gradient at ``x``, guided at the activation."""
    before = trunk.first(x)
    after = before.clamp(min=0).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(trunk.second(after).sum(), after)
    (plain,) = torch.autograd.grad(before, x, gradient * (before > 0), retain_graph=True)
    (guided,) = torch.autograd.grad(before, x, gradient.clamp(min=0) * (before > 0))
    return plain, guided


@pytest.mark.parametrize("name", RELUS)
def test_every_way_of_writing_a_relu_is_guided(name):
    trunk = Activated(RELUS[name])
    torch.manual_seed(1)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    plain, expected = guided_by_hand(trunk, x)
    assert not torch.allclose(plain, expected, atol=1e-3)
    with guiding(trunk, "all"):
        y = trunk(x)
    torch.testing.assert_close(y, trunk(x), rtol=0, atol=0)
    (found,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (unguided,) = torch.autograd.grad(trunk(x).sum(), x)
    torch.testing.assert_close(unguided, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RELUS)
def test_only_relu_modules_are_guided_where_modules_are_asked_for(name):
    trunk = Activated(RELUS[name])
    torch.manual_seed(1)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    plain, guided = guided_by_hand(trunk, x)
    with guiding(trunk, "modules"):
        y = trunk(x)
    (found,) = torch.autograd.grad(y.sum(), x)
    expected = guided if name in ("module", "module in place") else plain
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_guided_gradients_worked_out_by_hand():
    """y = -2 relu(3 x) + relu(x): gradients are -2 * 3 and 1 at x > 0; guided, the first is cut off at its ReLU."""
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    module = nn.ReLU()
    for guided, expected in (("none", [-5, 0]), ("modules", [1, 0]), ("all", [1, 0])):
        with guiding(module, guided):
            y = -2 * module(3 * x) + F.relu(x)
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == expected
    for guided, expected in (("none", [5, 0]), ("modules", [5, 0]), ("all", [6, 0])):
        with guiding(module, guided):
            y = 2 * module(3 * x) - F.relu(x)
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == expected


def test_gradients_are_clamped_where_paths_have_met():
    """The two paths behind one ReLU have gradients 3 and -1: their sum, 2, is clamped, not each of them."""
    x = torch.ones(1, requires_grad=True)
    with guiding(nn.Identity(), "all"):
        hidden = F.relu(x)
        y = 3 * hidden - hidden
    assert torch.autograd.grad(y, x)[0].item() == 2


EXPLAINERS = {
    "input x gradient": InputXGradient,
    "SmoothGrad": lambda model, **options: SmoothGrad(model, samples=2, **options),
    "averaged transforms": lambda model, **options: AveragedTransforms(model, lambdas=[0.5, 0], **options),
}


@pytest.fixture(params=EXPLAINERS)
def build(request):
    return EXPLAINERS[request.param]


@pytest.fixture
def views():
    return tiny_pair(0, 2)


def test_functions_and_modules_differ_where_a_network_has_both(build, views):
    torch.manual_seed(0)
    model = small_model(SmallResNet((4, 8, 8), blocks=1))
    maps = [build(model, guided=guided)(*views).map1 for guided in ("none", "modules", "all")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (maps[one] - maps[other]).abs().max() > 1e-2 * maps[one].max()


@pytest.mark.parametrize("guided", ["modules", "all"])
def test_relus_that_work_in_place_give_the_same_maps(build, views, guided):
    model, in_place = tiny_model(0), tiny_model(0)
    for part in in_place.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = True
    expected, found = build(model, guided=guided)(*views), build(in_place, guided=guided)(*views)
    assert torch.equal(found.map1, expected.map1)
    assert torch.equal(found.map2, expected.map2)


class Shifted(nn.Module):
    """Its very first step overwrites what it is given."""

    in_place = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 5, stride=4)

    def forward(self, x):
        return self.convolution(x.sub_(0.5) if self.in_place else x - 0.5).relu()


@pytest.mark.parametrize("guided", ["none", "all"])
def test_a_network_may_overwrite_its_input(build, views, guided):
    before = [view.clone() for view in views]
    model = small_model(Shifted())
    expected = build(model, guided=guided)(*views)
    model.trunk.in_place = True
    found = build(model, guided=guided)(*views)
    assert torch.equal(found.map1, expected.map1)
    assert torch.equal(found.map2, expected.map2)
    assert all(map(torch.equal, views, before))


@pytest.mark.parametrize("guided", ["modules", "all"])
def test_the_head_is_guided_too(views, guided):
    """A trunk without ReLUs: whatever changes is the head's doing."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    model = small_model(nn.Conv2d(3, 4, 5, stride=4), head)
    plain, found = InputXGradient(model)(*views), InputXGradient(model, guided=guided)(*views)
    assert (found.map1 - plain.map1).abs().max() > 1e-2 * plain.map1.max()


@pytest.mark.parametrize("guided", ["modules", "all"])
def test_the_score_is_that_of_the_unguided_network(build, views, guided):
    model = tiny_model(0)
    assert torch.equal(build(model, guided=guided)(*views).score, build(model)(*views).score)


@pytest.mark.parametrize("guided", ["modules", "all"])
def test_guided_pairs_do_not_depend_on_their_batch(build, views, guided):
    explainer = build(tiny_model(0), guided=guided)
    together = explainer(*views)
    for index in range(2):
        alone = explainer(*(view[index : index + 1] for view in views))
        assert torch.equal(alone.map1[0], together.map1[index])
        assert torch.equal(alone.map2[0], together.map2[index])


def fingerprint(model):
    """Everything a user could find changed."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()],
        [
            (name, part.training, part.forward.__func__, *(list(getattr(part, kind)) for kind in kinds))
            for name, part in model.named_modules()
        ],
    )


def assert_unchanged(model, before):
    after = fingerprint(model)
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("where", ["trunk.2", "trunk.8", "head.2", "head.3", "nowhere"])
@pytest.mark.parametrize("guided", ["modules", "all"])
def test_the_network_is_as_before_also_when_something_raises(build, views, guided, where):
    model = tiny_model(0).train().requires_grad_(True)
    explainer = build(model, guided=guided)

    def fail(module, inputs):
        raise ZeroDivisionError("inside the network")

    handle = None if where == "nowhere" else model.get_submodule(where).register_forward_pre_hook(fail)
    before = fingerprint(model)
    if handle is None:
        explainer(*views)
    else:
        with pytest.raises(ZeroDivisionError, match="inside the network"):
            explainer(*views)
    assert_unchanged(model, before)
    if handle is not None:
        handle.remove()
    expected = build(tiny_model(0), guided=guided)(*views)
    assert torch.equal(explainer(*views).map1, expected.map1)


def test_building_a_guided_explainer_leaves_the_network_as_it_was(build):
    model = tiny_model(0, asymmetric=True).train()
    before = fingerprint(model)
    for guided in ("none", "modules", "all"):
        build(model, guided=guided)
    assert_unchanged(model, before)
    with pytest.raises(UserError):
        build(small_model(Activated(F.gelu)), guided="all")
    assert _get_current_function_mode_stack() == []


def test_a_network_that_raises_while_it_is_looked_at_is_left_as_it_was():
    model = tiny_model(0)

    def fail(module, inputs):
        raise ZeroDivisionError

    handle = model.trunk[2].register_forward_pre_hook(fail)
    before = fingerprint(model)
    with pytest.raises(ZeroDivisionError):
        InputXGradient(model, guided="modules")
    assert_unchanged(model, before)
    handle.remove()
    InputXGradient(model, guided="modules")


def test_a_guided_explainer_can_be_copied(views):
    explainer = InputXGradient(tiny_model(0), guided="modules")
    assert torch.equal(copy.deepcopy(explainer)(*views).map1, explainer(*views).map1)


OTHERS = {
    "gelu": nn.GELU(),
    "silu": nn.SiLU(inplace=True),
    "elu": nn.ELU(),
    "leaky_relu": nn.LeakyReLU(),
    "prelu": nn.PReLU(),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardtanh": nn.Hardtanh(),
    "tanh": nn.Tanh(),
}


@pytest.mark.parametrize("guided", ["modules", "all"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_activation_is_refused_by_name(build, name, guided):
    model = small_model(Activated(OTHERS[name]), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    message = rf"`guided={guided}` needs ReLUs, and this network has others too \({name}\): use guided=none"
    with pytest.raises(UserError, match=message):
        build(model, guided=guided)
    build(model)


@pytest.mark.parametrize("guided", ["modules", "all"])
@pytest.mark.parametrize("activation", [nn.Identity(), torch.sin, lambda x: x.clamp(min=-1), lambda x: x * x.sigmoid()])
def test_a_network_without_relus_is_refused(build, guided, activation):
    with pytest.raises(UserError, match=f"`guided={guided}` needs ReLUs, and this network has none: use guided=none"):
        build(small_model(Activated(activation)), guided=guided)


def test_a_network_whose_relus_are_functions_is_refused_where_modules_are_asked_for(build):
    model = small_model(Activated(F.relu))
    model.trunk.unused = nn.ReLU()
    with pytest.raises(UserError, match=r"needs nn\.ReLU modules, .* are functions: use guided=all or none"):
        build(model, guided="modules")
    build(model, guided="all")


def test_gates_are_no_activations(build, views):
    """Squeeze-and-excitation and selective kernels weigh channels by sigmoids and softmax; their ReLUs are guided."""
    gated = Activated(lambda x: F.relu(x) * x.mean(dim=(2, 3), keepdim=True).sigmoid())
    build(small_model(gated), guided="all")(*views)


class OwnWay(TwoViewModel):
    """One view ends in a GELU, the other does not."""

    symmetric = False
    with_gelu = 1

    def embed(self, features, view=1):
        z = super().embed(features, view)
        return F.gelu(z) if view == self.with_gelu else z


@pytest.mark.parametrize("view", [1, 2])
def test_an_activation_of_one_view_alone_is_seen(build, view):
    model = OwnWay(nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU()), input_size=32)
    model.with_gelu = view
    with pytest.raises(UserError, match=r"others too \(gelu\)"):
        build(model, guided="all")


@pytest.mark.parametrize(
    ("given", "protocol", "expected"),
    [(True, "paper", "modules"), (True, "sound", "all"), (False, "paper", "none"), (False, "sound", "none")],
)
def test_true_is_what_the_protocol_guides(build, given, protocol, expected):
    explainer = build(tiny_model(0), guided=given, protocol=protocol)
    assert explainer.options == build(tiny_model(0), guided=expected, protocol=protocol).options
    assert explainer.variant == "G" * given


def test_an_unknown_value_is_refused_with_the_valid_ones(build):
    with pytest.raises(UserError, match=r"unknown `guided` 'module': did you mean 'modules'\? Valid: all, modules"):
        build(tiny_model(0), guided="module")
