"""Curves and maps computed in part: close to whole ones at a fraction of the passes, and labelled."""

import math

import pytest
import torch

from toy import tiny_maps, tiny_model, tiny_pair
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.explainers import ConditionalOcclusion, ContextAgnosticOcclusion
from twinsight.metrics.functional import insertion_deletion
from twinsight.metrics.functional.adaptive import adaptive_curves

AREAS = ("si", "sd", "ci1", "ci2", "ci", "cd1", "cd2", "cd")


def over(function, steps=224):
    """A curve as ``adaptive_curves`` asks for it, and all of it."""
    asked = []

    def values(places):
        asked.extend(places)
        return {"curve": torch.tensor([function(place / steps) for place in places], dtype=torch.float64)}

    return values, values(range(steps + 1))["curve"], asked


@pytest.mark.parametrize(
    ("function", "at_most"),
    [
        (lambda x: 0.3 + 0.5 * x, 10),
        (lambda x: x**2, 18),
        (lambda x: 0.9 * math.exp(-12 * x) + 0.1, 50),
        (lambda x: 1 / (1 + math.exp(-25 * (x - 0.6))), 50),
        (lambda x: math.sqrt(x), 50),
    ],
    ids=["straight", "bent", "dropping at once", "rising late", "steep at its end"],
)
@pytest.mark.parametrize("tolerance", [2e-3, 5e-4])
def test_areas_are_within_the_bound_of_those_of_whole_curves(function, at_most, tolerance):
    values, whole, asked = over(function)
    asked.clear()
    curves, computed, bound = adaptive_curves(224, tolerance, values)
    error = abs(torch.trapezoid(curves["curve"] - whole) / 224)
    assert error <= bound <= tolerance
    assert computed == len(asked) == len(set(asked))
    assert computed <= at_most or tolerance < 2e-3
    assert curves["curve"].shape == whole.shape
    assert torch.allclose(curves["curve"][asked], whole[asked])


def test_a_curve_that_never_settles_is_computed_whole():
    draw = torch.rand(60, generator=torch.Generator().manual_seed(0)).tolist()
    values, whole, _ = over(lambda x: draw[round(59 * x)], steps=59)
    curves, computed, bound = adaptive_curves(59, 1e-9, values)
    assert (computed, bound) == (60, 0)
    assert torch.equal(curves["curve"], whole)


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 18])
def test_short_curves_are_computed_whole(steps):
    values, whole, _ = over(lambda x: x**3, steps)
    curves, computed, _ = adaptive_curves(steps, 1e-12, values)
    assert computed == steps + 1
    assert torch.allclose(curves["curve"], whole)


def test_approximate_areas_are_close_take_fewer_passes_and_say_so():
    model, views = tiny_model(0), tiny_pair(0, 3)
    maps = ConditionalOcclusion(model, window=9, stride=5)(*views).resized((32, 32))
    whole_bank, bank = PairBank(model), PairBank(model)
    whole = insertion_deletion(model, *views, *maps, bank=whole_bank)
    found = insertion_deletion(model, *views, *maps, tolerance=2e-3, bank=bank)
    for name in AREAS:
        assert (getattr(found, name) - getattr(whole, name)).abs().max() < 2e-3
    assert (found.error_bound <= 2e-3).all()
    assert bank.forwards < 0.5 * whole_bank.forwards
    assert found.approximate.all()
    assert (found.points_computed < 0.7).all()  # a curve of a random network on 1024 pixels is rough
    assert not whole.approximate.any()
    assert (whole.points_computed == 1).all()
    assert (whole.error_bound == 0).all()


def test_approximate_areas_belong_to_the_pair():
    model, views, maps = tiny_model(0), tiny_pair(0, 3), tiny_maps(0, 3)
    together = insertion_deletion(model, *views, *maps, points=100, tolerance=5e-3)
    for index in range(3):
        alone = [each[index : index + 1] for each in (*views, *maps)]
        found = insertion_deletion(model, *alone, points=100, tolerance=5e-3)
        assert torch.equal(found.si, together.si[index : index + 1])
        assert torch.equal(found.points_computed, together.points_computed[index : index + 1])


def test_one_map_has_conditional_areas_of_one_direction():
    model, views, maps = tiny_model(0), tiny_pair(0, 1), tiny_maps(0, 1)
    found = insertion_deletion(model, *views, maps[0], None, points=100, tolerance=5e-3)
    assert found.si.isnan().all()
    assert torch.equal(found.ci, found.ci1)


@pytest.mark.parametrize("tolerance", [0, -1, 1.5])
def test_a_tolerance_out_of_range_is_refused(tolerance):
    with pytest.raises(UserError, match="`tolerance` must be between 0 and 1"):
        insertion_deletion(tiny_model(0), *tiny_pair(0, 1), *tiny_maps(0, 1), tolerance=tolerance)


@pytest.mark.parametrize("kind", [ConditionalOcclusion, ContextAgnosticOcclusion])
def test_an_adaptive_map_is_that_of_every_window_where_it_matters(kind):
    model, views = tiny_model(0), tiny_pair(0, 2)
    whole_bank, bank = PairBank(model), PairBank(model)
    whole = kind(model, window=8, stride=2)(*views, bank=whole_bank)
    explainer = kind(model, window=8, stride=2, coarse=2)
    found = explainer(*views, bank=bank)
    share = found.details["windows_computed1"].mean() / 2 + found.details["windows_computed2"].mean() / 2
    assert 0.25 < share < 0.9
    assert bank.forwards == pytest.approx(4 + (whole_bank.forwards - 4) * share.item(), abs=0.1)
    for view in ("map1", "map2"):
        one, other = getattr(found, view), getattr(whole, view)
        # Chunks hold other windows beside one: equal to rounding.
        assert torch.allclose(one[:, ::2, ::2], other[:, ::2, ::2], atol=1e-5)
        exact = (one - other).abs() <= 1e-5
        for index in range(len(one)):
            assert exact[index].float().mean() >= found.details[f"windows_computed{view[-1]}"][index] - 1e-6
            known = one[index, ::2, ::2]
            assert one[index][~exact[index]].max() <= (known.min() + known.max()) / 2
    assert explainer.variant == "adaptive"
    assert explainer.identity() != kind(model, window=8, stride=2).identity()


def test_a_grid_that_is_no_coarser_is_refused():
    with pytest.raises(UserError, match="`coarse` must be at least 2"):
        ConditionalOcclusion(tiny_model(0), coarse=1)
