"""Conditional occlusion: the drop of the similarity when a window of one view is erased."""

import torch
from torch import Tensor

from oracles.images import interpolate


def window_starts(size: int, window: int, stride: int, flush: bool = False) -> list[int]:
    """First pixels of the windows along one axis; ``flush`` adds a last window that ends at the border."""
    starts = []
    start = 0
    while start + window <= size:
        starts.append(start)
        start += stride
    if flush and starts[-1] + window < size:
        starts.append(size - window)
    return starts


@torch.no_grad()
def conditional_occlusion(
    model,
    view1: Tensor,
    view2: Tensor,
    fill1: Tensor,
    fill2: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    flush: bool = False,
) -> tuple[Tensor, Tensor]:
    """``H1[i, j] = s0 - s(f(x1 erased), z2)`` and ``H2[i, j] = s0 - s(z1, f(x2 erased))`` on the grid of windows.

    Args:
        fill1, fill2: images that show through where view 1 and view 2 are erased.
    """
    z1, z2 = model(view1, view=1), model(view2, view=2)
    s0 = model.similarity(z1, z2).item()
    tops = window_starts(view1.shape[2], window[0], stride[0], flush)
    lefts = window_starts(view1.shape[3], window[1], stride[1], flush)
    map1 = torch.zeros(len(tops), len(lefts), dtype=torch.float64)
    map2 = torch.zeros(len(tops), len(lefts), dtype=torch.float64)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            erased1, erased2 = view1.clone(), view2.clone()
            erased1[:, :, rows, columns] = fill1[:, :, rows, columns]
            erased2[:, :, rows, columns] = fill2[:, :, rows, columns]
            map1[i, j] = s0 - model.similarity(model(erased1, view=1), z2).item()
            map2[i, j] = s0 - model.similarity(z1, model(erased2, view=2)).item()
    return map1, map2


def window_average(
    grid: Tensor, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], flush: bool = False
) -> Tensor:
    """For each pixel the mean score of the windows that cover it; NaN where none does."""
    tops = window_starts(size[0], window[0], stride[0], flush)
    lefts = window_starts(size[1], window[1], stride[1], flush)
    out = torch.zeros(size, dtype=grid.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            scores = [
                grid[i, j].item()
                for i, top in enumerate(tops)
                for j, left in enumerate(lefts)
                if top <= y < top + window[0] and left <= x < left + window[1]
            ]
            out[y, x] = sum(scores) / len(scores) if scores else float("nan")
    return out


def centres(
    grid: Tensor, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], flush: bool = False
) -> Tensor:
    """Scores sit at the centres of their windows; bilinear between them, constant beyond the outermost."""
    points_y = [top + (window[0] - 1) / 2 for top in window_starts(size[0], window[0], stride[0], flush)]
    points_x = [left + (window[1] - 1) / 2 for left in window_starts(size[1], window[1], stride[1], flush)]
    weights_y = [_between(y, points_y) for y in range(size[0])]
    weights_x = [_between(x, points_x) for x in range(size[1])]
    return interpolate(grid, weights_y, weights_x)


def _between(position: float, points: list[float]) -> tuple[int, int, float]:
    if position <= points[0]:
        return 0, 0, 0.0
    for k in range(len(points) - 1):
        if position <= points[k + 1]:
            return k, k + 1, (position - points[k]) / (points[k + 1] - points[k])
    return len(points) - 1, len(points) - 1, 0.0
