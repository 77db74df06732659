"""Max-sensitivity of one pair: the largest relative change of each map, averaged over the maps."""

from collections.abc import Callable

import torch
from torch import Tensor


def max_sensitivity(
    explain: Callable[[Tensor, Tensor], tuple[Tensor, ...]], view1: Tensor, view2: Tensor, noise: list[Tensor]
) -> float:
    """``explain`` gives one or two maps of two views; each of ``noise`` is added to both views, as it is."""
    clean = explain(view1, view2)
    changes: list[list[float]] = [[] for _ in clean]
    for d in noise:
        for ratios, before, after in zip(changes, clean, explain(view1 + d, view2 + d), strict=True):
            ratios.append((norm(before - after) / norm(before)).item())
    return sum(max(ratios) for ratios in changes) / len(changes)


def norm(values: Tensor) -> Tensor:
    """Frobenius."""
    return torch.sqrt((values.double() ** 2).sum())
