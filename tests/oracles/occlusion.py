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


@torch.no_grad()
def context_agnostic_occlusion(
    model,
    view1: Tensor,
    view2: Tensor,
    fill1: Tensor,
    fill2: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    flush: bool = False,
) -> tuple[Tensor, Tensor]:
    """``H1[i, j] = s(f(patch of x1 alone) - f(x1 without it), z2)``, and view 2 likewise; not scaled."""
    z1, z2 = model(view1, view=1), model(view2, view=2)
    tops = window_starts(view1.shape[2], window[0], stride[0], flush)
    lefts = window_starts(view1.shape[3], window[1], stride[1], flush)
    map1 = torch.zeros(len(tops), len(lefts), dtype=torch.float64)
    map2 = torch.zeros(len(tops), len(lefts), dtype=torch.float64)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            moved = []
            for number, (image, fill) in enumerate(((view1, fill1), (view2, fill2)), start=1):
                without, alone = image.clone(), fill.clone()
                without[:, :, rows, columns] = fill[:, :, rows, columns]
                alone[:, :, rows, columns] = image[:, :, rows, columns]
                moved.append(model(alone, view=number) - model(without, view=number))
            map1[i, j] = model.similarity(moved[0], z2).item()
            map2[i, j] = model.similarity(z1, moved[1]).item()
    return map1, map2


@torch.no_grad()
def pairwise_drops(model, view1: Tensor, view2: Tensor, fill1: Tensor, fill2: Tensor, boxes: Tensor) -> Tensor:
    """``delta[a, b] = s0 - s(f(x1 without box a), f(x2 without box b))`` one combination at a time."""
    s0 = model.similarity(model(view1, view=1), model(view2, view=2)).item()
    delta = torch.zeros(len(boxes), len(boxes), dtype=torch.float64)
    for a, (box1, _) in enumerate(boxes.tolist()):
        for b, (_, box2) in enumerate(boxes.tolist()):
            erased1 = _without(view1, fill1, box1)
            erased2 = _without(view2, fill2, box2)
            delta[a, b] = s0 - model.similarity(model(erased1, view=1), model(erased2, view=2)).item()
    return delta


def mean_drop_of_covering_boxes(worth: list[float], boxes: list[list[int]], size: tuple[int, int]):
    """For each pixel the mean worth of the boxes that cover it, its standard error, and how many they are."""
    overall = sum(worth) / len(worth)
    mean, error = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    count = torch.zeros(size, dtype=torch.int64)
    for y in range(size[0]):
        for x in range(size[1]):
            covering = [w for w, box in zip(worth, boxes, strict=True) if _covers(box, y, x)]
            count[y, x] = len(covering)
            mean[y, x] = sum(covering) / len(covering) if covering else overall
            if len(covering) < 2:
                error[y, x] = float("nan")
                continue
            variance = sum((w - mean[y, x].item()) ** 2 for w in covering) / (len(covering) - 1)
            error[y, x] = (variance / len(covering)) ** 0.5
    return mean, error, count


def _covers(box: list[int], y: int, x: int) -> bool:
    top, left, tall, wide = box
    return top <= y < top + tall and left <= x < left + wide


def _without(image: Tensor, fill: Tensor, box: list[int]) -> Tensor:
    top, left, tall, wide = box
    erased = image.clone()
    erased[:, :, top : top + tall, left : left + wide] = fill[:, :, top : top + tall, left : left + wide]
    return erased
