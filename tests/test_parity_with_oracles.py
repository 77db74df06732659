"""The public API against literal re-implementations in double precision, on batches of tiny random pairs.

In single precision maps agree to 1e-4 of their largest value; in double precision the formulas leave no room: 1e-9.
"""

import copy
import math

import pytest
import torch

from oracles import average_drop as drop_oracle
from oracles import cam as cam_oracle
from oracles import insertion_deletion as curve_oracle
from oracles import occlusion as occlusion_oracle
from oracles.images import fill_image, stretch
from toy import SquareMean, tiny_maps, tiny_model, tiny_pair
from twinsight.explainers import ConditionalOcclusion, GradCAM, InteractionCAM
from twinsight.metrics.functional import average_drop, insertion_deletion

BATCH = 3
SEEDS = [0, 1, 2]
WINDOW, STRIDE = (9, 7), (5, 4)  # neither stride divides what is left of 32 pixels
MODELS = {
    "mean pooling": {},
    "square pooling": {"pool": SquareMean()},
    "dot product": {"similarity": "dot"},
    "asymmetric": {"asymmetric": True},
}
AREAS = ("si", "sd", "ci1", "ci2", "ci", "cd1", "cd2", "cd")
DROPS = ("sad", "cad1", "cad2", "cad")
INCREASES = ("sic", "cic1", "cic2", "cic")


@pytest.fixture(params=MODELS)
def kind(request):
    return MODELS[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["single", "double"])
def dtype(request):
    return request.param


def setting(seed, dtype=torch.float32, batch=BATCH, size=32, **kind):
    """A tiny model and the two views of a batch of pairs."""
    view1, view2 = tiny_pair(seed, batch, size)
    return tiny_model(seed, **kind).to(dtype), view1.to(dtype), view2.to(dtype)


def scored_maps(seed, dtype, batch=BATCH, size=32):
    """Two maps without ties for each pair."""
    return [maps.to(dtype) for maps in tiny_maps(seed, batch, size)]


def close_scores(expected, dtype, scale=1.0):
    """What scores may be in this precision."""
    exact = 1e-9 if dtype == torch.float64 else 1e-5
    return pytest.approx(expected, rel=exact, abs=exact * scale)


def in_double(model, view1, view2):
    """A copy of the model, and the pairs one by one, in double precision."""
    model = copy.deepcopy(model).double()
    return model, [(a[None].double(), b[None].double()) for a, b in zip(view1, view2, strict=True)]


def assert_maps_close(found, expected, rounding=0.0):
    """Largest deviation over largest value within the tolerance of the precision, pair by pair.

    ``rounding`` is for maps that are differences of scores: what the last digits of a score may add, per pair.
    """
    expected = torch.stack(list(expected))
    assert found.shape == expected.shape
    relative = 1e-9 if found.dtype == torch.float64 else 1e-4
    rounding = torch.as_tensor(rounding, dtype=torch.float64) * torch.finfo(found.dtype).eps
    deviation = (found.double() - expected).abs().flatten(1).amax(dim=1)
    assert (deviation <= relative * expected.abs().flatten(1).amax(dim=1) + rounding).all(), deviation


def assert_explanation_close(explanation, expected, rounding=0.0):
    """``expected`` lists the two maps of each pair."""
    maps1, maps2 = zip(*expected, strict=True)
    assert_maps_close(explanation.map1, maps1, rounding)
    assert_maps_close(explanation.map2, maps2, rounding)


def assert_drops_of_score_close(explanation, expected):
    """Occlusion maps: a few units in the last place of the scores that were subtracted are no error."""
    assert_explanation_close(explanation, expected, rounding=8 * explanation.score.double().abs().clamp(min=1))


