"""Regions instead of pixels, areas in units of their ends, the symmetric relevance gain, and what all of it costs.

The network averages the pixels of a view and scores two averages by their dot product, as in test_functional.
"""

import copy
import math

import pytest
import torch
from torch import nn

from oracles import insertion_deletion as oracle
from toy import tiny_maps, tiny_model, tiny_pair
from twinsight.engine import PairBank, pixel_ranks, region_ranks
from twinsight.errors import UserError
from twinsight.explainers import GradCAM
from twinsight.metrics.functional import average_drop, insertion_deletion
from twinsight.models import TwoViewModel

A, B = 0.5, 0.25  # colours of the two views
BASE = 3 * A * B
SIDE = 4
RAMP = torch.arange(16.0).view(1, SIDE, SIDE)
BLACK = {"insertion_baseline": "black", "deletion_baseline": "black"}
NORMALIZED = tuple(f"{name}_normalized" for name in ("si", "sd", "ci1", "ci2", "ci", "cd1", "cd2", "cd"))
GAINS = ("srg1", "srg2", "srg", "srg_simultaneous")
ALL = ("si", "sd", "ci1", "ci2", "ci", "cd1", "cd2", "cd", *NORMALIZED, *GAINS)


@pytest.fixture
def model():
    """Embedding: mean colour. Similarity: dot product."""
    identity = nn.Conv2d(3, 3, 1, bias=False)
    identity.weight.data = torch.eye(3).view(3, 3, 1, 1)
    return TwoViewModel(identity, similarity="dot", input_size=SIDE).eval().requires_grad_(False)


def colour(value):
    return torch.full((1, 3, SIDE, SIDE), value)


def values(result, names=ALL):
    return {name: getattr(result, name).item() for name in names}


def in_first_row():
    """A view whose whole score is in its first row, and the map that says so."""
    view = torch.zeros(1, 3, SIDE, SIDE)
    view[:, :, 0] = 4 * A
    return view, -RAMP


# Regions


def test_regions_of_one_pixel_are_pixels():
    for heatmap in (*tiny_maps(0, 1)[0], torch.zeros(9, 7)):
        assert torch.equal(region_ranks(heatmap, 1, seed=3), pixel_ranks(heatmap, seed=3))


def test_a_region_ranks_by_its_mean(model):
    """All of view 1 is in the upper right quarter, which has the largest mean; the largest pixel is elsewhere."""
    view1 = torch.zeros(1, 3, SIDE, SIDE)
    view1[..., :2, 2:] = 4 * A
    heatmap = torch.zeros(1, SIDE, SIDE)
    heatmap[0, :2, 2:], heatmap[0, 3, 0] = 1.0, 3.0
    result = insertion_deletion(model, view1, colour(B), heatmap, RAMP, granularity=2, **BLACK)
    assert result.curves["ci1"][0].tolist() == pytest.approx([0, *[BASE] * 4])
    assert result.curves["cd1"][0].tolist() == pytest.approx([BASE, *[0] * 4])
    # The ramp takes the quarters from the bottom up, right before left: equal parts of a view of one colour.
    assert result.curves["ci2"][0].tolist() == pytest.approx([BASE * k / 4 for k in range(5)])


def test_regions_at_the_border_are_smaller(model):
    """Side 3 of 4 pixels makes 9, 3, 3 and 1 pixels, whose means are 5, 7, 13 and 15."""
    result = insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, granularity=3, **BLACK)
    assert result.curves["ci1"][0].tolist() == pytest.approx([BASE * k / 16 for k in (0, 1, 4, 7, 16)])
    assert result.ci.item() == pytest.approx(BASE * (1 + 4 + 7 + 8) / 64)
    assert result.cd.item() == pytest.approx(BASE * (8 + 15 + 12 + 9) / 64)


@pytest.mark.parametrize(
    ("granularity", "options", "intervals"),
    [(2, {}, 4), (2, {"points": 3}, 2), (2, {"step": 3}, 2), (3, {"step": 4}, 1), (4, {}, 1), (1, {"step": 5}, 4)],
)
def test_points_and_step_count_regions(model, granularity, options, intervals):
    result = insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, granularity=granularity, **options, **BLACK)
    assert result.curves["sd"].shape == (1, intervals + 1)
    assert result.curves["sd"][0, [0, -1]].tolist() == pytest.approx([BASE, 0])


