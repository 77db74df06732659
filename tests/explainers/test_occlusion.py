"""Context-agnostic and pairwise occlusion against literal loops, in their published form and in their sound one."""

import pytest
import torch
from torch import nn

from oracles import occlusion as oracle
from toy import tiny_model, tiny_pair
from twinsight.engine import PairBank, baseline_image
from twinsight.errors import UserError
from twinsight.explainers import ConditionalOcclusion, ContextAgnosticOcclusion, PairwiseOcclusion
from twinsight.explainers.occlusion import draw_boxes
from twinsight.models import TwoViewModel

GRID = {"window": (9, 7), "stride": (5, 6)}


def fills(model, views, baseline):
    return [torch.stack([baseline_image(baseline, x, model.normalization) for x in view]) for view in views]


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "negative_squared_distance"])
@pytest.mark.parametrize(("baseline", "flush"), [("blur", True), ("input_zero", False), (0.5, True), ("mean", False)])
@pytest.mark.parametrize("size", [32, (32, 24)])
def test_context_agnostic_occlusion_is_its_definition(asymmetric, similarity, baseline, flush, size):
    model = tiny_model(1, similarity=similarity, asymmetric=asymmetric)
    views = tiny_pair(1, 1, size)
    found = ContextAgnosticOcclusion(model, **GRID, baseline=baseline, flush=flush)(*views)
    expected = oracle.context_agnostic_occlusion(
        model, *views, *fills(model, views, baseline), GRID["window"], GRID["stride"], flush
    )
    for heatmap, literal in zip((found.map1[0], found.map2[0]), expected, strict=True):
        assert heatmap.shape == literal.shape
        torch.testing.assert_close(heatmap.double(), literal, rtol=1e-5, atol=1e-5 * literal.abs().max().item())


def test_the_published_context_agnostic_map_is_scaled_and_the_sound_one_is_not():
    model, views = tiny_model(0), tiny_pair(0, 2)
    options = {**GRID, "baseline": "input_zero", "flush": False}
    raw, scaled = (ContextAgnosticOcclusion(model, **options, scaled=value)(*views) for value in (False, True))
    published = ContextAgnosticOcclusion(model, **GRID, protocol="paper")(*views)
    for view in ("map1", "map2"):
        assert torch.equal(getattr(published, view), getattr(scaled, view))
        for heatmap, unit in zip(getattr(raw, view), getattr(scaled, view), strict=True):
            expected = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
            torch.testing.assert_close(unit, expected)


def test_occlusions_share_the_images_without_a_window():
    model, views = tiny_model(0), tiny_pair(0, 1)
    bank = PairBank(model)
    conditional, agnostic = ConditionalOcclusion(model, **GRID), ContextAgnosticOcclusion(model, **GRID)
    windows = conditional.windows((32, 32)).flatten(0, 1).shape[0]
    conditional(*views, bank=bank)
    assert bank.forwards == conditional.cost((32, 32)).forwards == 2 + 2 * windows
    agnostic(*views, bank=bank)
    assert bank.forwards == 2 + 4 * windows == agnostic.cost((32, 32)).forwards


@pytest.fixture
def boxes():
    return draw_boxes(12, (32, 32), (0.1, 0.3), (1.0, 1.5), torch.Generator().manual_seed(3)).view(6, 2, 4)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_sound_pairwise_occlusion_is_the_mean_drop_over_all_combinations(boxes, asymmetric):
    model, views = tiny_model(2, asymmetric=asymmetric), tiny_pair(2, 1)
    found = PairwiseOcclusion(model, boxes=boxes)(*views)
    delta = oracle.pairwise_drops(model, *views, *fills(model, views, "blur"), boxes)
    for view, worth in ((1, delta.mean(dim=1)), (2, delta.mean(dim=0))):
        expected, error, count = oracle.mean_drop_of_covering_boxes(
            worth.tolist(), boxes[:, view - 1].tolist(), (32, 32)
        )
        heatmap = getattr(found, f"map{view}")[0].double()
        tolerance = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(heatmap, expected, rtol=1e-4, atol=tolerance)
        reported = found.details[f"standard_error{view}"][0].double()
        torch.testing.assert_close(reported, error, rtol=1e-3, atol=tolerance, equal_nan=True)
        assert (count == 0).any()  # so that the rule for pixels out of reach has been tried
        assert (count > 1).any()


def test_weights_of_the_softmax_grow_with_the_drop_and_flatten_with_the_temperature(boxes):
    model, views = tiny_model(2), tiny_pair(2, 1)
    delta = oracle.pairwise_drops(model, *views, *fills(model, views, "blur"), boxes)
    for temperature in (0.01, 1.0):
        found = PairwiseOcclusion(model, boxes=boxes, weighting="softmax", temperature=temperature)(*views)
        alpha = torch.softmax(delta.flatten() / temperature, dim=0).view_as(delta)
        expected, _, _ = oracle.mean_drop_of_covering_boxes(alpha.mean(dim=1).tolist(), boxes[:, 0].tolist(), (32, 32))
        torch.testing.assert_close(found.map1[0].double(), expected, rtol=1e-4, atol=1e-7)


def test_all_combinations_cost_no_more_forwards_than_one_for_each_draw():
    model, views = tiny_model(0), tiny_pair(0, 1)
    for protocol in ("sound", "paper"):
        bank, explainer = PairBank(model), PairwiseOcclusion(model, num_samples=20, protocol=protocol)
        explainer(*views, bank=bank)
        assert bank.forwards == 42 == explainer.cost((32, 32)).forwards


