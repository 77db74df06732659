"""Maps against known regions: closed forms, literal oracles, ties, missing and degenerate maps."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn import functional as F

from toy import tiny_maps
from twinsight.data import SimCLRViews, shared_regions
from twinsight.errors import UserError
from twinsight.metrics.functional import localization, overlap_agreement
from twinsight.metrics.functional.correlation import pearson, spearman

BOX1, BOX2 = (4, 8, 16, 12), (0, 20, 32, 12)
REGIONS = [(BOX1, BOX2)]
SCORES = ("pointing_game", "relevance_mass", "rank_accuracy")


def indicator(box, side=32):
    """1 in the pixels of a box of whole pixels, else 0."""
    top, left, height, width = box
    heatmap = torch.zeros(1, side, side)
    heatmap[:, top : top + height, left : left + width] = 1
    return heatmap


def scores(result, view=""):
    return [getattr(result, f"{name}{view}")[0].item() for name in SCORES]


def test_the_region_itself_as_map_scores_one_and_its_complement_zero():
    one, two = indicator(BOX1), indicator(BOX2)
    right, wrong = localization(one, two, REGIONS), localization(1 - one, 1 - two, REGIONS)
    for view in ("1", "2", ""):
        assert scores(right, view) == [1, 1, 1]
        assert scores(wrong, view) == [0, 0, 0]
    assert right.region_share1.item() == 16 * 12 / 1024
    assert right.region_share2.item() == 32 * 12 / 1024
    assert right.region_share.item() == pytest.approx((16 * 12 + 32 * 12) / 2048)


def test_random_maps_score_the_share_of_the_region():
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(300, 32, 32, generator=draw)
    result = localization(maps, None, REGIONS * 300)
    share = 16 * 12 / 1024
    for name, spread in zip(SCORES, (0.07, 0.01, 0.01), strict=True):
        assert getattr(result, name).mean().item() == pytest.approx(share, abs=spread)


def test_scores_are_those_of_a_literal_implementation():
    maps = tiny_maps(0, 6)
    draw = np.random.default_rng(0)
    regions = [
        tuple((*map(float, draw.uniform(0, 16, 2)), *map(float, draw.uniform(2, 16, 2))) for _ in range(2))
        for _ in range(6)
    ]
    result = localization(*maps, regions)
    for pair, boxes in enumerate(regions):
        for view, (top, left, height, width) in enumerate(boxes):
            heatmap = maps[view][pair]
            inside = {
                (row, column)
                for row in range(32)
                for column in range(32)
                if top <= row + 0.5 < top + height and left <= column + 0.5 < left + width
            }
            by_value = sorted(np.ndindex(32, 32), key=lambda place: -heatmap[place].item())
            positive = {place: max(0.0, heatmap[place].item()) for place in by_value}
            expected = [
                float(by_value[0] in inside),
                sum(positive[place] for place in inside) / sum(positive.values()),
                len(inside & set(by_value[: len(inside)])) / len(inside),
            ]
            found = [getattr(result, f"{name}{view + 1}")[pair].item() for name in SCORES]
            assert found == pytest.approx(expected, abs=1e-6)


def test_ties_count_by_their_share_and_not_by_where_they_lie():
    heatmap = torch.zeros(1, 4, 4)
    heatmap[0, 0] = 1  # four pixels tie for the largest, one of them inside
    result = localization(heatmap, None, [((0, 3, 4, 1), None)])
    # The region has four pixels, and so have the highest: one of them is inside.
    assert scores(result) == [0.25, 0.25, 0.25]
    # A region of eight: the four highest, two inside, and four of the twelve others, of which six are inside.
    assert localization(heatmap, None, [((0, 2, 4, 2), None)]).rank_accuracy.item() == pytest.approx(
        (2 + 4 / 12 * 6) / 8
    )
    for turned in (heatmap.flip(-1), heatmap.flip(-2)):  # nor does scan order decide
        assert localization(turned, None, [((0, 3, 4, 1), None)]).pointing_game.item() == 0.25


def test_negative_relevance_has_no_mass():
    heatmap = indicator(BOX1) - 5
    assert localization(heatmap, None, REGIONS).relevance_mass.item() == 0
    assert localization(heatmap, None, REGIONS).rank_accuracy.item() == 1
    mixed = 3 * indicator(BOX1) - indicator(BOX2)  # overlapping columns keep 3 - 1 there
    assert localization(mixed, None, REGIONS).relevance_mass.item() == 1


@pytest.mark.parametrize("value", [0.0, -2.0, 0.5, float("nan"), float("inf")])
def test_degenerate_maps_score_as_chance_would_and_are_flagged(value):
    maps = tiny_maps(0, 2)[0]
    if np.isfinite(value):
        maps[0] = value
    else:
        maps[0, 3, 3] = value
    result = localization(maps, maps.flip(0), REGIONS * 2)
    assert [getattr(result, f"{name}1")[0].item() for name in SCORES] == pytest.approx([16 * 12 / 1024] * 3)
    assert (result.degenerate1.tolist(), result.degenerate2.tolist()) == ([True, False], [False, True])


def test_missing_maps_and_regions_are_nan():
    one, two = tiny_maps(0, 3)
    result = localization(one, two, [None, (BOX1, None), (None, BOX2)])
    assert result.rank_accuracy.isnan().tolist() == [True, False, False]
    assert result.rank_accuracy[1] == result.rank_accuracy1[1]
    assert result.rank_accuracy[2] == result.rank_accuracy2[2]
    assert result.rank_accuracy2[1].isnan()
    single = localization(one, None, REGIONS * 3)
    assert torch.equal(single.relevance_mass, single.relevance_mass1)
    assert single.relevance_mass2.isnan().all()
    assert not single.degenerate2.any()


def test_a_region_between_two_rows_of_pixels_holds_none():
    assert localization(torch.rand(1, 8, 8), None, [((2.6, 0, 0.8, 8), None)]).pointing_game.isnan()


def test_swapping_views_swaps_fields():
    one, two = tiny_maps(1, 1)
    forth, back = localization(one, two, REGIONS), localization(two, one, [(BOX2, BOX1)])
    for name in (*SCORES, "region_share", "degenerate"):
        assert torch.equal(getattr(forth, f"{name}1"), getattr(back, f"{name}2"))
    assert scores(forth) == scores(back)


def test_maps_of_another_size_are_brought_to_that_of_the_views():
    coarse = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = F.interpolate(coarse[None], (32, 32), mode="bilinear", align_corners=False)[0]
    assert scores(localization(coarse, None, REGIONS, size=(32, 32))) == scores(localization(fine, None, REGIONS))


def test_a_pairs_scores_do_not_depend_on_its_batch():
    one, two = tiny_maps(2, 4)
    together = localization(one, two, REGIONS * 4)
    agreement = overlap_agreement(one, two, [((0, 0, 16, 16), (3, 5, 20, 20))] * 4)
    for pair in range(4):
        alone = localization(one[pair : pair + 1], two[pair : pair + 1], REGIONS)
        assert scores(alone) == [getattr(together, name)[pair].item() for name in SCORES]
        single = overlap_agreement(one[pair : pair + 1], two[pair : pair + 1], [((0, 0, 16, 16), (3, 5, 20, 20))])
        assert single.overlap_agreement.item() == agreement.overlap_agreement[pair].item()


@pytest.mark.parametrize("call", [localization, overlap_agreement])
def test_shapes_that_do_not_fit_are_named(call):
    one, two = tiny_maps(0, 2)
    with pytest.raises(UserError, match=r"`regions` must have one entry for each of the 2 pairs, got 1"):
        call(one, two, REGIONS)
    with pytest.raises(UserError, match=r"`map2` must be \(2, h, w\), one map per pair, got \(1, 32, 32\)"):
        call(one, two[:1], REGIONS * 2)
    with pytest.raises(UserError, match=r"`map1` must be"):
        call(one[0], None, REGIONS * 32)


# Agreement over the overlap


def field(geometry, side):
    """A map that says of each pixel of a view something of the place of the photo it shows, smooth and without ties."""
    top, left, height, width = geometry.box
    rows = top + (torch.arange(side, dtype=torch.float64) + 0.5) / side * height
    columns = left + (torch.arange(side, dtype=torch.float64) + 0.5) / side * width
    if geometry.flipped:
        columns = columns.flip(0)
    return (torch.sin(rows / 40)[:, None] + torch.cos(columns / 50)[None] + columns[None] * rows[:, None] / 9000)[None]


def test_maps_that_say_the_same_of_the_photo_agree_through_crops_and_flips():
    views = SimCLRViews(32, first="augmented", scale=(0.3, 1.0))
    flips = set()
    for seed in range(30):
        one, two = (recipe.geometry for recipe in views.recipes((200, 300), seed))
        region = shared_regions(one, two, 32)
        result = overlap_agreement(field(one, 32), field(two, 32), [region])
        if result.overlap_agreement.isnan():
            assert result.overlap_share < 1 / 16
            continue
        flips.add((one.flipped, two.flipped))
        assert result.overlap_agreement.item() > 0.99
        assert result.overlap_correlation.item() > 0.99
        opposed = overlap_agreement(field(one, 32), -field(two, 32), [region])
        assert opposed.overlap_agreement.item() < -0.99
    assert len(flips) == 4


def test_agreement_over_equal_whole_pixels_is_scipys_correlation():
    one, two = tiny_maps(3, 1)
    box1, box2 = (2, 4, 12, 10), (20, 0, 12, 10)
    inside = [maps[0, t : t + 12, left : left + 10] for maps, (t, left) in ((one, (2, 4)), (two, (20, 0)))]
    for mirrored in (False, True):
        result = overlap_agreement(one, two, [(box1, box2, mirrored)])
        a, b = inside[0].flatten(), (inside[1].flip(-1) if mirrored else inside[1]).flatten()
        assert result.overlap_agreement.item() == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)
        assert result.overlap_correlation.item() == pytest.approx(pearsonr(a, b).statistic, abs=1e-6)
        assert result.overlap_share.item() == pytest.approx(120 / 1024)


def test_the_finer_map_is_averaged_over_the_cells_of_the_coarser():
    draw = torch.Generator().manual_seed(0)
    two = torch.rand(1, 32, 32, generator=draw)
    one = torch.rand(1, 32, 32, generator=draw)
    # View 1 shows in all of its pixels what view 2 shows in 8 x 8: blocks of 4 x 4 are one pixel there.
    blocks = F.avg_pool2d(one, 4)[0]
    result = overlap_agreement(one, two, [((0, 0, 32, 32), (8, 8, 8, 8))])
    expected = pearsonr(blocks.flatten(), two[0, 8:16, 8:16].flatten()).statistic
    assert result.overlap_correlation.item() == pytest.approx(expected, abs=1e-6)


def test_agreement_does_not_depend_on_which_view_is_which():
    one, two = tiny_maps(4, 1)
    for mirrored in (False, True):
        forth = overlap_agreement(one, two, [((0, 0, 20.5, 13.2), (3, 4, 17, 25), mirrored)])
        back = overlap_agreement(two, one, [((3, 4, 17, 25), (0, 0, 20.5, 13.2), mirrored)])
        assert forth.overlap_agreement.item() == pytest.approx(back.overlap_agreement.item(), abs=1e-6)


def test_little_overlap_a_missing_map_and_constants_give_nan():
    one, two = tiny_maps(5, 3)
    flat = two.clone()
    flat[0, 8:24, 8:24] = 0.25  # constant where it counts
    flat[1, 10, 10] = torch.nan
    whole = ((8, 8, 16, 16), (8, 8, 16, 16))
    result = overlap_agreement(one, flat, [whole, whole, ((0, 0, 7, 8), (0, 0, 32, 32))])
    assert result.overlap_agreement.isnan().all()
    assert result.overlap_share.tolist() == pytest.approx([0.25, 0.25, 56 / 1024])
    assert overlap_agreement(one, two, [None, None, whole]).overlap_agreement.isnan().tolist() == [True, True, False]
    assert overlap_agreement(one, two, [None, None, whole]).overlap_share.tolist() == [0, 0, 0.25]
    assert overlap_agreement(one, None, [whole] * 3).overlap_agreement.isnan().all()
    allowed = overlap_agreement(one, two, [((0, 0, 7, 8), (0, 0, 32, 32))] * 3, minimum=0.05)
    assert not allowed.overlap_agreement.isnan().any()


@pytest.mark.parametrize("minimum", [0, -1, 1.1])
def test_a_minimum_out_of_range_is_named(minimum):
    with pytest.raises(UserError, match=f"`minimum` must be in .*{minimum}"):
        overlap_agreement(*tiny_maps(0, 1), REGIONS, minimum=minimum)


# Correlations


def test_correlations_are_scipys_with_ties_and_at_any_scale():
    draw = np.random.default_rng(0)
    for scale in (1.0, 1e-30, 1e30):
        a, b = draw.integers(0, 5, (2, 200)) * scale
        assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        expected = pearsonr(a / scale, b / scale).statistic
        assert pearson(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("broken", [torch.zeros(5), torch.tensor([1.0, 2.0, torch.nan, 0.0, 1.0]), torch.arange(5) / 0])
def test_nothing_correlates_with_what_ranks_nothing(broken):
    for call in (spearman, pearson):
        assert np.isnan(call(torch.arange(5.0), broken))
        assert np.isnan(call(broken, torch.arange(5.0)))
