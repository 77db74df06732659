"""The mathematics of the metrics where the numbers can be written down by hand.

The network averages the pixels of a view, and the score of two averages is their dot product: with views of one colour
a view that is revealed to a fraction ``f`` scores ``f`` times the whole.
"""

import math

import pytest
import torch
from torch import nn

from toy import tiny_maps, tiny_model, tiny_pair
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.metrics.functional import area, average_drop, insertion_deletion
from twinsight.models import TwoViewModel

A, B = 0.5, 0.25  # colours of the two views
BASE = 3 * A * B  # their score: three channels
SIDE = 4
RAMP = torch.arange(16.0).view(1, SIDE, SIDE)  # a map without ties
BLACK = {"insertion_baseline": "black", "deletion_baseline": "black"}
AREAS = ("si", "sd", "ci1", "ci2", "ci", "cd1", "cd2", "cd")
DROPS = ("sad", "cad1", "cad2", "cad", "sic", "cic1", "cic2", "cic")


@pytest.fixture
def model():
    """Embedding: mean colour. Similarity: dot product."""
    identity = nn.Conv2d(3, 3, 1, bias=False)
    identity.weight.data = torch.eye(3).view(3, 3, 1, 1)
    return TwoViewModel(identity, similarity="dot", input_size=SIDE).eval().requires_grad_(False)


def colour(value):
    return torch.full((1, 3, SIDE, SIDE), value)


def values(result, names):
    return {name: getattr(result, name).item() for name in names}


def test_an_area_is_the_trapezoid_sum_over_equal_intervals():
    assert area(torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])).tolist() == [0.75, 1.0]
    assert area(torch.tensor([0.25, 0.75])).item() == 0.5


def test_views_of_one_colour_are_revealed_along_a_straight_line(model):
    """f = 0, 1/4, 1/2, 3/4, 1: the mean of f is 1/2, the trapezoid sum of f squared 11/32."""
    result = insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, step=4, **BLACK)
    line = [0, BASE / 4, BASE / 2, BASE * 3 / 4, BASE]
    for name, expected in {
        **dict.fromkeys(("ci1", "ci2"), line),
        **dict.fromkeys(("cd1", "cd2"), line[::-1]),
        "si": [score * score / BASE for score in line],
        "sd": [score * score / BASE for score in line[::-1]],
    }.items():
        assert result.curves[name][0].tolist() == pytest.approx(expected, abs=1e-6)
    assert values(result, AREAS) == pytest.approx(
        {
            **dict.fromkeys(("ci1", "ci2", "ci", "cd1", "cd2", "cd"), BASE / 2),
            **dict.fromkeys(("si", "sd"), BASE * 11 / 32),
        },
        abs=1e-6,
    )


def test_the_last_step_is_short_where_the_step_does_not_divide(model):
    """Steps of 5 of 16 pixels: f = 0, 5/16, 10/16, 15/16, 1."""
    result = insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, step=5, **BLACK)
    assert result.curves["ci1"][0].tolist() == pytest.approx([BASE * k / 16 for k in (0, 5, 10, 15, 16)], abs=1e-6)
    assert result.ci1.item() == pytest.approx(BASE * (5 + 10 + 15 + 8) / 16 / 4, abs=1e-6)
    assert result.cd1.item() == pytest.approx(BASE * (8 + 11 + 6 + 1) / 16 / 4, abs=1e-6)


@pytest.mark.parametrize(("points", "intervals"), [(1, 1), (3, 3), (4, 4), (5, 4), (16, 16), (224, 16)])
def test_points_are_rounded_so_that_a_step_is_whole_pixels(model, points, intervals):
    """5 points of 16 pixels are steps of ceil(16 / 5) = 4, which makes 4 intervals."""
    result = insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, points=points, **BLACK)
    assert result.curves["si"].shape == (1, intervals + 1)


def test_a_step_of_all_pixels_leaves_only_the_two_ends(model):
    result = insertion_deletion(model, colour(A), colour(B), RAMP, RAMP, step=16, **BLACK)
    assert values(result, AREAS) == pytest.approx(dict.fromkeys(AREAS, BASE / 2), abs=1e-6)


def test_the_map_decides_what_is_revealed_first(model):
    """All of view 1 is in its first row: with it first the score is there after one step, else only at the end."""
    view1 = torch.zeros(1, 3, SIDE, SIDE)
    view1[:, :, 0] = 4 * A
    for heatmap, inserted, deleted in ((-RAMP, [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]), (RAMP, [0] * 4 + [1], [1] * 4 + [0])):
        result = insertion_deletion(model, view1, colour(B), heatmap, RAMP, step=4, **BLACK)
        assert result.curves["ci1"][0].tolist() == pytest.approx([BASE * score for score in inserted], abs=1e-6)
        assert result.curves["cd1"][0].tolist() == pytest.approx([BASE * score for score in deleted], abs=1e-6)


