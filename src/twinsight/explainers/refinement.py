"""Maps on a grid of which only the part that matters is computed at full resolution."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def refined(windows: Tensor, values: Callable[[Tensor], Tensor], coarse: int) -> tuple[Tensor, int]:
    """Values on a grid, computed on every ``coarse``-th row and column, and between only above mid-range.

    What is between is interpolated linearly; where that lies above the middle of the smallest and the largest value
    computed so far, the value itself takes its place.

    Args:
        windows: ``(rows, columns, 4)``.
        values: of ``(n, 4)`` windows, ``(n,)``.

    Returns:
        ``(rows, columns)``, and how many values were computed.

    >>> grid = torch.stack(torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"), dim=-1).repeat(1, 1, 2)
    >>> found, computed = refined(grid, lambda some: some[:, 0].double(), coarse=4)
    >>> found[:, 0].tolist(), computed
    ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 42)
    """
    rows, columns = (sorted({*range(0, length, coarse), length - 1}) for length in windows.shape[:2])
    known = values(windows[rows][:, columns].flatten(0, 1)).view(len(rows), len(columns))
    across = _between(columns, windows.shape[1], known)
    found = _between(rows, windows.shape[0], across.T).T.contiguous()
    fine = torch.ones(windows.shape[:2], dtype=torch.bool)
    fine[torch.tensor(rows).unsqueeze(1), torch.tensor(columns)] = False
    fine &= (found > (known.min() + known.max()) / 2).cpu()
    if fine.any():
        found[fine.to(found.device)] = values(windows[fine])
    return found, known.numel() + int(fine.sum())


def _between(places: Sequence[int], length: int, values: Tensor) -> Tensor:
    """``(n, length)`` from values ``(n, len(places))`` at ascending places, linear between."""
    every = torch.arange(length)
    at = torch.tensor(places)
    right = torch.searchsorted(at, every).clamp(min=min(1, len(places) - 1))
    left = (right - 1).clamp(min=0)
    share = ((every - at[left]) / (at[right] - at[left]).clamp(min=1)).to(values)
    return torch.lerp(values[:, left.to(values.device)], values[:, right.to(values.device)], share)