@pytest.mark.parametrize("value", [0.7, math.nan, math.inf])
@pytest.mark.parametrize("side", [2, 3, 5])
def test_equal_regions_are_ranked_by_the_seed_whatever_their_size(value, side):
    flat = torch.full((32, 28), value)
    cells = pixel_ranks(torch.zeros(-(-32 // side), -(-28 // side)), seed=7)
    found = region_ranks(flat, side, seed=7)
    assert all(found[y, x] == cells[y // side, x // side] for y in range(32) for x in range(28))
    assert not torch.equal(found, region_ranks(flat, side, seed=8))


def test_a_region_with_nan_comes_last():
    heatmap = RAMP[0].clone()
    heatmap[3, 3] = math.nan
    assert region_ranks(heatmap, 2, seed=0)[::2, ::2].tolist() == [[2, 1], [0, 3]]


@pytest.mark.parametrize("granularity", [0, 5, -1, 1.5])
def test_regions_that_do_not_fit_are_refused(model, granularity):
    message = f"`granularity` must be between 1 and the 4 pixels of a side, got {granularity}"
    with pytest.raises(UserError, match=message):
        insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, granularity=granularity)
    with pytest.raises(UserError, match="`granularity` must be"):
        insertion_deletion.check_options((4, 4), {"granularity": granularity})


def test_a_step_of_more_regions_than_there_are_is_refused(model):
    with pytest.raises(UserError, match="`step` must be between 1 and the 4 regions of a view, got 5"):
        insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, granularity=2, step=5)


# Areas in units of their ends


def test_a_straight_line_is_half_whatever_its_ends(model):
    """Both views go from one colour to another, so that the product of both is the sum of k/4 and k^2/16 terms."""
    one = insertion_deletion(
        model, colour(A), colour(B), RAMP, RAMP, step=4, insertion_baseline=0.1, deletion_baseline=0.9
    )
    assert values(one, NORMALIZED[2:]) == pytest.approx(dict.fromkeys(NORMALIZED[2:], 0.5), abs=1e-5)
    assert one.ci1.item() == pytest.approx(3 * B * (0.1 + A) / 2)
    black = insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, step=4, **BLACK)
    assert values(black, NORMALIZED[:2]) == pytest.approx(dict.fromkeys(NORMALIZED[:2], 11 / 32))


def test_importance_first_is_near_one_for_insertion_and_near_zero_for_deletion(model):
    view1, heatmap = in_first_row()
    result = insertion_deletion(model, view1, colour(B), heatmap, RAMP, step=4, **BLACK)
    assert values(result, NORMALIZED[2:]) == pytest.approx(
        {
            "ci1_normalized": 7 / 8,
            "ci2_normalized": 1 / 2,
            "ci_normalized": 11 / 16,
            "cd1_normalized": 1 / 8,
            "cd2_normalized": 1 / 2,
            "cd_normalized": 5 / 16,
        }
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_units_do_not_depend_on_the_sign_or_size_of_the_scores(model, sign):
    view1, heatmap = in_first_row()
    for factor in (1e-6, 1.0, 1e6):
        scaled = sign * factor * view1
        result = insertion_deletion(model, scaled, colour(B), heatmap, RAMP, step=4, **BLACK)
        assert result.ci1_normalized.item() == pytest.approx(7 / 8)
        assert result.cd1_normalized.item() == pytest.approx(1 / 8)


def test_a_curve_that_ends_where_it_starts_has_no_units(model):
    """View 1 is already the baseline; view 2 is not."""
    result = insertion_deletion(
        model, colour(A), colour(B), RAMP, RAMP, step=4, insertion_baseline=A, deletion_baseline=A
    )
    found = values(result)
    missing = {"ci1_normalized", "cd1_normalized", "ci_normalized", "cd_normalized"}
    assert {name for name in ALL if math.isnan(found[name])} == missing
    assert found["ci2_normalized"] == pytest.approx(0.5)
    assert result.ci1.item() == pytest.approx(BASE)


@pytest.mark.parametrize(("difference", "defined"), [(1e-6, False), (1e-3, True)])
def test_ends_that_only_rounding_tells_apart_have_no_units(model, difference, defined):
    blank = {"insertion_baseline": A * (1 + difference), "deletion_baseline": A * (1 + difference)}
    result = insertion_deletion(model, colour(A), colour(A), RAMP, RAMP, step=4, **blank)
    assert {result.curves["ci1"][0, 0].item() == result.curves["ci1"][0, -1].item()} == {False}
    assert [math.isfinite(value) for value in values(result, NORMALIZED).values()] == [defined] * 8


def test_a_score_of_zero_everywhere_has_no_units(model):
    result = insertion_deletion(model, colour(0.0), colour(B), RAMP, RAMP, step=4, **BLACK)
    assert all(math.isnan(value) for value in values(result, NORMALIZED).values())
    assert values(result, GAINS) == dict.fromkeys(GAINS, 0)


# Symmetric relevance gain


def test_the_gain_is_what_the_right_order_leaves_less_of(model):
    """Deletion of the row that matters: last, 7/8 of the area is left; first, 1/8."""
    view1, heatmap = in_first_row()
    result = insertion_deletion(model, view1, colour(B), heatmap, RAMP, step=4, **BLACK)
    assert result.srg1.item() == pytest.approx(BASE * 3 / 4)
    assert result.srg2.item() == pytest.approx(0, abs=1e-6)
    assert result.srg.item() == pytest.approx(BASE * 3 / 8)
    inverted = insertion_deletion(model, view1, colour(B), -heatmap, -RAMP, step=4, **BLACK)
    assert values(inverted, GAINS) == pytest.approx({name: -getattr(result, name).item() for name in GAINS}, abs=1e-6)
    # With both at once: 0, 1/4, 1/2, 3/4, 1 for the most relevant first, and 1, 0, 0, 0, 0.
    assert result.srg_simultaneous.item() == pytest.approx(BASE * (2 / 4 - 1 / 8))


def test_views_of_one_colour_gain_nothing_by_any_order(model):
    result = insertion_deletion(model, colour(A), colour(B), RAMP, -RAMP, step=4, **BLACK)
    assert values(result, GAINS) == pytest.approx(dict.fromkeys(GAINS, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("baselines", "defined"),
    [
        (("blur", "blur"), True),
        (("noise", "noise"), True),
        (("black", 0.0), True),
        (("black", 0), True),
        (("black", "input_zero"), True),  # of a model without normalisation
        (("blur", "input_zero"), False),
        (("blur", "mean"), False),
        ((0.0, 0.5), False),
    ],
)
def test_there_is_a_gain_where_both_paths_share_their_blank(baselines, defined):
    views, maps = tiny_pair(0, 1), tiny_maps(0, 1)
    plain = tiny_model(0)
    plain.normalization = None
    result = insertion_deletion(
        plain, *views, *maps, points=4, insertion_baseline=baselines[0], deletion_baseline=baselines[1]
    )
    assert [math.isfinite(value) for value in values(result, GAINS).values()] == [defined] * 4


def test_zero_is_not_black_where_the_model_normalises():
    result = insertion_deletion(
        tiny_model(0),
        *tiny_pair(0, 1),
        *tiny_maps(0, 1),
        points=4,
        insertion_baseline="black",
        deletion_baseline="input_zero",
    )
    assert result.srg.isnan().all()


@pytest.mark.parametrize(("protocol", "defined"), [("sound", True), ("paper", False)])
def test_the_paper_has_no_gain(protocol, defined):
    result = insertion_deletion(tiny_model(0), *tiny_pair(0, 2), *tiny_maps(0, 2), points=4, protocol=protocol)
    for name in GAINS:
        assert getattr(result, name).isfinite().all() == defined


# All of them


def without_ties(seed, batch):
    """Maps in which no two regions tie, where sums of evenly spaced pixels do."""
    return [heatmap**3 for heatmap in tiny_maps(seed, batch)]


def close(expected):
    return {name: pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in expected.items()}


@pytest.mark.parametrize("protocol", ["sound", "paper"])
@pytest.mark.parametrize("kind", [{}, {"asymmetric": True}, {"similarity": "dot"}], ids=["plain", "asymmetric", "dot"])
@pytest.mark.parametrize(("granularity", "step"), [(1, 64), (4, 4), (4, 1), (8, 2)])
def test_areas_equal_their_literal_definition(granularity, step, kind, protocol):
    model, views, maps = tiny_model(1, **kind), tiny_pair(1, 2), without_ties(1, 2)
    result = insertion_deletion(model, *views, *maps, step=step, granularity=granularity, protocol=protocol)
    for n in range(2):
        expected, curves = oracle.insertion_deletion(
            copy.deepcopy(model).double(),
            *(view[n : n + 1].double() for view in views),
            *(heatmap[n].double() for heatmap in maps),
            step,
            protocol,
            granularity=granularity,
        )
        assert set(expected) == (set(ALL) if protocol == "sound" else set(ALL) - set(GAINS))
        assert {name: getattr(result, name)[n].item() for name in expected} == close(expected)
        for name, curve in curves.items():
            assert result.curves[name][n].tolist() == pytest.approx(curve, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("granularity", [3, 5, 7])  # none divides 32, and the step need not divide the regions
def test_regions_that_do_not_divide_equal_their_literal_definition(granularity):
    model, views, maps = tiny_model(2), tiny_pair(2, 1), without_ties(2, 1)
    result = insertion_deletion(model, *views, *maps, step=3, granularity=granularity)
    _, curves = oracle.insertion_deletion(
        model, *views, *(heatmap[0] for heatmap in maps), 3, "sound", granularity=granularity
    )
    for name, curve in curves.items():
        assert result.curves[name][0].tolist() == pytest.approx(curve, abs=1e-5)


def test_swapping_the_views_swaps_the_directions():
    model, (view1, view2), (map1, map2) = tiny_model(0), tiny_pair(0, 2), tiny_maps(0, 2)
    seeds = torch.tensor([1, 2])
    options = {"points": 9, "granularity": 3, "seeds": seeds}
    one = insertion_deletion(model, view1, view2, map1, map2, **options)
    other = insertion_deletion(model, view2, view1, map2, map1, **options)
    other_name = str.maketrans("12", "21")
    for name in ALL:
        torch.testing.assert_close(getattr(other, name.translate(other_name)), getattr(one, name), rtol=1e-5, atol=1e-6)


def test_a_batch_is_its_pairs_one_by_one_bit_for_bit():
    model, views, maps = tiny_model(0), tiny_pair(0, 3), tiny_maps(0, 3)
    together = insertion_deletion(model, *views, *maps, points=20, granularity=3)
    for n in range(3):
        alone = insertion_deletion(model, *(x[n : n + 1] for x in (*views, *maps)), points=20, granularity=3)
        assert [name for name in ALL if not torch.equal(getattr(alone, name)[0], getattr(together, name)[n])] == []


def test_chunk_sizes_agree_to_rounding():
    model, views, maps = tiny_model(0), tiny_pair(0, 2), tiny_maps(0, 2)
    found = [
        insertion_deletion(model, *views, *maps, points=20, granularity=3, bank=PairBank(model, size))
        for size in (1, 5, 32)
    ]
    for name in ("si", "ci", "cd", "sd", *GAINS):
        for other in found[1:]:
            torch.testing.assert_close(getattr(other, name), getattr(found[0], name), rtol=0, atol=1e-5)


def test_one_map_has_one_direction(model):
    result = insertion_deletion(model, colour(A), colour(B), RAMP, None, step=4, **BLACK)
    found = values(result)
    assert {name for name in NORMALIZED + GAINS if math.isnan(found[name])} == {
        *("si_normalized", "sd_normalized", "ci2_normalized", "cd2_normalized", "srg2", "srg_simultaneous")
    }
    assert (found["ci_normalized"], found["cd_normalized"], found["srg"]) == (
        *(found["ci1_normalized"], found["cd1_normalized"], found["srg1"]),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.3])
def test_maps_that_rank_nothing_have_areas_all_the_same(model, value):
    flat = torch.full((1, SIDE, SIDE), value)
    result = insertion_deletion(model, colour(A), colour(B), flat, RAMP, granularity=2, **BLACK)
    assert all(math.isfinite(number) for number in values(result).values())
    assert result.degenerate1.item()
    assert result.srg1.item() == pytest.approx(0, abs=1e-6)


# Cost


@pytest.mark.parametrize(("protocol", "ends"), [("sound", 2), ("paper", 3)])
def test_all_metrics_of_an_explanation_take_at_most_892_and_5_forwards(protocol, ends):
    """At 224 points: 4 paths of 223, the blanks they share, and two masked views; the views themselves are there."""
    model, passed = tiny_model(0), []
    model.trunk.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    views = tiny_pair(0, 1, size=(32, 28))  # 896 pixels, 4 a step
    bank = PairBank(model, chunk_size=223)  # one chunk for a path, so that nothing is padded
    GradCAM(model)(*views, bank=bank)
    maps = tiny_maps(0, 1, size=(32, 28))
    passed.clear()
    assert (before := bank.forwards) == 2
    curves = insertion_deletion(model, *views, *maps, points=224, protocol=protocol, bank=bank)
    average_drop(model, *views, *maps, protocol=protocol, bank=bank)
    assert curves.curves["si"].shape == (1, 225)
    assert sum(passed) == bank.forwards - before == 892 + ends + 2  # padding and all
    assert sum(passed) <= 892 + 5
