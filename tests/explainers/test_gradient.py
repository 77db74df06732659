"""Gradient explainers: closed forms, what is counted, what noise and chunks do. Formulas: test_parity_gradient."""

from collections import Counter

import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from toy import SquareMean, tiny_model, tiny_pair
from twinsight.engine import TRANSFORMS, PairBank
from twinsight.errors import UserError
from twinsight.explainers import AveragedTransforms, Cost, GradCAM, InputXGradient, SmoothGrad
from twinsight.models import TwoViewModel

BATCH = 2
EXPLAINERS = {
    "input x gradient": InputXGradient,
    "SmoothGrad": lambda model, **options: SmoothGrad(model, **{"samples": 7, **options}),
    "averaged transforms": AveragedTransforms,
}
PROTOCOLS = ("paper", "sound")


@pytest.fixture(params=EXPLAINERS)
def build(request):
    return EXPLAINERS[request.param]


@pytest.fixture
def views():
    return tiny_pair(0, BATCH)


def linear_model():
    """``z = W mean(x)`` scored by the dot product: ``ds/dx1[c, p] = (W^T W mean(x2))_c / pixels`` at every pixel."""
    torch.manual_seed(0)
    return TwoViewModel(nn.Conv2d(3, 5, 1, bias=False), similarity="dot", input_size=32).double().eval()


def linear_map(model, image, means):
    """``max_c |x_c (W^T W mean)_c / pixels|`` of images ``(B, C, H, W)`` and mean colours ``(B, C)``."""
    weight = model.trunk.weight[:, :, 0, 0]
    gradient = means @ weight.T @ weight / image[0, 0].numel()
    return (image * gradient[:, :, None, None]).abs().amax(dim=1)


