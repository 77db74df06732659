"""Properties of pictures, views and maps: of whatever shape and type, they are used as documented or refused."""

import dataclasses
import math

import numpy as np
import torch
from hypothesis import strategies as st

import twinsight
from toy import tiny_model
from toy_properties import holds_for
from twinsight.api import as_views
from twinsight.data import as_pixels
from twinsight.engine import NonFiniteEmbedding
from twinsight.errors import UserError
from twinsight.explainers import EXPLAINERS
from twinsight.metrics.functional import average_drop, insertion_deletion, localization, overlap_agreement

MODEL = tiny_model(0, input_size=16)
TYPES = (
    *("bool", "u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", "g", "c8", ">f4", ">u2", "<U3", "O", "M8[s]", "S2"),
)
FILLS = (0, 1, 0.5, -1, 2, 255, math.nan, math.inf, -math.inf)
SIDES = st.integers(1, 20)


def one_line(error):
    assert "\n" not in str(error)


@holds_for(
    150,
    5000,
    shape=st.one_of(
        st.lists(st.integers(0, 4), max_size=5).map(tuple),
        st.tuples(SIDES, SIDES),
        st.tuples(SIDES, SIDES, st.sampled_from([1, 3])),
    ),
    kind=st.sampled_from(TYPES),
    fill=st.sampled_from(FILLS),
    tensor=st.booleans(),
)
def test_an_array_is_pixels_or_refused(shape, kind, fill, tensor):
    with np.errstate(all="ignore"):
        array = np.full(shape, fill).astype(kind)
    picture = array
    if tensor:
        try:
            picture = torch.from_numpy(array)
        except (TypeError, ValueError):
            return
    try:
        pixels = as_pixels(picture)
    except UserError as error:
        one_line(error)
        return
    assert pixels.dtype == torch.float32
    assert pixels.shape[0] == 3
    assert 0 <= pixels.min() <= pixels.max() <= 1
    views = as_views(MODEL, picture)
    assert views.shape == (1, 3, 16, 16)
    assert torch.isfinite(views).all()


def drawn_maps(seed, batch, size, fills):
    """Random maps, of which some are of one value, or have one value in a corner."""
    maps = torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed))
    for heatmap, (fill, whole) in zip(maps, fills, strict=False):
        heatmap[... if whole else (0, 0)] = fill
    return maps


MAPS = {
    "seed": st.integers(0, 9),
    "batch": st.integers(1, 3),
    "size": st.tuples(SIDES, SIDES),
    "fills": st.lists(st.tuples(st.sampled_from(FILLS), st.booleans()), max_size=3),
}


def same(found, expected):
    for field in dataclasses.fields(found):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        for name in one if isinstance(one, dict) else ():
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)
        if not isinstance(one, dict):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def part(found, index):
    """The same result, of one pair."""
    parts = {}
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        parts[field.name] = (
            {k: v[index : index + 1] for k, v in value.items()} if isinstance(value, dict) else value[index : index + 1]
        )
    return type(found)(**parts)


LARGE = st.integers(6, 20)  # sides that can be blurred


@holds_for(12, 300, sides=st.tuples(LARGE, LARGE), **MAPS)
def test_metrics_flag_degenerate_maps_and_leave_other_pairs_and_units_alone(sides, seed, batch, size, fills):
    maps = drawn_maps(seed, batch, size, fills)
    views = torch.rand(2, batch, 3, *sides, generator=torch.Generator().manual_seed(seed))
    seeds = torch.arange(batch)
    at_size = torch.nn.functional.interpolate(maps[:, None], sides, mode="bilinear") if size != sides else maps[:, None]
    broken = [not torch.isfinite(each).all() or bool(each.min() == each.max()) for each in at_size]
    for metric, options in ((insertion_deletion, {"points": 3}), (average_drop, {})):
        found = metric(MODEL, *views, maps, None, seeds=seeds, **options)
        assert found.degenerate1.tolist() == broken
        same(metric(MODEL, *views, 4 * maps, None, seeds=seeds, **options), found)
        last = slice(batch - 1, batch)
        alone = metric(MODEL, *views[:, last], maps[last], None, seeds=seeds[last], **options)
        same(part(found, batch - 1), alone)
    curves = insertion_deletion(MODEL, *views, maps, None, seeds=seeds, points=3).curves
    assert all(torch.isfinite(curves[name]).all() for name in ("ci1", "cd1"))


NUMBERS = st.floats(-30, 30)
BOX = st.none() | st.tuples(NUMBERS, NUMBERS, st.floats(0, 30), st.floats(0, 30))


@holds_for(60, 2000, box1=BOX, box2=BOX, mirrored=st.booleans(), **MAPS)
def test_scores_of_regions_stay_in_their_range_whatever_the_boxes(box1, box2, mirrored, seed, batch, size, fills):
    map1, map2 = drawn_maps(seed, batch, size, fills), drawn_maps(seed + 1, batch, size, [])
    regions = [(box1, box2, mirrored)] * batch
    found = localization(map1, map2, regions)
    for name in ("pointing_game", "relevance_mass", "rank_accuracy"):
        for value in getattr(found, name).tolist():
            assert math.isnan(value) or -1e-6 <= value <= 1 + 1e-6
    same(localization(4 * map1, 4 * map2, regions), found)
    agreement = overlap_agreement(map1, map2, regions, minimum=0.01).overlap_agreement
    assert all(math.isnan(value) or -1 <= value <= 1 for value in agreement.tolist())


FAST = (
    "gradcam",
    "interaction_cam",
    "lafam",
    "input_x_gradient",
    "random",
    "conditional_occlusion",
    "pairwise_occlusion",
)


@holds_for(
    60,
    1000,
    name=st.sampled_from(FAST),
    batch=st.integers(0, 2),
    sides=st.tuples(SIDES, SIDES),
    spoilt=st.sampled_from([None, None, None, math.nan, math.inf]),
    kind=st.sampled_from([torch.float32, torch.float32, torch.uint8]),
)
def test_views_are_explained_by_finite_maps_or_refused(name, batch, sides, spoilt, kind):
    views = torch.rand(2, batch, 3, *sides, generator=torch.Generator().manual_seed(0)).to(kind)
    if spoilt is not None and batch and kind.is_floating_point:
        views[0, 0, 0, 0, 0] = spoilt
    try:
        explanation = EXPLAINERS[name](MODEL)(*views)
    except (UserError, NonFiniteEmbedding) as error:
        one_line(error)
        return
    assert spoilt is None or not kind.is_floating_point
    for heatmap in (explanation.map1, explanation.map2):
        assert heatmap is None or (len(heatmap) == batch and torch.isfinite(heatmap).all())
    assert explanation.score.shape == (batch,)


@holds_for(40, 1000, given=st.sampled_from(["text", None, 3, [], [[1, 2]], [["a"]], [[[[1.0]]]], object()]))
def test_maps_of_any_kind_are_scored_or_refused(given):
    views = torch.rand(2, 3, 16, 16)
    try:
        found = twinsight.evaluate(MODEL, *views, maps=(given, None), metrics=["average_drop"])
    except UserError as error:
        one_line(error)
        return
    assert found["sad"].shape == found["score"].shape
