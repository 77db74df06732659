"""The paper protocol of the public API reproduces the numbers of the published reference implementation."""

import pytest
import torch

from toy import load_golden
from twinsight.engine import min_max
from twinsight.explainers import (
    AveragedTransforms,
    ConditionalOcclusion,
    ContextAgnosticOcclusion,
    GradCAM,
    InputXGradient,
    InteractionCAM,
    PairwiseOcclusion,
)
from twinsight.explainers.surrogates import fit_logistic
from twinsight.metrics.functional import average_drop, insertion_deletion

REDUCTIONS = {"mean": "mean", "max": "max", "attn": "attention"}


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request):
    return load_golden(request.param)


def assert_explanation_matches(explanation, golden, name):
    assert explanation.score.tolist() == pytest.approx(golden.arrays["cosine"].tolist(), abs=1e-5)
    for view, found in ((1, explanation.map1), (2, explanation.map2)):
        expected = golden.array(f"{name}_{view}")[None]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), f"{name}_{view}"


def test_conditional_occlusion_is_golden(golden):
    explanation = ConditionalOcclusion(golden.model, protocol="paper")(golden.view1, golden.view2)
    assert_explanation_matches(explanation, golden, "conditional_occlusion")


def test_context_agnostic_occlusion_is_golden(golden):
    explanation = ContextAgnosticOcclusion(golden.model, protocol="paper")(golden.view1, golden.view2)
    assert_explanation_matches(explanation, golden, "context_agnostic_occlusion")


def test_pairwise_occlusion_is_golden(golden):
    explainer = PairwiseOcclusion(golden.model, boxes=golden.array("pairwise_boxes"), protocol="paper")
    explanation = explainer(golden.view1, golden.view2)
    for view, found in ((1, explanation.map1), (2, explanation.map2)):
        expected = golden.array(f"pairwise_occlusion_{view}")
        assert (found[0, ::4, ::4] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_gradcam_is_golden(golden):
    explanation = GradCAM(golden.model, protocol="paper")(golden.view1, golden.view2)
    assert_explanation_matches(explanation, golden, "gradcam")


@pytest.mark.parametrize("name", REDUCTIONS)
def test_first_version_of_interaction_cam_is_golden(golden, name):
    explainer = InteractionCAM(golden.model, reduction=REDUCTIONS[name], protocol="paper")
    assert_explanation_matches(explainer(golden.view1, golden.view2), golden, f"interaction_cam_v1_{name}")


@pytest.mark.parametrize("gradient_interaction", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_journal_version_of_interaction_cam_is_golden(golden, name, gradient_interaction):
    explainer = InteractionCAM(
        golden.model,
        reduction=REDUCTIONS[name],
        invariance_weight=False,
        gradient_interaction=gradient_interaction,
        protocol="paper",
    )
    key = f"interaction_cam_v3_{name}" + "_gradinteract" * gradient_interaction
    assert_explanation_matches(explainer(golden.view1, golden.view2), golden, key)


@pytest.mark.parametrize("blur", [False, True])
@pytest.mark.parametrize("guided", ["none", "modules", "all"])  # every ReLU of the golden network is a module
@pytest.mark.parametrize("explainer_class", [InputXGradient, AveragedTransforms])
def test_gradient_maps_are_golden(golden, explainer_class, guided, blur):
    explainer = explainer_class(golden.model, guided=guided, blur=blur, protocol="paper")
    explanation = explainer(golden.view1, golden.view2)
    assert explanation.score.tolist() == pytest.approx(golden.arrays["cosine"].tolist(), abs=1e-5)
    key = explainer.name + "_guided" * (guided != "none") + "_blur" * blur
    for view, found in ((1, explanation.map1), (2, explanation.map2)):
        expected = golden.array(f"{key}_{view}")
        # A ReLU or a channel maximum can flip at isolated pixels.
        assert (found[0, ::4, ::4] - expected).abs().max() <= 5e-3 * expected.abs().max(), f"{key}_{view}"


def test_the_surrogate_of_pixel_invariance_is_golden(golden):
    """To a correlation of 0.95: the subgradient of the L1 penalty makes last digits chaotic."""
    keys = ("x2_16", "x1_16", "labels", "init")
    images, plain, labels, initial = (golden.array(f"pixel_invariance_{key}") for key in keys)
    fit = fit_logistic(images, plain, labels, initial.view(plain.shape), learning_rate=0.01, epochs=60, l1=0.2)
    found, expected = min_max(fit.weights.amax(dim=0)), golden.array("pixel_invariance_map")
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] >= 0.95


@pytest.mark.parametrize("step", [224, 1568])
def test_insertion_and_deletion_areas_are_golden(golden, step):
    result = insertion_deletion(
        golden.model,
        golden.view1,
        golden.view2,
        golden.heatmap(1),
        golden.heatmap(2),
        step=step,
        protocol="paper",
    )
    names = {"si": "SI", "sd": "SD", "ci1": "CI_view1", "ci2": "CI_view2", "cd1": "CD_view1", "cd2": "CD_view2"}
    expected = {name: golden.metrics[f"{published}_step{step}"] for name, published in names.items()}
    expected["ci"] = (expected["ci1"] + expected["ci2"]) / 2
    expected["cd"] = (expected["cd1"] + expected["cd2"]) / 2
    assert {name: getattr(result, name).item() for name in expected} == pytest.approx(expected, rel=0, abs=1e-5)


def test_average_drop_is_golden(golden):
    result = average_drop(
        golden.model, golden.view1, golden.view2, golden.heatmap(1), golden.heatmap(2), protocol="paper"
    )
    expected = {"sad": golden.metrics["SAD"], "sic": golden.metrics["SIC"]}
    for name in ("cad", "cic"):
        for view in (1, 2):
            expected[f"{name}{view}"] = golden.metrics[f"{name.upper()}_view{view}"]
        expected[name] = (expected[f"{name}1"] + expected[f"{name}2"]) / 2
    assert {name: getattr(result, name).item() for name in expected} == pytest.approx(expected, rel=0, abs=1e-5)