def test_the_standard_error_tells_how_far_another_draw_lies():
    """Over many seeds the spread of a pixel's value is about the standard error it reports."""
    model, (view1, view2) = tiny_model(0), tiny_pair(0, 1)
    explainer, bank = PairwiseOcclusion(model, num_samples=60), PairBank(model)
    runs = [explainer(view1, view2, seeds=torch.tensor([seed]), bank=bank) for seed in range(40)]
    values = torch.stack([run.map1[0] for run in runs])[:, 10:22, 10:22]
    errors = torch.stack([run.details["standard_error1"][0] for run in runs])[:, 10:22, 10:22]
    ratio = (values.std(dim=0) / errors.square().mean(dim=0).sqrt()).median()
    # Rectangles of one size overlap, and those of the other view are common to all pixels, hence not exactly 1.
    assert 0.6 < ratio < 1.5


def test_sound_pairwise_occlusion_is_not_the_map_of_what_was_drawn_often():
    """The published map correlates with plain coverage; dividing by coverage removes the centre bias."""
    model, (view1, view2) = tiny_model(0), tiny_pair(0, 1)
    coverage = torch.zeros(32, 32)
    boxes = draw_boxes(200, (32, 32), (0.1, 0.3), (1.0, 1.5), torch.Generator().manual_seed(0)).view(-1, 2, 4)
    for top, left, tall, wide in boxes[:, 0].tolist():
        coverage[top : top + tall, left : left + wide] += 1
    published = PairwiseOcclusion(model, boxes=boxes, protocol="paper", credit="both")(view1, view2).map1[0]
    sound = PairwiseOcclusion(model, boxes=boxes)(view1, view2).map1[0]
    assert torch.corrcoef(torch.stack([published.flatten(), coverage.flatten()]))[0, 1] > 0.95
    assert torch.corrcoef(torch.stack([sound.flatten(), coverage.flatten()]))[0, 1].abs() < 0.7


class OnePixelCounts(nn.Module):
    """Feature maps that hold the image's own pixels in one corner only."""

    def forward(self, x):
        return x[:, :, 4:12, 4:12]


def test_only_windows_over_what_the_network_sees_get_credit():
    model = TwoViewModel(OnePixelCounts(), nn.Flatten(), similarity="dot", input_size=32)
    view1, view2 = torch.rand(2, 1, 3, 32, 32) + 0.1
    drops = ConditionalOcclusion(model, window=8, stride=8, baseline=0.0)(view1, view2).map1[0]
    assert (drops[:2, :2] > 0).all()
    assert drops[2:].abs().max() < 1e-6
    assert drops[:, 2:].abs().max() < 1e-6


@pytest.mark.parametrize("explainer", [ContextAgnosticOcclusion, PairwiseOcclusion])
def test_swapping_the_views_swaps_the_maps(explainer, boxes):
    model, (view1, view2) = tiny_model(0), tiny_pair(0, 1)
    if explainer is PairwiseOcclusion:
        straight = explainer(model, boxes=boxes)(view1, view2)
        swapped = explainer(model, boxes=boxes.flip(1))(view2, view1)
    else:
        straight, swapped = explainer(model, **GRID)(view1, view2), explainer(model, **GRID)(view2, view1)
    torch.testing.assert_close(straight.map1, swapped.map2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(straight.map2, swapped.map1, rtol=1e-4, atol=1e-6)


def test_drawn_boxes_have_the_size_and_shape_that_was_asked_for():
    drawn = draw_boxes(2000, (90, 60), (0.1, 0.3), (1.0, 1.5), torch.Generator().manual_seed(0)).double()
    top, left, tall, wide = drawn.unbind(dim=1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 90).all()
    assert (left + wide <= 60).all()
    area = tall * wide / (90 * 60)
    assert 0.095 < area.min() < 0.12 < 0.27 < area.max() < 0.315
    assert abs(area.mean() - 0.2) < 0.005
    ratio = tall / wide
    assert 0.93 < ratio.min() < 1.05 < 1.45 < ratio.max() < 1.6
    assert abs(ratio.log().mean() - torch.tensor(1.5).log() / 2) < 0.02
    for start, room in ((top, 90 - tall), (left, 60 - wide)):
        assert abs((start / room).mean() - 0.5) < 0.02
        assert (start == 0).any()
        assert (start == room).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0"),
        ({"scale": (0.3, 0.1)}, r"`scale` must be two shares .* got \(0.3, 0.1\)"),
        ({"ratio": (0.0, 1.0)}, r"`ratio` must be two positive ratios"),
        ({"pairing": "some"}, "`pairing`.*'some'"),
        ({"weighting": "hard"}, "`weighting`.*'hard'"),
        ({"credit": "shorter"}, "set `pairing=given`"),
        ({"boxes": torch.zeros(3, 4)}, r"`boxes` must be \(N, 2, 4\) integers: .* got float32 \(3, 4\)"),
        ({"boxes": [[[0, 0, 0, 3], [0, 0, 2, 2]]]}, "`boxes` must be"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PairwiseOcclusion(tiny_model(0), **options)


def test_boxes_beyond_the_image_are_refused(boxes):
    with pytest.raises(UserError, match="must lie inside the image of 20 x 20"):
        PairwiseOcclusion(tiny_model(0, input_size=20), boxes=boxes)(*tiny_pair(0, 1, 20))
