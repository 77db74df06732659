"""Mean insertion and deletion curves of a table's rows, with intervals over pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinsight.report.arrays import Arrays
from twinsight.report.statistics import LEVEL, intervals

CURVES = {"si": ("si",), "sd": ("sd",), "ci": ("ci1", "ci2"), "cd": ("cd1", "cd2")}
"""Curves by the column whose area they have, and the arrays that they are the mean of, where they are."""
POINTS, RESAMPLES = 57, 999


@dataclass(frozen=True)
class Curve:
    """Mean similarity along the path, and its interval at each point.

    Attributes:
        fractions: ``(P,)`` of pixels inserted or deleted.
        mean, low, high: ``(P,)``; the ends are NaN with fewer than two pairs.
        pairs: that have the curve.
    """

    fractions: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    pairs: int


def mean_curves(folders: Sequence[Path], points: int = POINTS, level: float = LEVEL) -> dict[str, Curve]:
    """Curves of the cells of one row: one cell, or one for each seed.

    Args:
        folders: of the cells.
        points: at most so many, evenly spread over the path with both ends.
        level: of the intervals, pointwise BCa bootstrap over pairs.
    """
    arrays = [Arrays(folder) for folder in folders]
    found = {}
    for name, parts in CURVES.items():
        runs = [_curves(each, parts) for each in arrays]
        indices = sorted(set().union(*runs))
        lengths = {len(curve) for run in runs for curve in run.values()}
        if not indices or len(lengths) > 1:
            continue
        (length,) = lengths
        nothing = np.full(length, np.nan)
        # (pairs, seeds, points)
        values = np.stack([[run.get(index, nothing) for run in runs] for index in indices])
        chosen = np.unique(np.linspace(0, length - 1, min(points, length)).round().astype(int))
        columns = [values[:, :, place] for place in chosen]
        ends = intervals(columns, ["mean"] * len(columns), level, RESAMPLES)
        mean, low, high = (np.array([getattr(one, end) for one in ends]) for end in ("mean", "low", "high"))
        found[name] = Curve(chosen / (length - 1), mean, low, high, pairs=max(one.n for one in ends))
    return {name: curve for name, curve in found.items() if curve.pairs}


def _curves(arrays: Arrays, parts: Sequence[str]) -> dict[int, NDArray[np.float64]]:
    """The mean of both directions by pair, the one there is where a method makes one map."""
    columns = [arrays.column(f"curve_{part}") for part in parts]
    found = {}
    for index in sorted(set().union(*columns)):
        present = [column[index] for column in columns if index in column and np.isfinite(column[index]).all()]
        if present:
            found[index] = np.stack(present).mean(axis=0, dtype=np.float64)
    return found
