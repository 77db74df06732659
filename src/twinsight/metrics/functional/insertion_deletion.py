"""Insertion and deletion for pairs: SI, SD, CI, CD (paper, section 4; SPEC section 3)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinsight.engine import (
    PairBank,
    check_baseline,
    check_views,
    degenerate,
    seeds_from_pixels,
)
from twinsight.engine.baselines import Baseline
from twinsight.errors import UserError
from twinsight.metrics.functional.checks import at_image_size, bank_for
from twinsight.metrics.functional.paths import Paths, curves_along, regions
from twinsight.models import TwoViewModel, evaluating
from twinsight.models.two_view import Normalization
from twinsight.protocol import resolve

PROTOCOL_OPTIONS: dict[str, dict[str, Any]] = {"deletion_baseline": {"paper": "input_zero", "sound": "blur"}}
COLUMNS = ("si", "sd", "ci", "cd")
"""Fields that have a class in ``METRICS``."""
_SAME = 1e-5
"""Ends of a curve that differ by less, relative to its largest magnitude, are the same: scores agree to this across
chunk sizes."""


@dataclass(eq=False)
class InsertionDeletion:
    """Areas under the curves of a batch, in units of the similarity.

    Attributes:
        si, sd: ``(B,)`` simultaneous insertion (higher is better) and deletion (lower is better): each view perturbed
            by its own map. NaN where there is only one map.
        ci1, cd1: ``(B,)`` conditional: view 1 perturbed, view 2 whole.
        ci2, cd2: ``(B,)`` view 2 perturbed, view 1 whole. NaN where there is only one map.
        ci, cd: ``(B,)`` mean of both directions; the one there is where there is only one map.
        si_normalized, sd_normalized, ci1_normalized, ci2_normalized, cd1_normalized, cd2_normalized: ``(B,)`` the area
            between the curve and the score of the blank, in units of what the whole view scores above it:
            ``(A - c_blank) / (c_whole - c_blank)``, where c_blank is the first point of an insertion curve and the last
            of a deletion curve. 0.5 for a straight line; may leave [0, 1]. NaN where both ends are the same.
        ci_normalized, cd_normalized: ``(B,)`` mean of both directions, NaN where one of them is; the one there is where
            there is only one map.
        srg1, srg2, srg: ``(B,)`` symmetric relevance gain of either direction and their mean, as for ci: how much more
            area is left under deletion with the least relevant first than with the most relevant first. Higher is
            better, 0 for a ranking by chance. The former is the insertion curve read backwards, so that
            ``srg = ci - cd``. NaN where insertion and deletion have different baselines (paper).
        srg_simultaneous: ``(B,)`` the same of both views at once: ``si - sd``.
        curves: for si, sd, ci1, ci2, cd1, cd2 the similarities ``(B, T + 1)`` along the path.
        degenerate1, degenerate2: ``(B,)`` True where a map is constant or not finite, so that its ranking is chance.
        approximate: ``(B,)`` True where not every point of the curves was computed (``tolerance``).
        points_computed: ``(B,)`` share of the points that were.
        error_bound: ``(B,)`` of the areas, for curves that bend no faster between computed points than at them; 0 where
            all were computed.
    """

    si: Tensor
    sd: Tensor
    ci1: Tensor
    ci2: Tensor
    ci: Tensor
    cd1: Tensor
    cd2: Tensor
    cd: Tensor
    si_normalized: Tensor
    sd_normalized: Tensor
    ci1_normalized: Tensor
    ci2_normalized: Tensor
    ci_normalized: Tensor
    cd1_normalized: Tensor
    cd2_normalized: Tensor
    cd_normalized: Tensor
    srg1: Tensor
    srg2: Tensor
    srg: Tensor
    srg_simultaneous: Tensor
    curves: dict[str, Tensor]
    degenerate1: Tensor
    degenerate2: Tensor
    approximate: Tensor
    points_computed: Tensor
    error_bound: Tensor


def insertion_deletion(
    model: TwoViewModel,
    view1: Tensor,
    view2: Tensor,
    map1: Tensor,
    map2: Tensor | None,
    points: int = 224,
    step: int | None = None,
    protocol: str = "sound",
    bank: PairBank | None = None,
    insertion_baseline: Baseline = "blur",
    deletion_baseline: Baseline | None = None,
    seeds: Tensor | None = None,
    granularity: int = 1,
    tolerance: float | None = None,
) -> InsertionDeletion:
    """Similarity along the path from the baseline to the views (insertion) and back (deletion), most important first.

    Pixels are ranked by the map, largest first; point ``t`` of ``T = ceil(HW / step)`` has the ``t * step`` first
    pixels revealed or erased. The area is the trapezoid sum over T intervals. Square regions instead of pixels
    (``granularity``) put coarse and fine maps on the same footing: scattered pixels destroy a view faster than coherent
    ones, whatever they show.

    Args:
        model: the network whose similarity is measured.
        view1, view2: ``(B, C, H, W)`` in the model's input space.
        map1, map2: ``(B, h, w)``, brought to image size bilinearly where they are not; ``map2`` may be None.
        points: intervals per curve when ``step`` is None: ``step = ceil(HW / points)`` (paper: 224).
        step: pixels, or regions, per interval.
        protocol: ``"sound"`` or ``"paper"``.
        bank: embeddings to share.
        insertion_baseline: what insertion starts from, see :func:`twinsight.engine.baselines.baseline_image`; blur in
            both protocols.
        deletion_baseline: what deletion ends in; None is ``"blur"`` (sound) or ``"input_zero"`` (paper, under which
            both views end as the same blank and the similarity returns to 1).
        seeds: ``(B,)`` of the pairs, for ties and a noise baseline; None derives them from the pixels of view 1.
        granularity: side in pixels of the square regions that are revealed or erased whole; 1 is single pixels (paper).
            Regions tile the view from its upper left corner, smaller at the far borders where the side does not divide,
            and are ranked by the mean of the map over them. ``points`` and ``step`` count regions then.
        tolerance: None computes every point. Else an approximation: points are computed where curves bend, until the
            bound on the error of every area, in units of the similarity, is below it
            (:func:`twinsight.metrics.functional.adaptive.adaptive_curves`). Of rough curves (the demo network's at 64
            pixels) 0.002 takes a third of the points and 0.0034 a fifth, of smooth ones far fewer.

    Raises:
        UserError: shapes, points, step, granularity, tolerance, baseline or protocol out of range.

    Cost: 4 (T - 1) forwards and the distinct ends of the paths, 4 (sound) or 5 (paper): 892 + 5 a pair at 224 points.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> result = insertion_deletion(small_two_view(), view1, view2, view1.mean(1), view2.mean(1), points=8)
    >>> result.ci.shape, result.curves["si"].shape
    (torch.Size([1]), torch.Size([1, 9]))
    """
    options = resolve(protocol, PROTOCOL_OPTIONS, {"deletion_baseline": deletion_baseline})
    baselines = (insertion_baseline, options["deletion_baseline"])
    for baseline in baselines:
        check_baseline(baseline)
    check_views(model, view1, view2, seeds)
    view1, view2 = view1.contiguous(), view2.contiguous()  # means and blurs round by the layout
    size = (view1.shape[-2], view1.shape[-1])
    step = _step(size, points, step, granularity)
    _check_tolerance(tolerance)
    steps = math.ceil(regions(size, granularity) / step)
    map1 = at_image_size(map1, view1, "map1")
    map2 = None if map2 is None else at_image_size(map2, view2, "map2")
    seeds = seeds_from_pixels(view1) if seeds is None else seeds
    bank = bank_for(model, bank)
    rows, computed, bounds = [], [], []
    with torch.no_grad(), evaluating(model):
        for index, seed in enumerate(seeds.tolist()):
            first = Paths(bank, view1[index], map1[index], 1, seed, step, steps, granularity, baselines)
            second = None
            if map2 is not None:
                second = Paths(bank, view2[index], map2[index], 2, seed, step, steps, granularity, baselines)
            ends = first.whole, bank.embedding(view2[index], 2)
            found = [
                curves_along(model, kind, first, second, ends, steps, tolerance) for kind in ("insertion", "deletion")
            ]
            rows.append({name: curve for curves, _, _ in found for name, curve in curves.items()})
            computed.append(sum(count for _, count, _ in found) / (2 * (steps + 1)))
            bounds.append(max(bound for _, _, bound in found))
    curves = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    # Pair by pair: a device may add up in another order when there are more.
    areas = {name: torch.stack([area(row[name]) for row in rows]) for name in rows[0]}
    normalized = {
        f"{name}_normalized": torch.stack([_normalized(row[name], blank=-1 if name[1] == "d" else 0) for row in rows])
        for name in rows[0]
    }
    one_blank = len({_plain_name(baseline, model.normalization) for baseline in baselines}) == 1
    gains = {
        gain: areas[inserted] - areas[deleted] if one_blank else torch.full_like(areas[inserted], torch.nan)
        for gain, inserted, deleted in (
            ("srg1", "ci1", "cd1"),
            ("srg2", "ci2", "cd2"),
            ("srg_simultaneous", "si", "sd"),
        )
    }

    def both(values: dict[str, Tensor], first: str, second: str) -> Tensor:
        return values[first] if map2 is None else (values[first] + values[second]) / 2

    flags = [
        torch.tensor([maps is not None and degenerate(maps[index]) for index in range(len(view1))])
        for maps in (map1, map2)
    ]
    return InsertionDeletion(
        **areas,
        ci=both(areas, "ci1", "ci2"),
        cd=both(areas, "cd1", "cd2"),
        **normalized,
        ci_normalized=both(normalized, "ci1_normalized", "ci2_normalized"),
        cd_normalized=both(normalized, "cd1_normalized", "cd2_normalized"),
        **gains,
        srg=both(gains, "srg1", "srg2"),
        curves=curves,
        degenerate1=flags[0],
        degenerate2=flags[1],
        approximate=torch.tensor(computed) < 1,
        points_computed=torch.tensor(computed),
        error_bound=torch.tensor(bounds),
    )


def check_options(size: tuple[int, int], options: Mapping[str, Any]) -> None:
    """Refuse, before any view is encoded, options of :func:`insertion_deletion` that views of ``size`` cannot have.

    Raises:
        UserError: points, step, granularity, tolerance or a baseline out of range.
    """
    _check_tolerance(options.get("tolerance"))
    _step(size, options.get("points", 224), options.get("step"), options.get("granularity", 1))
    for name in ("insertion_baseline", "deletion_baseline"):
        if options.get(name) is not None:
            check_baseline(options[name])


def expected_forwards(size: tuple[int, int], options: Mapping[str, Any], maps: int, explanation: int) -> int:
    """Image forwards that a pair takes beside its explanation: the interior of two paths for each map.

    >>> expected_forwards((224, 224), {}, 2, 0)
    892
    """
    granularity = options.get("granularity", 1)
    length = _step(size, options.get("points", 224), options.get("step"), granularity)
    return 2 * maps * (math.ceil(regions(size, granularity) / length) - 1)


insertion_deletion.protocol_options = PROTOCOL_OPTIONS  # type: ignore[attr-defined]
insertion_deletion.check_options = check_options  # type: ignore[attr-defined]
insertion_deletion.columns = COLUMNS  # type: ignore[attr-defined]
insertion_deletion.forwards = expected_forwards  # type: ignore[attr-defined]


def area(curve: Tensor) -> Tensor:
    """Trapezoid area under curves ``(..., T + 1)`` over the unit interval.

    >>> area(torch.tensor([0.0, 1.0, 1.0]))
    tensor(0.7500)
    """
    return _area(curve).to(curve)


def _area(curve: Tensor) -> Tensor:
    return torch.trapezoid(curve.cpu().double(), dim=-1).div(curve.shape[-1] - 1)


def _normalized(curve: Tensor, blank: int) -> Tensor:
    """Scalar area of ``(T + 1,)`` above the score of the blank view at place ``blank`` (0 or -1), in units of what the
    whole view at the other end scores above it; NaN where the two score the same."""
    ends = curve.cpu().double()[[blank, -1 - blank]]
    rise = ends[1] - ends[0]
    if rise.abs() <= _SAME * curve.abs().max():
        return torch.full_like(curve[0], torch.nan)
    return ((_area(curve) - ends[0]) / rise).to(curve)


def _plain_name(baseline: Baseline, normalization: Normalization | None) -> Baseline:
    """One name for baselines that are the same image."""
    black = baseline == "black" or (baseline == "input_zero" and normalization is None)
    return 0.0 if black else baseline


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 < tolerance < 1:
        raise UserError(f"`tolerance` must be between 0 and 1, or null for every point, got {tolerance}")


def _step(size: tuple[int, int], points: int, step: int | None, granularity: int) -> int:
    if points < 1:
        raise UserError(f"`points` must be at least 1, got {points}")
    if not isinstance(granularity, int) or not 1 <= granularity <= max(size):
        raise UserError(f"`granularity` must be between 1 and the {max(size)} pixels of a side, got {granularity}")
    count = regions(size, granularity)
    if step is None:
        return math.ceil(count / points)
    if not 1 <= step <= count:
        kind = "pixels" if granularity == 1 else "regions"
        raise UserError(f"`step` must be between 1 and the {count} {kind} of a view, got {step}")
    return step