def test_baselines_are_where_the_paths_start_and_end(model):
    result = insertion_deletion(
        model, colour(A), colour(B), RAMP, RAMP, step=4, insertion_baseline=1.0, deletion_baseline=0.75
    )
    assert result.curves["ci1"][0, [0, -1]].tolist() == pytest.approx([3 * 1.0 * B, BASE])
    assert result.curves["cd1"][0, [0, -1]].tolist() == pytest.approx([BASE, 3 * 0.75 * B])
    assert result.curves["si"][0, 0].item() == pytest.approx(3 * 1.0 * 1.0)


@pytest.mark.parametrize(("protocol", "end"), [("sound", BASE), ("paper", 0.0)])
def test_the_protocol_decides_what_deletion_ends_in(model, protocol, end):
    """The blur of one colour is that colour; zero is black."""
    size = (1, 3, 8, 8)
    maps = torch.arange(64.0).view(1, 8, 8)
    result = insertion_deletion(model, torch.full(size, A), torch.full(size, B), maps, maps, step=16, protocol=protocol)
    assert result.curves["cd1"][0, -1].item() == pytest.approx(end, abs=1e-6)
    assert result.curves["ci1"][0, 0].item() == pytest.approx(BASE, abs=1e-6)


def test_half_the_view_masked_is_half_the_score_lost(model):
    """The ramp scaled to [0, 1] has mean 1/2: each masked view keeps half its colour, both together a quarter."""
    result = average_drop(model, colour(A), colour(B), RAMP, RAMP, baseline="black")
    assert values(result, DROPS) == pytest.approx(
        {**dict.fromkeys(("cad1", "cad2", "cad"), 0.5), "sad": 0.75, **dict.fromkeys(("sic", "cic1", "cic2", "cic"), 0)}
    )
    assert result.sad_absolute.item() == pytest.approx(BASE * 0.75)
    assert result.cad_absolute.item() == pytest.approx(BASE * 0.5)
    assert not result.nonpositive.item()


def test_a_brighter_view_is_an_increase_and_no_drop(model):
    result = average_drop(model, colour(A), colour(B), RAMP, RAMP, baseline=1.0)
    assert values(result, DROPS) == dict.fromkeys(("sad", "cad1", "cad2", "cad"), 0.0) | dict.fromkeys(
        ("sic", "cic1", "cic2", "cic"), 1.0
    )


def test_views_that_masking_does_not_change_are_no_increase(model):
    result = average_drop(model, colour(A), colour(A), RAMP, RAMP, baseline=A)
    assert values(result, DROPS) == dict.fromkeys(DROPS, 0.0)


def test_directions_are_averaged_where_they_differ(model):
    """The map of view 2 is bright in one of sixteen pixels."""
    dot = torch.zeros(1, SIDE, SIDE)
    dot[0, 1, 2] = 1
    result = average_drop(model, colour(A), colour(B), RAMP, dot, baseline="black")
    assert values(result, ("cad1", "cad2", "cad", "sad")) == pytest.approx(
        {"cad1": 1 / 2, "cad2": 15 / 16, "cad": 23 / 32, "sad": 31 / 32}
    )
    curves = insertion_deletion(model, colour(A), 2 * colour(B), RAMP, dot, step=4, **BLACK)
    assert curves.ci.item() == pytest.approx((curves.ci1.item() + curves.ci2.item()) / 2)


def negative_view():
    """Half the pixels 1, half -2, the mean -1/2; and a map that keeps the negative half."""
    view = torch.ones(1, 3, SIDE, SIDE)
    view[:, :, :2] = -2
    return view, (view[:, 0] < 0).float()


@pytest.mark.parametrize(("protocol", "relative"), [("sound", 1.5 / 1e-3), ("paper", -1.0)])
def test_a_negative_similarity_is_flagged(model, protocol, relative):
    """Against white it scores -3/2; without its positive half -3, a drop of 3/2."""
    view1, heatmap = negative_view()
    result = average_drop(model, view1, colour(1.0), heatmap, RAMP, protocol=protocol, baseline="black")
    assert result.nonpositive.item()
    assert result.cad1.item() == pytest.approx(relative)
    assert result.cic1.item() == 0
    assert result.cic2.item() == 1  # half of view 2 gone, and the score is nearer to zero


