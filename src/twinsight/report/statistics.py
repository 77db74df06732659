"""Intervals, paired comparisons and rank agreement of scores per pair: numbers in, numbers out.

Scores are arrays ``(N,)``, one value per pair, or ``(N, S)`` where every pair was scored under S seeds. Pairs without a
finite value are left out and counted. All randomness is seeded: the same scores always give the same numbers, whatever
else is computed beside them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from twinsight.errors import UserError, unknown
from twinsight.report.resampling import Array, Ends, bca, sign_flip, two_level, wilson

LEVEL = 0.95
RESAMPLES = 9999
"""Bootstrap and sign-flip resamples (scipy's own default): p-values are multiples of 2 / 10 000."""
SEED = 0

Kind = Literal["mean", "share"]
_KINDS = ("mean", "share")


@dataclass(frozen=True)
class Interval:
    """A mean over pairs and where it may lie.

    Attributes:
        mean: NaN without any value.
        low, high: ends of the confidence interval; NaN with fewer than two pairs.
        n: pairs that have a value.
        missing: pairs without one.
        method: ``"BCa"``, ``"percentile"``, ``"Wilson"``, ``"two-level"`` or ``"none"``.
    """

    mean: float
    low: float
    high: float
    n: int
    missing: int
    method: str


@dataclass(frozen=True)
class Comparison:
    """Two explainers on the pairs that both have.

    Attributes:
        difference: mean of first minus second, with its interval.
        p: two-sided p-value of no difference; NaN with fewer than two common pairs.
    """

    difference: Interval
    p: float


@dataclass(frozen=True)
class Agreement:
    """Whether two metrics rank explainers alike.

    Attributes:
        first, second: the metrics.
        tau: Kendall's tau-b in [-1, 1]; NaN with fewer than two explainers, or where a metric ties all of them.
        p: two-sided p-value of no association.
        n: explainers that have both metrics.
    """

    first: str
    second: str
    tau: float
    p: float
    n: int


def interval(
    values: ArrayLike, kind: Kind = "mean", level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Confidence interval of a mean over pairs.

    Args:
        values: ``(N,)`` or ``(N, S)``; NaN and infinity count as missing.
        kind: ``"mean"``: bias-corrected and accelerated bootstrap (BCa; Efron 1987), through scipy; the value itself
            where all values are equal. ``"share"``: Wilson's score interval (1927), for values in [0, 1].
        level: confidence, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    A share takes every pair as one trial. That is exact for SIC, which is 0 or 1. CIC is the mean of two directions,
    so 0, 1/2 or 1; its directions share a pair and are not two independent trials. No variable in [0, 1] with mean p
    varies more than one that is only 0 or 1, so that Wilson's interval is at worst too wide, and unlike a bootstrap
    it does not shrink to a point when no pair increases.

    With several seeds, seeds are resampled outside and pairs inside, the same draw of pairs for every drawn seed,
    since seeds share their photos (Owen 2007); the interval is the percentile one. It is too narrow for very few seeds.
    Where all values are equal, and for shares of zero or one, it is that of one seed.

    Raises:
        UserError: unknown kind, level or resamples out of range, values of another shape, a share outside [0, 1].

    >>> found = interval([0.2, 0.4, 0.6, float("nan")], resamples=999)
    >>> round(found.mean, 3), found.n, found.missing, found.low < 0.4 < found.high
    (0.4, 3, 1, True)
    >>> interval([1, 1, 1, 1], "share").high
    1.0
    """
    return intervals([values], [kind], level, resamples, seed)[0]


def intervals(
    columns: Sequence[ArrayLike],
    kinds: Sequence[Kind],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[Interval]:
    """:func:`interval` of many columns over the same N pairs, much faster than one by one: they share resamples.

    >>> [found.method for found in intervals([[1.0, 2.0, 3.0], [0, 1, 1]], ["mean", "share"], resamples=99)]
    ['BCa', 'Wilson']
    """
    if not 0 < level < 1:
        raise UserError(f"`level` must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise UserError(f"`resamples` must be at least 1, got {resamples}")
    arrays = [_checked(column) for column in columns]
    ends = [_known(values, kind, level, resamples, seed) for values, kind in zip(arrays, kinds, strict=True)]
    smooth = [place for place, found in enumerate(ends) if found is None]
    for places, together in _alike([arrays[place] for place in smooth]):
        for place, found in zip(places, bca(together, level, resamples, seed), strict=True):
            ends[smooth[place]] = found
    return [_interval(values, found) for values, found in zip(arrays, ends, strict=True) if found is not None]


def paired(
    values_a: ArrayLike, values_b: ArrayLike, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> Comparison:
    """Compare two explainers pair by pair.

    The p-value comes from the sign-flip permutation test of the mean difference (Fisher 1935), through scipy: if the
    two explainers were interchangeable, each pair's difference would be as likely with the other sign. Unlike
    Wilcoxon's test it asks about the mean, which is what the tables show, and differences of zero and ties, of which
    the 0/1 columns are full, need no convention: a zero stays zero under either sign. Exact where the ``2^n`` flips
    are no more than ``resamples``, else from random flips.

    Args:
        values_a, values_b: ``(N,)`` or ``(N, S)`` of the same pairs; those that one of the two lacks are left out.
        level, resamples, seed: as for :func:`interval`. With several seeds the test flips a pair's mean over seeds.

    Raises:
        UserError: as for :func:`interval`; the two differ in shape.

    >>> found = paired([3.0, 4.0, 6.0], [2.0, 2.0, 2.0])  # 1 of 8 flips is as large, doubled
    >>> round(found.difference.mean, 3), found.p
    (2.333, 0.25)
    """
    first, second = _checked(values_a), _checked(values_b)
    return comparisons([difference(first, second)], level, resamples, seed)[0]


def comparisons(
    differences: Sequence[ArrayLike], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Comparison]:
    """:func:`paired` for many differences over the same N pairs at once."""
    found = intervals(differences, ["mean"] * len(differences), level, resamples, seed)
    p = [math.nan] * len(found)
    means = [_mean_over_seeds(_checked(one)) for one in differences]
    enough = [place for place, one in enumerate(found) if one.n > 1]
    for places, together in _alike([means[place] for place in enough]):
        for place, value in zip(places, sign_flip(together, resamples, seed), strict=True):
            p[enough[place]] = value
    return [Comparison(one, value) for one, value in zip(found, p, strict=True)]


def difference(values_a: ArrayLike, values_b: ArrayLike) -> Array:
    """First minus second, ``(N, S)``; NaN where one of the two is missing or infinite.

    Raises:
        UserError: the two differ in shape.
    """
    first, second = _checked(values_a), _checked(values_b)
    if first.shape != second.shape:
        raise UserError(f"a comparison needs the same pairs and seeds, got {first.shape} and {second.shape}")
    common = np.isfinite(first) & np.isfinite(second)
    return np.subtract(first, second, out=np.full(first.shape, np.nan), where=common)


def gain(
    values: ArrayLike,
    control: ArrayLike,
    higher_is_better: bool,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """How much better than its control an explainer does on the same pairs; positive is better for every metric.

    Arguments as for :func:`paired`; ``higher_is_better`` of the metric.

    >>> round(gain([0.2, 0.3], [0.5, 0.5], higher_is_better=False, resamples=99).mean, 3)
    0.25
    """
    sign = 1 if higher_is_better else -1
    return interval(sign * difference(values, control), "mean", level, resamples, seed)


def holm(p_values: ArrayLike) -> Array:
    """P-values corrected for testing all of them at once (Holm 1979); NaN is no test and stays NaN.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may come out below one before it, or
    above 1.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected


def rank_agreement(means: Mapping[str, ArrayLike], higher_is_better: Mapping[str, bool]) -> list[Agreement]:
    """Kendall's tau-b between the rankings of the same explainers by every two metrics, through scipy.

    Args:
        means: ``(E,)`` mean of each explainer, by metric; NaN where an explainer has none.
        higher_is_better: of each metric; with it, tau is +1 where both call the same explainers good.

    >>> found = rank_agreement({"si": [0.1, 0.2, 0.3], "sd": [0.3, 0.2, 0.1]}, {"si": True, "sd": False})
    >>> found[0].tau
    1.0
    """
    oriented = {
        name: np.asarray(values, dtype=np.float64) * (1 if higher_is_better[name] else -1)
        for name, values in means.items()
    }
    names, found = list(oriented), []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            both = np.isfinite(oriented[first]) & np.isfinite(oriented[second])
            tau = p = math.nan
            if both.sum() > 1:
                result = stats.kendalltau(oriented[first][both], oriented[second][both])
                tau, p = float(result.statistic), float(result.pvalue)
            found.append(Agreement(first, second, tau, p, int(both.sum())))
    return found


def _checked(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise UserError(f"scores must be (N,) or (N, S), got {array.shape}")
    return array


def _known(values: Array, kind: Kind, level: float, resamples: int, seed: int) -> Ends | None:
    """Ends of an interval for which no shared bootstrap is needed, else None."""
    if kind not in _KINDS:
        raise unknown("`kind`", kind, _KINDS)
    present = values[np.isfinite(values)]
    n = int(np.isfinite(values).any(axis=1).sum())
    if kind == "share" and n and not 0 <= present.min() <= present.max() <= 1:
        raise UserError(f"a share lies in [0, 1], got {present.min():g} to {present.max():g}: use kind='mean'")
    if n < 2:
        return math.nan, math.nan, "none"
    equal = present.min() == present.max()
    if kind == "share" and (equal or values.shape[1] == 1):
        return *wilson(_mean(present), n, level), "Wilson"
    if equal:
        return float(present[0]), float(present[0]), "percentile"
    return (*two_level(values, level, resamples, seed), "two-level") if values.shape[1] > 1 else None


def _interval(values: Array, ends: Ends) -> Interval:
    present = np.isfinite(values)
    n = int(present.any(axis=1).sum())
    return Interval(_mean(values[present]) if n else math.nan, ends[0], ends[1], n, len(values) - n, ends[2])


def _mean(present: Array) -> float:
    """Exactly summed, so that neither the order of pairs nor other columns show in the last digit."""
    return math.fsum(present) / len(present)


def _mean_over_seeds(values: Array) -> Array:
    """``(N, 1)``, NaN for pairs without any value."""
    present = np.isfinite(values)
    total = np.where(present, values, 0).sum(axis=1)
    count = present.sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)[:, None]


def _alike(columns: Sequence[Array]) -> Iterator[tuple[list[int], Array]]:
    """Columns ``(N, 1)`` grouped by which pairs they have: their places, and the values they have, ``(n, K)``."""
    groups: dict[bytes, list[int]] = {}
    for place, column in enumerate(columns):
        groups.setdefault(np.isfinite(column).tobytes(), []).append(place)
    for places in groups.values():
        present = np.isfinite(columns[places[0]][:, 0])
        yield places, np.concatenate([columns[place] for place in places], axis=1)[present]
