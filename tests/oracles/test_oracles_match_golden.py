"""The oracles are trusted because they reproduce what the published implementation computed."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur as torchvision_blur

from oracles import average_drop, cam, insertion_deletion, occlusion
from oracles.images import gaussian_blur, stretch
from toy import load_golden

REDUCTIONS = {"mean": "mean", "max": "max", "attn": "attention"}


@pytest.fixture(scope="module", params=["a", "b"])
def golden(request):
    return load_golden(request.param)


def assert_maps_match(maps, golden, name):
    for view, found in zip((1, 2), maps, strict=True):
        expected = golden.array(f"{name}_{view}").double()
        assert found.shape == expected.shape
        assert (found.double() - expected).abs().max() <= 1e-4 * expected.abs().max(), f"{name}_{view}"


def test_the_toy_network_gives_the_golden_embeddings(golden):
    z1, z2 = golden.model(golden.view1), golden.model(golden.view2)
    torch.testing.assert_close(z1[0], golden.array("z1"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z2[0], golden.array("z2"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(golden.model.similarity(z1, z2), golden.array("cosine"), rtol=0, atol=1e-6)


def test_conditional_occlusion_is_golden(golden):
    zero = torch.zeros_like(golden.view1)
    maps = occlusion.conditional_occlusion(golden.model, golden.view1, golden.view2, zero, zero, (64, 64), (8, 8))
    assert_maps_match(maps, golden, "conditional_occlusion")


def test_gradcam_is_golden(golden):
    assert_maps_match(cam.gradcam(golden.model, golden.view1, golden.view2), golden, "gradcam")


@pytest.mark.parametrize("name", REDUCTIONS)
def test_first_version_of_interaction_cam_is_golden(golden, name):
    maps = cam.interaction_cam(golden.model, golden.view1, golden.view2, REDUCTIONS[name], invariance_weight=True)
    assert_maps_match(maps, golden, f"interaction_cam_v1_{name}")


@pytest.mark.parametrize("gradient_interaction", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_journal_version_of_interaction_cam_is_golden(golden, name, gradient_interaction):
    maps = cam.interaction_cam(
        golden.model, golden.view1, golden.view2, REDUCTIONS[name], False, gradient_interaction=gradient_interaction
    )
    assert_maps_match(maps, golden, f"interaction_cam_v3_{name}" + "_gradinteract" * gradient_interaction)


@pytest.mark.parametrize("step", [224, 1568])
def test_insertion_and_deletion_areas_are_golden(golden, step):
    areas, _ = insertion_deletion.insertion_deletion(
        golden.model, golden.view1, golden.view2, golden.heatmap(1)[0], golden.heatmap(2)[0], step
    )
    names = {"si": "SI", "sd": "SD", "ci1": "CI_view1", "ci2": "CI_view2", "cd1": "CD_view1", "cd2": "CD_view2"}
    expected = {name: golden.metrics[f"{published}_step{step}"] for name, published in names.items()}
    assert {name: areas[name] for name in names} == pytest.approx(expected, rel=0, abs=1e-5)


def test_average_drop_is_golden(golden):
    found = average_drop.average_drop(
        golden.model, golden.view1, golden.view2, golden.heatmap(1)[0], golden.heatmap(2)[0]
    )
    names = {"sad": "SAD", "sic": "SIC"}
    names |= {f"{short.lower()}{view}": f"{short}_view{view}" for short in ("CAD", "CIC") for view in (1, 2)}
    expected = {name: golden.metrics[published] for name, published in names.items()}
    assert {name: found[name] for name in names} == pytest.approx(expected, rel=0, abs=1e-5)


def test_the_blur_is_that_of_torchvision(golden):
    view = golden.view1.double()
    torch.testing.assert_close(gaussian_blur(view), torchvision_blur(view, [11, 11], [5.0, 5.0]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(13, 20), (3, 4)])
def test_stretch_is_bilinear_without_aligned_corners(size):
    grid = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.interpolate(grid[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(stretch(grid, size), expected)


def test_window_geometries_agree_with_numbers_worked_out_by_hand():
    grid = torch.tensor([[2.0, 4.0, 10.0]], dtype=torch.float64)
    # Windows 4 wide start at 0, 3 and, flush with the border, 5; one row of windows covers the only row.
    averaged = occlusion.window_average(grid, (1, 9), (1, 4), (1, 3), flush=True)
    assert averaged[0].tolist() == pytest.approx([2, 2, 2, 3, 4, 7, 7, 10, 10])
    # Their centres are at 1.5, 4.5 and 6.5.
    centred = occlusion.centres(grid, (1, 9), (1, 4), (1, 3), flush=True)
    assert centred[0].tolist() == pytest.approx([2, 2, 2 + 1 / 3, 3, 3 + 2 / 3, 5.5, 8.5, 10, 10])
    uncovered = occlusion.window_average(grid[:, :2], (1, 9), (1, 4), (1, 3), flush=False)
    assert uncovered.isnan()[0].tolist() == [False] * 7 + [True] * 2