@pytest.mark.parametrize(("protocol", "relative"), [("sound", 3 / 1e-3), ("paper", math.inf)])
def test_a_similarity_of_zero_is_flagged(model, protocol, relative):
    view1, heatmap = negative_view()
    view1 = view1 + 0.5
    view1[:, :, :2], view1[:, :, 2:] = -2, 2
    result = average_drop(model, view1, colour(1.0), heatmap, RAMP, protocol=protocol, baseline="black")
    assert result.nonpositive.item()
    assert result.sad_absolute.item() == pytest.approx(3 * 0.5)
    assert result.cad1.item() == pytest.approx(relative)


def test_the_floor_decides_what_a_small_similarity_is_divided_by(model):
    result = average_drop(model, colour(A), colour(B), RAMP, RAMP, baseline="black", floor=1.0)
    assert result.cad1.item() == pytest.approx(BASE / 2)


def test_one_map_leaves_the_simultaneous_metrics_and_one_direction_out(model):
    curves = insertion_deletion(model, colour(A), colour(B), RAMP, None, step=4, **BLACK)
    drops = average_drop(model, colour(A), colour(B), RAMP, None, baseline="black")
    for result, missing, present in (
        (curves, ("si", "sd", "ci2", "cd2"), {"ci": "ci1", "cd": "cd1"}),
        (drops, ("sad", "sic", "cad2", "cic2", "sad_absolute"), {"cad": "cad1", "cic": "cic1"}),
    ):
        assert all(math.isnan(value) for value in values(result, missing).values())
        for mean, direction in present.items():
            assert getattr(result, mean).item() == getattr(result, direction).item()
        assert not result.degenerate2.item()
    assert curves.ci.item() == pytest.approx(BASE / 2)
    assert drops.cad.item() == pytest.approx(0.5)
    assert curves.curves["si"].isnan().all()


DEGENERATE = {
    "constant": torch.full((1, SIDE, SIDE), 0.7),
    "zero": torch.zeros(1, SIDE, SIDE),
    "NaN": torch.where(RAMP == 3, torch.nan, RAMP),
    "infinite": torch.where(RAMP == 3, torch.inf, RAMP),
    "all NaN": torch.full((1, SIDE, SIDE), torch.nan),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("view", [1, 2])
def test_a_map_that_ranks_nothing_is_flagged_and_masks_everything(model, kind, view):
    maps = (DEGENERATE[kind], RAMP) if view == 1 else (RAMP, DEGENERATE[kind])
    drops = average_drop(model, colour(A), colour(B), *maps, baseline="black")
    assert values(drops, ("sad", f"cad{view}", f"cad{3 - view}")) == pytest.approx(
        {"sad": 1, f"cad{view}": 1, f"cad{3 - view}": 0.5}
    )
    curves = insertion_deletion(model, colour(A), colour(B), *maps, step=4, **BLACK)
    assert values(curves, AREAS) == pytest.approx(
        {
            **dict.fromkeys(("ci1", "ci2", "ci", "cd1", "cd2", "cd"), BASE / 2),
            "si": BASE * 11 / 32,
            "sd": BASE * 11 / 32,
        },
        abs=1e-6,
    )
    for result in (drops, curves):
        assert (result.degenerate1.item(), result.degenerate2.item()) == (view == 1, view == 2)


def test_ties_are_drawn_from_the_seed_of_the_pair():
    model, views = tiny_model(0), tiny_pair(0, 2)
    flat = torch.zeros(2, 32, 32)
    first, again, other = (
        insertion_deletion(model, *views, flat, flat, points=16, seeds=torch.tensor(seeds)).curves["ci1"]
        for seeds in ([1, 2], [1, 2], [1, 3])
    )
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_a_batch_is_its_pairs_one_by_one_bit_for_bit():
    model, views, maps = tiny_model(0), tiny_pair(0, 3), tiny_maps(0, 3, size=(5, 7))
    for functional, names in ((insertion_deletion, AREAS), (average_drop, DROPS)):
        together = functional(model, *views, *maps)
        apart = [functional(model, *(item[index : index + 1] for item in (*views, *maps))) for index in range(3)]
        for name in names:
            assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in apart])), name