def occluded(model, view1, view2, baseline, window=WINDOW, stride=STRIDE, flush=False):
    double, pairs = in_double(model, view1, view2)
    return [
        occlusion_oracle.conditional_occlusion(
            double, a, b, fill_image(double, a, baseline), fill_image(double, b, baseline), window, stride, flush
        )
        for a, b in pairs
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_score_is_the_similarity_of_the_whole_views(seed, kind, dtype):
    model, view1, view2 = setting(seed, dtype, **kind)
    double, pairs = in_double(model, view1, view2)
    expected = [double.similarity(double(a, view=1), double(b, view=2)).item() for a, b in pairs]
    for explainer in (ConditionalOcclusion(model, window=16, stride=16), GradCAM(model), InteractionCAM(model)):
        assert explainer(view1, view2).score.tolist() == close_scores(expected, dtype)


@pytest.mark.parametrize("seed", SEEDS)
def test_paper_occlusion_erases_with_zero_on_the_regular_grid(seed, kind, dtype):
    model, view1, view2 = setting(seed, dtype, **kind)
    explanation = ConditionalOcclusion(model, window=WINDOW, stride=STRIDE, protocol="paper")(view1, view2)
    assert explanation.map1.shape == (BATCH, 5, 7)
    assert_drops_of_score_close(explanation, occluded(model, view1, view2, "input_zero"))


@pytest.mark.parametrize("seed", SEEDS)
def test_sound_occlusion_erases_with_the_own_blur_of_a_view_and_reaches_the_border(seed, kind, dtype):
    model, view1, view2 = setting(seed, dtype, **kind)
    explanation = ConditionalOcclusion(model, window=WINDOW, stride=STRIDE, protocol="sound")(view1, view2)
    assert explanation.map1.shape == (BATCH, 6, 8)
    assert_drops_of_score_close(explanation, occluded(model, view1, view2, "blur", flush=True))


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("baseline", ["black", "blur", "input_zero", "mean", 0.0, 0.25, 1.0])
def test_an_occlusion_option_given_explicitly_wins_over_the_protocol(baseline, flush, protocol, dtype):
    model, view1, view2 = setting(5, dtype)
    explainer = ConditionalOcclusion(
        model, window=WINDOW, stride=STRIDE, baseline=baseline, flush=flush, protocol=protocol
    )
    assert_drops_of_score_close(explainer(view1, view2), occluded(model, view1, view2, baseline, flush=flush))


def test_noise_that_erases_a_view_does_not_depend_on_the_batch_or_the_call():
    model, view1, view2 = setting(5)
    explainer = ConditionalOcclusion(model, window=WINDOW, stride=STRIDE, baseline="noise")
    together, again, alone = explainer(view1, view2), explainer(view1, view2), explainer(view1[1:2], view2[1:2])
    blurred = ConditionalOcclusion(model, window=WINDOW, stride=STRIDE, baseline="blur")(view1, view2)
    for name in ("map1", "map2"):
        torch.testing.assert_close(getattr(again, name), getattr(together, name), rtol=0, atol=0)
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[1], rtol=0, atol=1e-6)
        assert (getattr(together, name) - getattr(blurred, name)).abs().max() > 1e-3


@pytest.mark.parametrize(("protocol", "baseline"), [("paper", "input_zero"), ("sound", "blur")])
def test_default_window_is_two_sevenths_and_stride_one_twenty_eighth_of_the_side(protocol, baseline, dtype):
    model, view1, view2 = setting(6, dtype, batch=1, size=56, input_size=56)
    explanation = ConditionalOcclusion(model, protocol=protocol)(view1, view2)
    assert explanation.map1.shape == (1, 21, 21)
    assert_drops_of_score_close(explanation, occluded(model, view1, view2, baseline, window=(16, 16), stride=(2, 2)))


def test_occlusion_keeps_rows_and_columns_of_oblong_views_apart(dtype):
    model, view1, view2 = setting(7, dtype, size=(32, 41))
    explanation = ConditionalOcclusion(model, window=WINDOW, stride=STRIDE)(view1, view2)
    assert explanation.map1.shape == (BATCH, 6, 10)
    assert_drops_of_score_close(explanation, occluded(model, view1, view2, "blur", flush=True))


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("geometry", ["stretch", "window_average", "centres"])
@pytest.mark.parametrize("size", [(32, 32), (32, 41)])
def test_occlusion_maps_are_brought_to_image_size_by_their_geometry(geometry, flush, size, dtype):
    model, view1, view2 = setting(8, dtype, size=size)
    explainer = ConditionalOcclusion(model, window=WINDOW, stride=STRIDE, geometry=geometry, flush=flush)
    explanation = explainer(view1, view2)
    for native, resized in zip((explanation.map1, explanation.map2), explanation.resized(size), strict=True):
        assert resized.shape == (BATCH, *size)
        for grid, found in zip(native.double(), resized.double(), strict=True):
            expected = resized_by_hand(grid, geometry, size, flush)
            covered = ~expected.isnan()
            assert found.isfinite().all()
            assert (found - expected)[covered].abs().max() <= 1e-5 * grid.abs().max()


def resized_by_hand(grid, geometry, size, flush):
    if geometry == "stretch":
        return stretch(grid, size)
    return getattr(occlusion_oracle, geometry)(grid, size, WINDOW, STRIDE, flush)


