"""Gradient explainers against gradients taken back by hand in double precision, as in test_parity_with_oracles.

Noise is not drawn again here: what the network was given, less the view, is what the oracle adds.
"""

import copy

import pytest
import torch
from torch import nn

from oracles import gradient as oracle
from toy import SquareMean, load_golden, tiny_model, tiny_pair
from twinsight.engine import PairBank
from twinsight.explainers import AveragedTransforms, InputXGradient, SmoothGrad
from twinsight.models import FOLDED_COPY, TwoViewModel

BATCH = 2
LAMBDAS = {
    "paper": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
    "sound": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
}


def residual_model(seed):
    """ReLU modules inside the blocks, functions at their ends; its cosines, all near 1, would drown in rounding."""
    torch.manual_seed(seed)
    blocks = [
        oracle.ResidualBlock(
            nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
        )
        for _ in range(3)
    ]
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU(), *blocks)
    head = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8))
    normalization = ((0.5,) * 3, (0.25,) * 3)
    return TwoViewModel(trunk, head, normalization=normalization, similarity="dot", input_size=32).eval()


MODELS = {
    "mean pooling": tiny_model,
    "square pooling": lambda seed: tiny_model(seed, pool=SquareMean()),
    "dot product": lambda seed: tiny_model(seed, similarity="dot"),
    "asymmetric": lambda seed: tiny_model(seed, asymmetric=True),
    "residual": residual_model,
}


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["single", "double"])
def dtype(request):
    return request.param


@pytest.fixture(params=["none", "modules", "all"])
def guided(request):
    return request.param


class Setting:
    """A model, the views of a batch, the same in double precision, and what the network was given."""

    def __init__(self, make, seed, dtype, size=32):
        with torch.random.fork_rng():
            self.model = make(seed).to(dtype)
        self.views = [view.to(dtype) for view in tiny_pair(seed, BATCH, size)]
        self.double = copy.deepcopy(self.model).double()
        self.given = []
        watch = self.model.trunk.register_forward_pre_hook(lambda _, inputs: self.given.append(inputs[0].detach()))
        self.unwatched = watch.remove

    def pairs(self):
        return [(a[None].double(), b[None].double()) for a, b in zip(*self.views, strict=True)]

    def explained_at_once(self, explainer):
        """With all noisy or mixed images of a view in one chunk; graphs are built in chunks of a third."""
        self.given.clear()
        return explainer(*self.views, bank=PairBank(self.model, chunk_size=64))

    def given_in_chunks(self):
        """What was given to the network in chunks of more than one image."""
        return [images.double() for images in self.given if len(images) > 1]


def assert_close(explanation, expected):
    """Largest deviation over largest value within the tolerance of the precision, pair by pair."""
    for found, maps in zip((explanation.map1, explanation.map2), zip(*expected, strict=True), strict=True):
        relative = 1e-9 if found.dtype == torch.float64 else 1e-4
        for one, other in zip(found.double(), maps, strict=True):
            assert one.shape == other.shape
            assert other.max() > 0
            assert (one - other).abs().max() <= relative * other.max()


@pytest.mark.parametrize("blur", [False, True])
def test_input_x_gradient_equals_its_formula(make, guided, blur, dtype):
    setting = Setting(make, 2, dtype)
    expected = [oracle.input_x_gradient(setting.double, a, b, guided, blur) for a, b in setting.pairs()]
    assert_close(InputXGradient(setting.model, guided=guided, blur=blur)(*setting.views), expected)


def test_oblong_views_keep_rows_and_columns_apart(dtype):
    setting = Setting(tiny_model, 3, dtype, size=(32, 41))
    expected = [oracle.input_x_gradient(setting.double, a, b) for a, b in setting.pairs()]
    assert_close(InputXGradient(setting.model)(*setting.views), expected)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("blur", [False, True])
def test_smoothgrad_equals_its_formula(make, guided, blur, protocol, dtype):
    setting, samples = Setting(make, 0, dtype), 3
    explainer = SmoothGrad(setting.model, samples=samples, guided=guided, blur=blur, protocol=protocol)
    explanation = setting.explained_at_once(explainer)
    given = setting.given_in_chunks()
    assert [len(images) for images in given] == [samples] * 2 * BATCH
    expected = []
    for (x1, x2), noisy1, noisy2 in zip(setting.pairs(), given[0::2], given[1::2], strict=True):
        noise = [[image[None] - x for image in noisy] for x, noisy in ((x1, noisy1), (x2, noisy2))]
        expected.append(oracle.smoothgrad(setting.double, x1, x2, *noise, guided, blur))
    assert_close(explanation, expected)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("level", [0.15, 0.4])
def test_noise_has_the_deviation_of_the_protocol(protocol, level, dtype):
    setting = Setting(tiny_model, 0, dtype)
    setting.views[1] *= 0.5  # the views differ in range
    setting.explained_at_once(SmoothGrad(setting.model, samples=16, noise_level=level, protocol=protocol))
    given = setting.given_in_chunks()
    for (x1, x2), noisy1, noisy2 in zip(setting.pairs(), given[0::2], given[1::2], strict=True):
        noise1, noise2 = noisy1 - x1, noisy2 - x2
        if protocol == "paper":
            torch.testing.assert_close(noise1, noise2, rtol=0, atol=1e-6)
            x2 = x1
        else:
            assert abs(torch.corrcoef(torch.stack([noise1.flatten(), noise2.flatten()]))[0, 1]) < 0.02
        # 49152 numbers: their deviation is known to 0.3 %.
        for noise, view in ((noise1, x1), (noise2, x2)):
            assert noise.std().item() == pytest.approx(oracle.deviation(view, level, protocol), rel=0.02)
            assert abs(noise.mean()) < 0.02 * noise.std()
            assert noise.mean(dim=0).std().item() == pytest.approx(noise.std().item() / 16**0.5, rel=0.1)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("blur", [False, True])