def test_the_memory_layout_of_views_and_maps_changes_nothing():
    model, views, maps = tiny_model(0), tiny_pair(0, 2), tiny_maps(0, 2, size=(5, 7))
    other_views = [view.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for view in views]
    other_maps = [heatmap.permute(1, 2, 0).contiguous().permute(2, 0, 1) for heatmap in maps]
    mean = {"insertion_baseline": "mean", "deletion_baseline": "mean"}
    for functional, names, options in (
        (insertion_deletion, AREAS, {"points": 16, **mean}),
        (average_drop, DROPS, {"baseline": "mean"}),
    ):
        expected = functional(model, *views, *maps, **options)
        found = functional(model, *other_views, *other_maps, **options)
        assert [name for name in names if not torch.equal(getattr(found, name), getattr(expected, name))] == []


def test_a_shared_bank_changes_nothing_and_encodes_nothing_twice():
    model, views, maps = tiny_model(0), tiny_pair(0, 2), tiny_maps(0, 2)
    bank = PairBank(model)
    for functional, names, options in ((insertion_deletion, AREAS, {"points": 16}), (average_drop, DROPS, {})):
        expected = functional(model, *views, *maps, **options)
        for _ in range(2):
            found = functional(model, *views, *maps, bank=bank, **options)
            assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in names)
    paths, both_views, blurs, masked = 4 * (16 - 1), 2, 2, 2
    assert bank.forwards == 2 * (paths + both_views + blurs + masked)


@pytest.mark.parametrize("functional", [insertion_deletion, average_drop])
def test_the_model_and_its_mode_are_left_as_they_were(functional):
    model = tiny_model(0).train().requires_grad_(True)
    expected = functional(tiny_model(0), *tiny_pair(0, 1), *tiny_maps(0, 1))
    found = functional(model, *(view.requires_grad_() for view in tiny_pair(0, 1)), *tiny_maps(0, 1))
    name = "si" if functional is insertion_deletion else "sad"
    assert torch.equal(getattr(found, name), getattr(expected, name))
    assert not getattr(found, name).requires_grad
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.head.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        functional(model, *tiny_pair(0, 1), *tiny_maps(0, 1))
    assert all(part.training for part in model.modules())


WRONG = {
    "map of one pair": ({"map1": RAMP[0]}, UserError, r"`map1` must be \(1, h, w\), one map per pair, got \(4, 4\)"),
    "maps of two pairs": ({"map2": RAMP.expand(2, 4, 4)}, UserError, r"`map2` must be \(1, h, w\), .* got \(2, 4, 4\)"),
    "views of two sizes": ({"view2": torch.rand(1, 3, 5, 4)}, UserError, r"one shape, got .* and \(1, 3, 5, 4\)"),
    "bytes": ({"view1": torch.zeros(1, 3, 4, 4).byte()}, UserError, "`view1` must be a float tensor"),
    "doubles": ({"view1": torch.zeros(1, 3, 4, 4).double()}, UserError, "`view1` must be float32 .*, got float64"),
    "seeds": ({"seeds": torch.tensor([1, 2])}, UserError, r"`seeds` must be \(1,\), one per pair, got \(2,\)"),
    "protocol": ({"protocol": "papers"}, UserError, "unknown protocol 'papers': did you mean 'paper'"),
    "bank": ({"bank": PairBank(tiny_model(0))}, UserError, "`bank` was made for another model"),
}
WRONG_OPTIONS = {
    "no step": (insertion_deletion, {"step": 0}, "`step` must be between 1 and the 16 pixels of a view, got 0"),
    "large step": (insertion_deletion, {"step": 17}, "`step` must be between 1 and the 16 pixels of a view, got 17"),
    "no points": (insertion_deletion, {"points": 0}, "`points` must be at least 1, got 0"),
    "start": (insertion_deletion, {"insertion_baseline": "grey"}, "`baseline` must be one of .* got 'grey'"),
    "end": (insertion_deletion, {"deletion_baseline": "grey"}, "`baseline` must be one of .* got 'grey'"),
    "mask": (average_drop, {"baseline": "grey"}, "`baseline` must be one of .* got 'grey'"),
}


@pytest.mark.parametrize("functional", [insertion_deletion, average_drop])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_refused_by_name(model, functional, what):
    change, error, message = WRONG[what]
    arguments = {"view1": colour(A), "view2": colour(B), "map1": RAMP, "map2": RAMP, **change}
    with pytest.raises(error, match=message):
        functional(model, **arguments)


@pytest.mark.parametrize("what", WRONG_OPTIONS)
def test_an_option_out_of_range_is_refused_by_name(model, what):
    functional, options, message = WRONG_OPTIONS[what]
    with pytest.raises(UserError, match=message):
        functional(model, colour(A), colour(B), RAMP, RAMP, **options)
