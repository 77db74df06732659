"""How alike two maps are, whatever their units."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two maps of one shape, in [-1, 1]; ties share their mean rank.

    NaN where either is constant or not finite.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 100.0]))
    1.0
    """
    one, other = _values(first), _values(second)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan")  # which would rank as the largest
    return _correlation(rankdata(one), rankdata(other))


def pearson(first: Tensor, second: Tensor) -> float:
    """Linear correlation of two maps of one shape, in [-1, 1]; NaN where either is constant or not finite.

    >>> pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 3.0, 1.0]))
    -1.0
    """
    return _correlation(_values(first), _values(second))


def _values(heatmap: Tensor) -> NDArray[np.float64]:
    return heatmap.detach().cpu().to(torch.float64).numpy().ravel()


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if not all(np.isfinite(values).all() and np.ptp(values) > 0 for values in (one, other)):
        return float("nan")
    # Scaled first: raw gradients may be so small that their squares vanish.
    one, other = ((values - values.mean()) / np.ptp(values) for values in (one, other))
    return float(np.clip((one @ other) / np.sqrt((one @ one) * (other @ other)), -1, 1))
