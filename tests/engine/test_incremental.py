"""Recomputing only what a window reaches gives what whole passes give."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from toy import tiny_model
from twinsight.engine import Execution, PairBank, erased_windows, kept_windows
from twinsight.engine import incremental as module
from twinsight.explainers import ConditionalOcclusion, ContextAgnosticOcclusion
from twinsight.models import TwoViewModel, folded, small_two_view

INCREMENTAL, WHOLE = Execution(incremental=True), Execution(incremental=False)


class ItsOwnWay(TwoViewModel):
    def features(self, x, view=1):
        return 2 * super().features(x, view)


def sequential():
    """As VGG: convolutions, ReLUs, pooling."""
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    more = (nn.Conv2d(6, 8, 5, padding=1, stride=2, dilation=2), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
    return nn.Sequential(*layers, *more)


def residual():
    """As a ResNet: stem, pooling, blocks with and without projection."""
    down = nn.Sequential(nn.Conv2d(16, 16, 1, stride=2), nn.BatchNorm2d(16))
    stem = (nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, Bottleneck(16, 4), BasicBlock(16, 16, 2, down), Bottleneck(16, 4))


NETWORKS = {
    "sequential": lambda: TwoViewModel(sequential(), input_size=64),
    "residual": lambda: TwoViewModel(residual(), input_size=96),
    "small": lambda: small_two_view(widths=(8, 16), blocks=1, input_size=64),
}


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval().requires_grad_(False)


@pytest.mark.parametrize("make", [erased_windows, kept_windows])
@pytest.mark.parametrize("size", [(9, 9), (17, 12), (1, 1)])
def test_what_a_window_reaches_is_all_that_changes(model, make, size, monkeypatch):
    side = model.input_size
    image, fill = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    last = (side - size[0], side - size[1])
    corners = [(0, 0), last, (0, last[1]), (last[0], 0), (20, 31), (21, 7), (5, 40)]
    perturbation = make(image, fill, torch.tensor([(*corner, *size) for corner in corners]))
    expected = PairBank(model, chunk_size=4, execution=WHOLE).perturbed(perturbation)
    cut = []
    convolved = module._Walker._convolved
    monkeypatch.setattr(module._Walker, "_convolved", lambda *given: cut.append(given) or convolved(*given))
    found = PairBank(model, chunk_size=4, execution=INCREMENTAL).perturbed(perturbation)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(cut) >= 4  # it did go by cones


def windows(side, size, count=3):
    image, fill = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return erased_windows(image, fill, torch.tensor([(3 * n, 2 * n, size, size) for n in range(count)]))


@pytest.mark.parametrize(
    ("side", "window", "pays"), [(224, 32, True), (224, 216, False), (32, 8, False)], ids=["large", "all", "small"]
)
def test_cones_are_taken_where_they_save_enough(side, window, pays, monkeypatch):
    torch.manual_seed(0)
    model = TwoViewModel(nn.Sequential(*(nn.Conv2d(n, 32, 3, padding=1) for n in (3, 32, 32))), input_size=side).eval()
    perturbation = windows(side, window)
    ran, call = [], module.Incremental.__call__
    monkeypatch.setattr(
        module.Incremental, "__call__", lambda self, *given: ran.append(len(given[0])) or call(self, *given)
    )
    found = PairBank(model, chunk_size=2).perturbed(perturbation)
    assert ran == ([2, 2, 1] if pays else [2]), "two versions are compared first"
    torch.testing.assert_close(found, PairBank(model, 2, execution=WHOLE).perturbed(perturbation), rtol=0, atol=1e-5)


def test_a_trunk_without_convolutions_takes_whole_passes():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    model = TwoViewModel(nn.AvgPool2d(4), head, pool=nn.Identity(), input_size=32).eval()
    perturbation = windows(32, 5)
    found = PairBank(model, chunk_size=2, execution=INCREMENTAL).perturbed(perturbation)
    assert torch.equal(found, PairBank(model, chunk_size=2, execution=WHOLE).perturbed(perturbation))


class Dense(nn.Module):
    """As a DenseNet: what comes is passed on beside what is made of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1)

    def forward(self, x):
        return self.second(F.max_pool2d(torch.cat(tensors=[x, self.first(x)], dim=1), kernel_size=2))


def test_a_network_that_joins_its_maps_has_cones_up_to_there(monkeypatch):
    torch.manual_seed(0)
    model = TwoViewModel(Dense(), input_size=32).eval()
    perturbation = windows(32, 5)
    cut, convolved = [], module._Walker._convolved
    monkeypatch.setattr(module._Walker, "_convolved", lambda *given: cut.append(given) or convolved(*given))
    found = PairBank(model, chunk_size=2, execution=INCREMENTAL).perturbed(perturbation)
    expected = PairBank(model, chunk_size=2, execution=WHOLE).perturbed(perturbation)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(cut) == 3, "one convolution of one chunk of noise and two of versions goes by cones"