def test_averaged_transforms_equal_their_formula(make, guided, blur, protocol, dtype):
    setting = Setting(make, 1, dtype)
    explainer = AveragedTransforms(setting.model, guided=guided, blur=blur, protocol=protocol)
    expected = [
        oracle.averaged_transforms(setting.double, a, b, LAMBDAS[protocol], None, guided, blur)
        for a, b in setting.pairs()
    ]
    assert_close(explainer(*setting.views), expected)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
def test_they_do_through_the_folded_network_too(make, protocol):
    setting = Setting(make, 1, torch.float32)
    setting.unwatched()
    bank = PairBank(setting.model, chunk_size=9)
    explanation = AveragedTransforms(setting.model, protocol=protocol)(*setting.views, bank=bank)
    assert vars(setting.model)[FOLDED_COPY][-1] is not None
    pairs = setting.pairs()
    assert_close(
        explanation, [oracle.averaged_transforms(setting.double, a, b, LAMBDAS[protocol], None) for a, b in pairs]
    )


@pytest.mark.parametrize("lambdas", [[0.0], [0.5], [0.2, 0.7], [0.0, 0.3], [0.25, 1.0], [0, 0, 0.5]])
def test_any_weights_may_be_given_and_the_last_below_one_is_the_image_of_map_2(lambdas, guided, dtype):
    setting = Setting(residual_model, 1, dtype)
    explanation = AveragedTransforms(setting.model, lambdas=lambdas, guided=guided)(*setting.views)
    pairs = setting.pairs()
    expected = [oracle.averaged_transforms(setting.double, a, b, lambdas, None, guided) for a, b in pairs]
    assert_close(explanation, expected)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
def test_averaged_transforms_with_noise_equal_their_formula(make, guided, protocol, dtype):
    setting = Setting(make, 0, dtype)
    setting.views[1] *= 0.5  # the views differ in range
    explainer = AveragedTransforms(setting.model, guided=guided, noise=True, protocol=protocol)
    explanation = setting.explained_at_once(explainer)
    expected, weights = [], [weight for weight in LAMBDAS[protocol] if weight < 1]
    for (x1, x2), mixed in zip(setting.pairs(), setting.given_in_chunks(), strict=True):
        noise = [image[None] - (weight * x1 + (1 - weight) * x2) for image, weight in zip(mixed, weights, strict=True)]
        spread = torch.stack(noise).std().item()
        assert spread == pytest.approx(oracle.deviation(x1, 0.15, protocol), rel=0.03)
        expected.append(
            oracle.averaged_transforms(setting.double, x1, x2, LAMBDAS[protocol], noise, guided),
        )
    assert_close(explanation, expected)


@pytest.mark.parametrize("transform", ["colour_jitter", "blur", "greyscale", "solarize", "combination"])
def test_a_transform_of_view_1_takes_the_place_of_view_2(transform, dtype):
    # A faint blur leaves cosines so near 1 that their gradients drown in rounding: dot products do not.
    setting = Setting(MODELS["dot product"], 0, dtype)
    explanation = setting.explained_at_once(AveragedTransforms(setting.model, transform=transform))
    expected = []
    for (x1, _), mixed in zip(setting.pairs(), setting.given_in_chunks(), strict=True):
        transformed = mixed[-1][None]  # weight 0
        pixels = transformed * 0.25 + 0.5
        assert pixels.min() >= -1e-6
        assert pixels.max() <= 1 + 1e-6
        assert not torch.allclose(transformed, x1, atol=1e-3) or transform == "blur"  # faint on 32 pixels
        expected.append(oracle.averaged_transforms(setting.double, x1, transformed, LAMBDAS["sound"]))
    assert_close(explanation, expected)
    scores = [
        setting.double.similarity(setting.double(a, view=1), setting.double(b, view=2)) for a, b in setting.pairs()
    ]
    assert explanation.score.tolist() == pytest.approx([score.item() for score in scores], rel=1e-5)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("blur", [False, True])
@pytest.mark.parametrize("guided", ["none", "all"])
def test_the_oracle_reproduces_what_the_published_implementation_computed(name, guided, blur):
    golden = load_golden(name)
    model, view1, view2 = copy.deepcopy(golden.model).double(), golden.view1.double(), golden.view2.double()
    found = {
        "input_x_gradient": oracle.input_x_gradient(model, view1, view2, guided, blur),
        "averaged_transforms": oracle.averaged_transforms(model, view1, view2, LAMBDAS["paper"], None, guided, blur),
    }
    for kind, maps in found.items():
        for view, one in zip((1, 2), maps, strict=True):
            expected = golden.array(kind + "_guided" * (guided != "none") + "_blur" * blur + f"_{view}").double()
            assert (one[::4, ::4] - expected).abs().max() <= 5e-3 * expected.abs().max()