@pytest.mark.parametrize(("protocol", "geometry"), [("paper", "stretch"), ("sound", "window_average")])
def test_the_protocol_decides_how_occlusion_maps_are_brought_to_image_size(protocol, geometry, dtype):
    model, view1, view2 = setting(9, dtype, batch=1)
    explanation = ConditionalOcclusion(model, window=8, stride=4, protocol=protocol)(view1, view2)
    grid = explanation.map1[0].double()
    if geometry == "stretch":
        expected = stretch(grid, (32, 32))
    else:
        expected = occlusion_oracle.window_average(grid, (32, 32), (8, 8), (4, 4))
    assert_maps_close(explanation.resized((32, 32))[0], [expected])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", ["elementwise", "canonical"])
def test_gradcam_equals_its_formula(form, seed, kind, dtype):
    model, view1, view2 = setting(seed, dtype, **kind)
    double, pairs = in_double(model, view1, view2)
    expected = [cam_oracle.gradcam(double, a, b, form) for a, b in pairs]
    assert_explanation_close(GradCAM(model, form=form)(view1, view2), expected)


@pytest.mark.parametrize(("protocol", "form"), [("paper", "elementwise"), ("sound", "canonical")])
def test_the_protocol_decides_the_form_of_gradcam(protocol, form, dtype):
    model, view1, view2 = setting(3, dtype, pool=SquareMean())
    double, pairs = in_double(model, view1, view2)
    expected = [cam_oracle.gradcam(double, a, b, form) for a, b in pairs]
    assert_explanation_close(GradCAM(model, protocol=protocol)(view1, view2), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gradient_interaction", [False, True, "sign_consistent"])
@pytest.mark.parametrize("reduction", ["mean", "max", "attention"])
def test_interaction_cam_equals_its_formula(reduction, gradient_interaction, seed, kind, dtype):
    model, view1, view2 = setting(seed, dtype, **kind)
    double, pairs = in_double(model, view1, view2)
    for invariance_weight in (False, True):
        expected = [
            cam_oracle.interaction_cam(double, a, b, reduction, invariance_weight, gradient_interaction)
            for a, b in pairs
        ]
        explainer = InteractionCAM(
            model,
            reduction=reduction,
            gradient_interaction=gradient_interaction,
            invariance_weight=invariance_weight,
        )
        assert_explanation_close(explainer(view1, view2), expected)


@pytest.mark.parametrize(("protocol", "invariance_weight"), [("paper", True), ("sound", False)])
def test_the_protocol_decides_the_invariance_weight(protocol, invariance_weight, dtype):
    model, view1, view2 = setting(4, dtype)
    double, pairs = in_double(model, view1, view2)
    expected = [cam_oracle.interaction_cam(double, a, b, "mean", invariance_weight) for a, b in pairs]
    assert_explanation_close(InteractionCAM(model, protocol=protocol)(view1, view2), expected)


def test_cams_are_stretched_to_image_size(dtype):
    model, view1, view2 = setting(4, dtype)
    explanation = GradCAM(model)(view1, view2)
    for native, resized in zip((explanation.map1, explanation.map2), explanation.resized((32, 32)), strict=True):
        assert_maps_close(resized, [stretch(grid.double(), (32, 32)) for grid in native])


EXPLAINERS = {
    "occlusion, sound": lambda model: ConditionalOcclusion(model, window=WINDOW, stride=STRIDE),
    "occlusion, paper": lambda model: ConditionalOcclusion(model, window=WINDOW, stride=STRIDE, protocol="paper"),
    "Grad-CAM, elementwise": lambda model: GradCAM(model, form="elementwise"),
    "Grad-CAM, canonical": lambda model: GradCAM(model, form="canonical"),
    "Interaction-CAM, mean": lambda model: InteractionCAM(model, protocol="paper"),
    "Interaction-CAM, max": lambda model: InteractionCAM(model, reduction="max", gradient_interaction=True),
    "Interaction-CAM, attention": lambda model: InteractionCAM(
        model, reduction="attention", gradient_interaction="sign_consistent"
    ),
}


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("pooling", ["mean pooling", "square pooling"])
def test_swapping_the_views_swaps_the_maps(name, pooling, dtype):
    model, view1, view2 = setting(1, dtype, **MODELS[pooling])
    explainer = EXPLAINERS[name](model)
    straight, swapped = explainer(view1, view2), explainer(view2, view1)
    rounding = 8 if "occlusion" in name else 0
    assert_maps_close(swapped.map1, straight.map2.double(), rounding)
    assert_maps_close(swapped.map2, straight.map1.double(), rounding)
    torch.testing.assert_close(swapped.score, straight.score, rtol=0, atol=1e-6)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("step", [64, 100])  # 100 does not divide 1024: the last step is short
def test_insertion_and_deletion_areas_equal_their_formulas(step, seed, protocol, kind, dtype):
    model, *views = setting(seed, dtype, **kind)
    maps = scored_maps(seed, dtype)
    result = insertion_deletion(model, *views, *maps, step=step, protocol=protocol)
    double, pairs = in_double(model, *views)
    for n, (view1, view2) in enumerate(pairs):
        expected, _ = curve_oracle.insertion_deletion(
            double, view1, view2, maps[0][n], maps[1][n], step, protocol=protocol
        )
        found = {name: getattr(result, name)[n].item() for name in AREAS}
        assert found == close_scores({name: expected[name] for name in AREAS}, dtype)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
def test_insertion_and_deletion_curves_equal_their_formulas(protocol, dtype):
    model, *views = setting(3, dtype)
    maps = scored_maps(3, dtype)
    curves = insertion_deletion(model, *views, *maps, step=100, protocol=protocol).curves
    double, pairs = in_double(model, *views)
    for n, (view1, view2) in enumerate(pairs):
        _, expected = curve_oracle.insertion_deletion(
            double, view1, view2, maps[0][n], maps[1][n], step=100, protocol=protocol
        )
        for name in ("si", "sd", "ci1", "ci2", "cd1", "cd2"):
            assert curves[name].shape == (BATCH, 12)
            assert curves[name][n].tolist() == close_scores(expected[name], dtype)


@pytest.mark.parametrize("points", [20, 64])
def test_points_decide_the_step_where_no_step_is_given(points, dtype):
    model, *views = setting(4, dtype, batch=1)
    maps = scored_maps(4, dtype, batch=1)
    result = insertion_deletion(model, *views, *maps, points=points)
    double, [(view1, view2)] = in_double(model, *views)
    step = math.ceil(32 * 32 / points)
    expected, _ = curve_oracle.insertion_deletion(double, view1, view2, maps[0][0], maps[1][0], step, protocol="sound")
    found = {name: getattr(result, name).item() for name in AREAS}
    assert found == close_scores({name: expected[name] for name in AREAS}, dtype)


@pytest.mark.parametrize("value", [0.7, float("nan")])
def test_pixels_that_tie_are_ranked_alike_whatever_the_batch(value):
    model, *views = setting(4)
    maps = [torch.full_like(a, value) for a in scored_maps(4, torch.float32)]
    together = insertion_deletion(model, *views, *maps, step=100)
    alone = insertion_deletion(model, *(v[1:2] for v in views), *(m[1:2] for m in maps), step=100)
    for name in AREAS:
        assert getattr(together, name).isfinite().all()
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind_of_positive_scores", ["mean pooling", "square pooling", "dot product"])
def test_average_drop_and_increase_equal_their_formulas(kind_of_positive_scores, seed, protocol, dtype):
    model, *views = setting(seed, dtype, **MODELS[kind_of_positive_scores])
    maps = scored_maps(seed, dtype)
    assert_drops_close(model, views, maps, maps, protocol)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
def test_average_drop_takes_native_maps_and_stretches_them(protocol, dtype):
    model, *views = setting(3, dtype)
    maps = scored_maps(3, dtype, size=(5, 7))
    stretched = [torch.stack([stretch(grid.double(), (32, 32)) for grid in batch]) for batch in maps]
    assert_drops_close(model, views, maps, stretched, protocol)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("value", [0.7, float("nan")])
def test_a_map_without_information_masks_everything(value, protocol, dtype):
    model, *views = setting(3, dtype)
    maps = scored_maps(3, dtype)
    maps[0][1] = value
    assert_drops_close(model, views, maps, maps, protocol)


def test_average_drop_of_an_asymmetric_model_masks_the_right_view(dtype):
    model, *views = setting(2, dtype, asymmetric=True)
    maps = scored_maps(2, dtype)
    assert (model.similarity(model(views[0], view=1), model(views[1], view=2)) > 0).all()
    assert_drops_close(model, views, maps, maps, "paper")


def assert_drops_close(model, views, maps, full_size_maps, protocol):
    result = average_drop(model, *views, *maps, protocol=protocol)
    double, pairs = in_double(model, *views)
    for n, (view1, view2) in enumerate(pairs):
        m1, m2 = (batch[n].double() for batch in full_size_maps)
        expected = drop_oracle.average_drop(double, view1, view2, m1, m2, protocol)
        found = {name: getattr(result, name)[n].item() for name in DROPS}
        # A drop is a ratio of scores: what a score may be off counts relative to the score of the whole views.
        score = double.similarity(double(view1, view=1), double(view2, view=2)).item()
        drops = {name: expected[name] for name in DROPS}
        assert found == close_scores(drops, views[0].dtype, scale=max(1.0, 1 / score))
        assert {name: float(getattr(result, name)[n]) for name in INCREASES} == {k: expected[k] for k in INCREASES}