def test_what_cones_save_is_counted():
    model = TwoViewModel(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)), input_size=20).eval()
    perturbation = windows(20, 5)
    versions = perturbation.versions(torch.arange(3))
    with torch.no_grad():
        cones = module.Incremental(folded(model, versions).trunk, perturbation.outside)
        cones(versions, perturbation.boxes)
    sizes = [(cones._multiplications(n), area) for n, area in cones._areas.items()]
    assert sizes == [(20 * 20 * 4 * 3 * 9, 7 * 7), (20 * 20 * 2 * 4, 7 * 7)]


@pytest.mark.parametrize("kind", [ConditionalOcclusion, ContextAgnosticOcclusion])
def test_maps_are_those_of_whole_passes(model, kind):
    views = torch.rand(2, 1, 3, model.input_size, model.input_size, generator=torch.Generator().manual_seed(2))
    explainer = kind(model, window=15, stride=20)
    found, expected = (
        explainer(*views, bank=PairBank(model, 4, execution=execution)) for execution in (INCREMENTAL, WHOLE)
    )
    for view in ("map1", "map2"):
        torch.testing.assert_close(getattr(found, view), getattr(expected, view), rtol=0, atol=1e-5)


def test_a_cone_as_large_as_the_map_goes_on_as_a_whole_pass(model):
    side = model.input_size
    image = torch.rand(3, side, side)
    boxes = torch.tensor([(0, 0, side - 1, side - 1), (1, 1, side - 1, side - 1)])
    perturbation = erased_windows(image, torch.zeros_like(image), boxes)
    expected = PairBank(model, chunk_size=2, execution=WHOLE).perturbed(perturbation)
    found = PairBank(model, chunk_size=2, execution=INCREMENTAL).perturbed(perturbation)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "boxes", [[(0, 0, 5, 5), (3, 3, 6, 5)], [(28, 0, 9, 9), (0, 0, 9, 9)]], ids=["sizes differ", "sticks out"]
)
def test_windows_that_are_not_alike_take_whole_passes(boxes):
    model, image = tiny_model(0), torch.rand(3, 32, 32)
    perturbation = erased_windows(image, torch.zeros_like(image), torch.tensor(boxes))
    assert module.windows_of(perturbation) is None
    expected = PairBank(model, execution=WHOLE).perturbed(perturbation)
    assert torch.equal(PairBank(model, execution=INCREMENTAL).perturbed(perturbation), expected)


def test_where_cones_were_not_asked_for_nobody_is_warned_that_they_failed(monkeypatch, caplog):
    model, perturbation = tiny_model(0), windows(32, 5)
    expected = PairBank(model, execution=WHOLE).perturbed(perturbation)
    monkeypatch.setattr(module.Cone, "_paste", lambda self, maps, corners: None)
    with caplog.at_level("INFO"):
        assert torch.equal(PairBank(model).perturbed(perturbation), expected)
    assert "whole passes instead" not in caplog.text


@pytest.mark.parametrize("execution", [INCREMENTAL, Execution("bf16", incremental=True)], ids=["its own way", "bf16"])
def test_where_cones_are_not_safe_whole_passes_are_taken(execution):
    torch.manual_seed(0)
    model = (ItsOwnWay if execution is INCREMENTAL else TwoViewModel)(sequential(), input_size=64).eval()
    image = torch.rand(3, 64, 64)
    perturbation = erased_windows(image, torch.zeros_like(image), torch.tensor([(0, 0, 5, 5), (3, 3, 5, 5)]))
    whole = Execution(execution.precision, incremental=False)
    with torch.no_grad():
        expected = PairBank(model, execution=whole).perturbed(perturbation)
        assert torch.equal(PairBank(model, execution=execution).perturbed(perturbation), expected)


def test_a_wrong_answer_is_noticed_and_whole_passes_are_taken(monkeypatch, caplog):
    model, image = tiny_model(0), torch.rand(3, 32, 32)
    perturbation = erased_windows(image, torch.zeros_like(image), torch.tensor([(0, 0, 5, 5), (9, 3, 5, 5)]))
    expected = PairBank(model, execution=WHOLE).perturbed(perturbation)
    monkeypatch.setattr(module.Cone, "_paste", lambda self, maps, corners: None)
    assert torch.equal(PairBank(model, execution=INCREMENTAL).perturbed(perturbation), expected)
    assert caplog.text.count("engine.incremental: whole passes instead") == 1