def assert_maps(explanation, map1, map2):
    torch.testing.assert_close(explanation.map1, map1, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(explanation.map2, map2, rtol=1e-9, atol=1e-12)


def test_input_x_gradient_of_a_linear_network_is_known(views):
    model, (x1, x2) = linear_model(), (view.double() for view in views)
    mean1, mean2 = (x.mean(dim=(-2, -1)) for x in (x1, x2))
    assert_maps(InputXGradient(model)(x1, x2), linear_map(model, x1, mean2), linear_map(model, x2, mean1))


@pytest.mark.parametrize(("protocol", "count"), [("paper", 9), ("sound", 10)])
def test_averaged_transforms_of_a_linear_network_are_known(views, protocol, count):
    model, (x1, x2) = linear_model(), (view.double() for view in views)
    mean1, mean2 = (x.mean(dim=(-2, -1)) for x in (x1, x2))
    weight = sum(1 - n / 10 for n in range(1, count + 1)) / count  # of view 1, on average
    last = 0.1 * x1 + 0.9 * x2 if protocol == "paper" else x2
    explanation = AveragedTransforms(model, protocol=protocol)(x1, x2)
    assert_maps(
        explanation,
        linear_map(model, x1, weight * mean1 + (1 - weight) * mean2),
        linear_map(model, last, mean1),
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_smoothgrad_of_a_linear_network_differs_from_input_x_gradient_by_the_mean_of_the_noise(views, protocol):
    model, views = linear_model(), [view.double() for view in views]
    plain = InputXGradient(model)(*views)
    found = SmoothGrad(model, samples=20, protocol=protocol)(*views)
    # 20 x 1024 numbers average the noise of a channel to below a hundredth of its deviation.
    assert (found.map1 - plain.map1).abs().max() < 0.1 * plain.map1.max()
    assert (found.map1 - plain.map1).abs().max() > 1e-6 * plain.map1.max()


@pytest.mark.parametrize("guided", ["none", "all"])
def test_without_noise_smoothgrad_is_input_x_gradient(views, guided):
    model = tiny_model(0).double()
    views = [view.double() for view in views]
    expected = InputXGradient(model, guided=guided)(*views)
    found = SmoothGrad(model, samples=3, noise_level=0, guided=guided)(*views)
    assert_maps(found, expected.map1, expected.map2)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("guided", ["none", "all"])
def test_the_way_to_view_2_alone_is_input_x_gradient(views, guided, asymmetric):
    model = tiny_model(0, asymmetric=asymmetric)
    expected = InputXGradient(model, guided=guided)(*views)
    found = AveragedTransforms(model, lambdas=[1, 0], guided=guided)(*views)
    torch.testing.assert_close(found.map1, expected.map1, rtol=1e-5, atol=1e-8)
    assert torch.equal(found.map2, expected.map2)


def test_identical_views_have_identical_maps(views):
    """Not SmoothGrad's with independent noise; by dot product, for the cosine of a view with itself has no gradient."""
    model = tiny_model(0, similarity="dot").double()
    view = views[0].double()
    for explainer in (
        InputXGradient(model),
        InputXGradient(model, guided="all", blur=True),
        SmoothGrad(model, samples=4, protocol="paper"),
        AveragedTransforms(model, protocol="paper"),
        AveragedTransforms(model, protocol="sound"),
    ):
        explanation = explainer(view, view)
        assert explanation.map1.max() > 0
        torch.testing.assert_close(explanation.map1, explanation.map2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("guided", ["none", "modules", "all"])
@pytest.mark.parametrize("pool", ["avg", SquareMean()])
def test_swapping_the_views_swaps_the_maps_of_input_x_gradient(views, guided, pool):
    """SmoothGrad draws noise for a place in the pair, and averaged transforms start at view 1: theirs do not swap."""
    explainer = InputXGradient(tiny_model(0, pool=pool), guided=guided)
    straight, swapped = explainer(*views), explainer(*views[::-1])
    torch.testing.assert_close(swapped.map1, straight.map2, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(swapped.map2, straight.map1, rtol=1e-5, atol=1e-8)


def test_maps_are_at_image_size_and_not_negative(build):
    views = tiny_pair(0, BATCH, size=(32, 41))
    explanation = build(tiny_model(0))(*views)
    for found, resized in zip((explanation.map1, explanation.map2), explanation.resized((32, 41)), strict=True):
        assert found.shape == (BATCH, 32, 41)
        assert (found >= 0).all()
        assert torch.equal(resized, found)


def test_blur_is_a_gaussian_of_the_map(build, views):
    model = tiny_model(0)
    sharp, smooth = build(model)(*views), build(model, blur=True)(*views)
    for name in ("map1", "map2"):
        expected = gaussian_blur(getattr(sharp, name), [11, 11], [5.0, 5.0])
        torch.testing.assert_close(getattr(smooth, name), expected, rtol=1e-5, atol=1e-9)


class Counted:
    """Image passes through a network's trunk, counted at its input: by a hook, and by one on each input's gradient."""

    def __init__(self, model):
        self.forwards = self.backwards = 0
        model.trunk.register_forward_pre_hook(self._entering)

    def _entering(self, module, inputs):
        (images,) = inputs
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(lambda gradient: self._leaving(len(images)))

    def _leaving(self, count):
        self.backwards += count


# SPEC, section 6, counts the gradient methods beside the views' 2 F; averaged transforms' 10 F hold view 1 but not
# view 2, whose score costs one more where the way ends before it. Guided passes give no embeddings to score by.
COSTS = {
    "input x gradient": (InputXGradient, {}, Cost(2, 2)),
    "input x gradient, guided": (InputXGradient, {"guided": "all"}, Cost(4, 2)),
    "SmoothGrad": (SmoothGrad, {}, Cost(102, 100)),
    "SmoothGrad, guided": (SmoothGrad, {"guided": "modules", "samples": 5}, Cost(12, 10)),
    "averaged transforms, paper": (AveragedTransforms, {"protocol": "paper"}, Cost(11, 10)),
    "averaged transforms, sound": (AveragedTransforms, {}, Cost(11, 11)),
    "averaged transforms, paper, guided": (AveragedTransforms, {"protocol": "paper", "guided": "all"}, Cost(12, 18)),
    "averaged transforms, sound, guided": (AveragedTransforms, {"guided": "modules"}, Cost(13, 20)),
    "averaged transforms, noise": (AveragedTransforms, {"noise": True}, Cost(12, 11)),
    "averaged transforms, transform": (AveragedTransforms, {"transform": "greyscale"}, Cost(12, 11)),
    "averaged transforms, few": (AveragedTransforms, {"lambdas": [0, 1, 0.5, 0]}, Cost(4, 4)),
}


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("name", COSTS)
def test_passes_are_as_few_as_promised(name, views, asymmetric):
    explainer_class, options, expected = COSTS[name]
    model = tiny_model(0, asymmetric=asymmetric)
    explainer = explainer_class(model, **options)
    counted, bank = Counted(model), PairBank(model, chunk_size=4)
    explainer(*(view[:1] for view in views), bank=bank)
    assert explainer.cost((32, 32)) == expected
    assert Cost(counted.forwards, counted.backwards) == Cost(bank.forwards, bank.backwards)
    assert Cost(counted.forwards, counted.backwards) == expected


def test_the_passes_of_the_views_serve_other_explainers(views):
    model = tiny_model(0)
    bank = PairBank(model)
    InputXGradient(model)(*views, bank=bank)
    before = bank.forwards
    assert before == 2 * BATCH
    for view in (*views[0], *views[1]):
        bank.embedding(view)
    assert bank.forwards == before
    SmoothGrad(model, samples=3)(*views, bank=bank)
    assert bank.forwards == before + 2 * 3 * BATCH


@pytest.mark.parametrize("options", [{}, {"guided": "all"}, {"protocol": "paper"}])
def test_the_chunk_size_changes_nothing_beyond_rounding(build, views, options):
    model = tiny_model(0)
    explainer = build(model, **options)
    expected = explainer(*views)
    for chunk_size in (1, 2, 3, 5, 7, 64):
        found = explainer(*views, bank=PairBank(model, chunk_size))
        for name in ("map1", "map2"):
            deviation = (getattr(found, name) - getattr(expected, name)).abs().max()
            assert deviation <= 1e-5 * getattr(expected, name).max(), (chunk_size, name)


def test_noise_does_not_depend_on_the_chunk_size(views):
    model = tiny_model(0)
    explainer = AveragedTransforms(model, noise=True)
    expected = explainer(*views)
    for chunk_size in (1, 3):
        found = explainer(*views, bank=PairBank(model, chunk_size))
        assert (found.map2 - expected.map2).abs().max() <= 1e-5 * expected.map2.max()


def test_what_is_begun_again_for_want_of_memory_sees_the_same_noise(build, views):
    expected = build(tiny_model(0))(*views)
    model = tiny_model(0)

    def too_small(module, inputs):
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError

    model.trunk[3].register_forward_pre_hook(too_small)
    bank = PairBank(model)
    found = build(model)(*views, bank=bank)
    for name in ("map1", "map2"):
        deviation = (getattr(found, name) - getattr(expected, name)).abs().max()
        assert deviation <= 1e-5 * getattr(expected, name).max()


def drawing(model):
    return {
        "SmoothGrad, sound": SmoothGrad(model, samples=3),
        "SmoothGrad, paper": SmoothGrad(model, samples=3, protocol="paper"),
        "averaged transforms, noise": AveragedTransforms(model, lambdas=[0.5, 0], noise=True),
        "averaged transforms, jitter": AveragedTransforms(model, lambdas=[0.5, 0], transform="colour_jitter"),
    }


@pytest.mark.parametrize("name", drawing(tiny_model(0)))
def test_what_is_drawn_belongs_to_the_seed_of_the_pair(name, views):
    explainer = drawing(tiny_model(0))[name]
    first, again, other = (explainer(*views, seeds=torch.tensor(seeds)) for seeds in ([1, 2], [1, 2], [1, 3]))
    for kind in ("map1", "map2"):
        assert torch.equal(getattr(again, kind), getattr(first, kind))
        assert torch.equal(getattr(other, kind)[0], getattr(first, kind)[0])
        assert not torch.equal(getattr(other, kind)[1], getattr(first, kind)[1])
    assert torch.equal(other.score, first.score)


@pytest.mark.parametrize("options", [{"transform": name} for name in TRANSFORMS] + [{"noise": True, "guided": "all"}])
def test_pairs_of_averaged_transforms_do_not_depend_on_their_batch(options, views):
    explainer = AveragedTransforms(tiny_model(0), **options)
    together = explainer(*views)
    for index in range(BATCH):
        alone = explainer(*(view[index : index + 1] for view in views))
        assert torch.equal(alone.map1[0], together.map1[index])
        assert torch.equal(alone.map2[0], together.map2[index])
        assert torch.equal(alone.score[0], together.score[index])


def noise_given(model, explainer, views):
    """What SmoothGrad added to one pair of views."""
    given = []
    handle = model.trunk.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    explainer(*(view[:1] for view in views), bank=PairBank(model, chunk_size=64))  # 21 with graphs at a time
    handle.remove()
    noisy1, noisy2 = (images for images in given if len(images) > 1)
    return noisy1 - views[0][0], noisy2 - views[1][0]


@pytest.mark.parametrize("noise_scale", ["range", "inverse_range"])
@pytest.mark.parametrize("shared_noise", [False, True])
def test_noise_options_win_over_the_protocol(views, shared_noise, noise_scale):
    model, (view1, view2) = tiny_model(0), views
    view2 = view2 * 0.5
    for protocol in PROTOCOLS:
        explainer = SmoothGrad(model, samples=16, shared_noise=shared_noise, noise_scale=noise_scale, protocol=protocol)
        noise1, noise2 = noise_given(model, explainer, (view1, view2))
        spread1, spread2 = (float(view[0].max() - view[0].min()) for view in (view1, view1 if shared_noise else view2))
        deviation1, deviation2 = (
            0.15 * spread if noise_scale == "range" else 0.15 / spread for spread in (spread1, spread2)
        )
        assert noise1.std().item() == pytest.approx(deviation1, rel=0.02)
        assert noise2.std().item() == pytest.approx(deviation2, rel=0.02)
        assert torch.allclose(noise1, noise2, atol=1e-6) == shared_noise


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("constant", ["view 1", "view 2", "both"])
def test_a_view_of_one_value_gets_no_noise(views, constant, protocol):
    model = tiny_model(0)
    view1, view2 = (
        torch.full_like(view, 0.25) if constant in (name, "both") else view
        for name, view in zip(("view 1", "view 2"), views, strict=True)
    )
    explainer = SmoothGrad(model, samples=3, protocol=protocol)
    explanation = explainer(view1, view2)
    assert explanation.map1.isfinite().all()
    assert explanation.map2.isfinite().all()
    noise1, noise2 = noise_given(model, explainer, (view1, view2))
    assert (noise1 == 0).all() == (constant in ("view 1", "both"))
    of_view2 = "view 1" if protocol == "paper" else "view 2"  # whose deviation it is
    assert (noise2 == 0).all() == (constant in (of_view2, "both"))
    mixed = AveragedTransforms(model, noise=True, protocol=protocol)(view1, view2)
    assert mixed.map1.isfinite().all()
    assert mixed.map2.isfinite().all()


def test_each_view_of_an_asymmetric_model_goes_its_way(views, monkeypatch):
    model = tiny_model(0, asymmetric=True)
    ways = Counter()
    features = type(model).features

    def watched(self, x, view=1):
        ways[view] += len(x) * x.requires_grad  # trial passes of a folded copy have no graph
        return features(self, x, view)

    monkeypatch.setattr(type(model), "features", watched)
    for explainer, expected in (
        (InputXGradient(model), {1: 1, 2: 1}),
        (SmoothGrad(model, samples=3), {1: 3, 2: 3}),
        (AveragedTransforms(model), {1: 1, 2: 10}),
    ):
        ways.clear()
        explainer(*(view[:1] for view in views))
        assert ways == expected


def test_the_score_is_that_of_the_views(build, views):
    model = tiny_model(0)
    expected = GradCAM(model)(*views).score
    for options in ({}, {"guided": "all"}, {"protocol": "paper"}):
        assert torch.equal(build(model, **options)(*views).score, expected)
    for options in ({"transform": "solarize"}, {"noise": True}):
        assert torch.equal(AveragedTransforms(model, **options)(*views).score, expected)


def test_a_transform_leaves_view_2_out(views):
    explainer = AveragedTransforms(tiny_model(0), transform="colour_jitter")
    seeds = torch.tensor([1, 2])
    first, other = explainer(*views, seeds=seeds), explainer(views[0], views[1].flip(-1), seeds=seeds)
    assert torch.equal(other.map1, first.map1)
    assert torch.equal(other.map2, first.map2)
    assert not torch.equal(other.score, first.score)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_transform_is_made_of_pixels(normalized):
    normalization = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)) if normalized else None
    torch.manual_seed(0)
    model = TwoViewModel(nn.Conv2d(3, 5, 3), normalization=normalization, input_size=32).eval()
    pixels = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalization or ((0,) * 3, (1,) * 3))
    given = []
    model.trunk.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    AveragedTransforms(model, lambdas=[0], transform="solarize")(*[(pixels - mean) / std] * 2)
    solarized = torch.where(pixels >= 0.5, 1 - pixels, pixels)
    torch.testing.assert_close(given[1], (solarized - mean) / std, rtol=1e-4, atol=1e-5)


def test_variants_are_named_as_in_the_papers_tables():
    model = tiny_model(0)
    assert [InputXGradient(model, guided=guided).label for guided in ("none", "modules", "all")] == [
        "Input x gradient",
        "Input x gradient (G)",
        "Input x gradient (G)",
    ]
    assert SmoothGrad(model, guided="all").label == "SmoothGrad (G)"
    variants = [
        AveragedTransforms(model, guided=guided, noise=noise).variant
        for noise in (False, True)
        for guided in ("none", "modules")
    ]
    assert variants == ["", "G", "N", "G+N"]


WRONG = {
    "no samples": (SmoothGrad, {"samples": 0}, "`samples` must be at least 1, got 0"),
    "negative noise": (SmoothGrad, {"noise_level": -0.1}, "`noise_level` must not be negative, got -0.1"),
    "scale of noise": (
        SmoothGrad,
        {"noise_scale": "inverse"},
        "unknown `noise_scale` 'inverse': did you mean 'inverse_r",
    ),
    "above 1": (AveragedTransforms, {"lambdas": [0.5, 1.5]}, r"`lambdas` must be in \[0, 1\], got \[0.5, 1.5\]"),
    "below 0": (AveragedTransforms, {"lambdas": [-0.5]}, r"`lambdas` must be in \[0, 1\], got \[-0.5\]"),
    "not a number": (AveragedTransforms, {"lambdas": [float("nan")]}, r"`lambdas` must be in \[0, 1\], got \[nan\]"),
    "nothing mixed": (AveragedTransforms, {"lambdas": [1, 1]}, r"must hold a weight below 1, .* got \[1.0, 1.0\]"),
    "no weights": (AveragedTransforms, {"lambdas": []}, r"must hold a weight below 1, .* got \[\]"),
    "transform": (
        AveragedTransforms,
        {"transform": "color_jitter"},
        "unknown `transform` .* did you mean 'colour_jitter'",
    ),
    "noise of the mixed": (AveragedTransforms, {"noise_level": -1}, "`noise_level` must not be negative, got -1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_options_are_refused(what):
    explainer_class, options, message = WRONG[what]
    with pytest.raises(UserError, match=message):
        explainer_class(tiny_model(0), **options)


def test_images_too_small_to_blur_are_refused(build):
    torch.manual_seed(0)
    model = TwoViewModel(nn.Conv2d(3, 4, 3), input_size=8).eval()
    views = torch.rand(2, 1, 3, 5, 8)
    build(model)(*views)
    with pytest.raises(UserError, match=r"`blur=true` needs images of at least 6 x 6 pixels, got \(5, 8\)"):
        build(model, blur=True)(*views)
