"""Curves of which only the points are computed where they bend."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

POINTS_AT_A_TIME = 8
"""Points per round; a constant, so that which points are computed depends on the pair alone."""

Curves = Mapping[str, Tensor]


def adaptive_curves(
    steps: int, tolerance: float, values: Callable[[Sequence[int]], Curves]
) -> tuple[dict[str, Tensor], int, float]:
    """Curves over ``0 ... steps``, computed where they bend and straight between.

    Points lie densest at both ends at first. Between neighbours a and b the area of the trapezoid is off by at most
    ``(b - a)^3 / 12`` times the second derivative, taken as the larger of the second divided differences at a and b.
    Where these bounds are largest the middle is computed too, until they add up to ``tolerance`` for every curve. The
    bound holds for curves that bend no faster between two points than at them.

    Args:
        steps: number of intervals T.
        tolerance: largest error of an area over the unit interval, in units of the curve.
        values: of each curve at ascending places in ``0 ... steps``, ``(n,)``.

    Returns:
        curves ``(steps + 1,)``, linear where nothing was computed; how many points were computed; the bound reached,
        0 where all were.

    >>> straight = lambda places: {"line": torch.tensor([place / 100 for place in places])}
    >>> curves, computed, bound = adaptive_curves(100, 1e-3, straight)
    >>> torch.allclose(curves["line"], torch.arange(101) / 100), computed, bound < 1e-6
    (True, 10, True)
    """
    new = _first_places(steps)
    known: dict[str, dict[int, Tensor]] = {}
    while True:
        for name, found in values(new).items():
            known.setdefault(name, {}).update(zip(new, found, strict=True))
        places = sorted(next(iter(known.values())))
        at = torch.tensor(places, dtype=torch.float64)
        curves = {name: torch.stack([points[place] for place in places]) for name, points in known.items()}
        bounds = torch.stack([_bounds(at, curve.cpu().double()) for curve in curves.values()]) / steps
        bound = float(bounds.nan_to_num(nan=math.inf).sum(dim=1).max())
        if bound <= tolerance or len(places) == steps + 1:
            break
        worst = bounds.nan_to_num(nan=math.inf).amax(dim=0)
        gaps = at.diff()
        worst[gaps < 2] = -1
        chosen = worst.argsort(descending=True, stable=True)[:POINTS_AT_A_TIME]
        new = sorted((places[i] + places[i + 1]) // 2 for i in chosen.tolist() if worst[i] >= 0)
    return {name: _straight(at, curve, steps) for name, curve in curves.items()}, len(places), bound


def _first_places(steps: int) -> list[int]:
    """Both ends and up to ``POINTS_AT_A_TIME`` places between, densest towards the ends (Chebyshev's)."""
    angles = torch.linspace(0, math.pi, POINTS_AT_A_TIME + 2, dtype=torch.float64)
    return sorted(set(((1 - angles.cos()) / 2 * steps).round().long().tolist()))


def _bounds(at: Tensor, curve: Tensor) -> Tensor:
    """Bound of each interval's error; 0 where there is nothing between its ends."""
    gaps = at.diff()
    if len(gaps) == 1:
        return torch.where(gaps > 1, math.inf, 0.0)
    bends = 2 * (curve.diff() / gaps).diff() / (gaps[1:] + gaps[:-1])
    bends = torch.cat([bends[:1], bends, bends[-1:]]).abs()
    return torch.where(gaps > 1, torch.maximum(bends[:-1], bends[1:]) * gaps**3 / 12, 0.0)


def _straight(at: Tensor, curve: Tensor, steps: int) -> Tensor:
    """``(steps + 1,)`` values of the polygon through ``(n,)`` points."""
    every = torch.arange(steps + 1, dtype=torch.float64)
    right = torch.searchsorted(at, every).clamp(min=1)
    left = right - 1
    share = ((every - at[left]) / (at[right] - at[left])).to(curve)
    left, right = left.to(curve.device), right.to(curve.device)
    return torch.where(share == 1, curve[right], torch.lerp(curve[left], curve[right], share))
