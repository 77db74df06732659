"""How means and signs are drawn again: the mathematics of ``report.statistics``, where nothing is missing."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Ends = tuple[float, float, str]
"""Low, high, and by which method."""


def bca(values: Array, level: float, resamples: int, seed: int) -> list[Ends]:
    """Ends of the intervals of K means ``(n, K)``, none of which is constant.

    The numbers of the pairs are resampled instead of their values: counting how often each was drawn turns the means
    of all columns into one matrix product.
    """
    n = len(values)
    scaled, powers = _scaled(values)

    def means(drawn: NDArray[np.int64], axis: int) -> Array:
        rows = drawn.reshape(-1, drawn.shape[-1])
        shifted = rows + n * np.arange(len(rows))[:, None]
        counts = np.bincount(shifted.ravel(), minlength=n * len(rows)).reshape(len(rows), n)
        # Contiguous, since sums along an axis round by how it lies in memory, and that by the number of columns.
        found = np.ascontiguousarray(_even(counts.astype(np.float64) @ scaled / drawn.shape[-1]).T)
        return found if drawn.ndim > 1 else found[:, 0]

    result = _quiet_bootstrap(np.arange(n), means, level, resamples, seed)
    low, high = (np.asarray(end) for end in result.confidence_interval)
    tail = (1 - level) / 2
    # No correction can be computed where no, or every, resample lies below the mean: then the plain percentiles.
    plain = np.quantile(result.bootstrap_distribution, [tail, 1 - tail], axis=-1)
    failed = ~(np.isfinite(low) & np.isfinite(high))
    low, high = np.where(failed, plain[0], low) * powers, np.where(failed, plain[1], high) * powers
    methods = np.where(failed, "percentile", "BCa")
    return list(zip(low.tolist(), high.tolist(), methods.tolist(), strict=True))


def sign_flip(values: Array, resamples: int, seed: int) -> list[float]:
    """P-values of K columns ``(n, K)`` of differences; the signs are flipped on the numbers of the pairs."""
    scaled, _ = _scaled(values)
    result = stats.permutation_test(
        (np.arange(1.0, len(values) + 1),),
        lambda signed, axis: _even(np.sign(signed) @ scaled / len(values)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_batch(4 * len(values)),
        random_state=np.random.default_rng(seed),
    )
    return np.atleast_1d(result.pvalue).tolist()


def two_level(values: Array, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean of ``(N, S)``; seeds are drawn outside, pairs inside."""
    draw = np.random.default_rng(seed)
    pairs, seeds = values.shape
    present = np.isfinite(values)
    filled = np.where(present, values, 0)
    means = []
    batch = _batch(pairs)
    for start in range(0, resamples, batch):
        count = min(batch, resamples - start)
        of_seeds = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
        of_pairs = draw.multinomial(pairs, np.full(pairs, 1 / pairs), size=count)
        total = ((of_pairs @ filled) * of_seeds).sum(axis=1)
        number = ((of_pairs @ present) * of_seeds).sum(axis=1)
        means.append(np.divide(total, number, out=np.full(count, np.nan), where=number > 0))
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def wilson(share: float, n: int, level: float) -> tuple[float, float]:
    """Ends of Wilson's score interval of a share of n trials.

    >>> [round(end, 4) for end in wilson(0.5, 10, 0.95)]
    [0.2366, 0.7634]
    """
    z = stats.norm.ppf((1 + level) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding should not take the ends out of the range that a share has, nor away from a mean of 0 or 1.
    return (0.0 if share == 0 else float(centre - half)), (1.0 if share == 1 else float(centre + half))


def _quiet_bootstrap(
    data: NDArray[np.int64], statistic: Callable[..., Array], level: float, resamples: int, seed: int
) -> Any:
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):  # degenerate ones: see `bca`
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(
            (data,),
            statistic,
            method="BCa",
            vectorized=True,
            confidence_level=level,
            n_resamples=resamples,
            batch=_batch(len(data)),
            random_state=np.random.default_rng(seed),
        )


def _scaled(values: Array) -> tuple[Array, Array]:
    """Columns divided, exactly, by a power of two near their largest magnitude, and those powers."""
    powers = 2.0 ** np.frexp(np.abs(values).max(axis=0))[1]
    return values / powers, powers


def _even(means: Array) -> Array:
    """Rounded where sums of the same numbers in another order may differ, so that ties are ties."""
    return np.round(means, 12)


def _batch(n: int) -> int:
    """Resamples that are held at once: about 32 MB of indices."""
    return max(1, 2**22 // n)
