"""Insertion and deletion curves of one pair, and the areas under them."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from oracles.images import gaussian_blur


def ranks(saliency: Tensor) -> Tensor:
    """Rank of each pixel of ``(H, W)``, 0 for the largest value; ties go to the pixel that is read first."""
    order = saliency.flatten().argsort(descending=True, stable=True)
    rank = torch.zeros_like(order)
    for position, pixel in enumerate(order.tolist()):
        rank[pixel] = position
    return rank.reshape(saliency.shape)


def path(start: Tensor, end: Tensor, saliency: Tensor, step: int, granularity: int = 1) -> list[Tensor]:
    """``T + 1`` images: in the t-th the ``t * step`` most important pixels show ``end`` and the others ``start``."""
    if granularity > 1:
        return path_of_regions(start, end, saliency, step, granularity)
    rank = ranks(saliency)
    steps = math.ceil(rank.numel() / step)
    return [torch.where(rank < t * step, end, start) for t in range(steps + 1)]


def path_of_regions(start: Tensor, end: Tensor, saliency: Tensor, step: int, side: int) -> list[Tensor]:
    """The same, square after square: ``step`` more squares of ``side`` pixels in each image, by their mean."""
    height, width = saliency.shape
    squares = [(slice(y, y + side), slice(x, x + side)) for y in range(0, height, side) for x in range(0, width, side)]
    squares.sort(key=lambda square: -saliency[square].double().mean().item())
    images = [start]
    for place in range(0, len(squares), step):
        image = images[-1].clone()
        for rows, columns in squares[place : place + step]:
            image[..., rows, columns] = end[..., rows, columns]
        images.append(image)
    return images


def area(curve: list[float]) -> float:
    """Trapezoids over the number of steps."""
    return sum((left + right) / 2 for left, right in pairwise(curve)) / (len(curve) - 1)


def normalized_area(curve: list[float], blank: float, whole: float) -> float:
    """Area after a change of units in which the blank view scores 0 and the whole view 1."""
    return area([(score - blank) / (whole - blank) for score in curve])


def baselines(view: Tensor, protocol: str) -> tuple[Tensor, Tensor]:
    """Where insertion starts and where deletion ends: blur and zero (paper), or blur and blur (sound)."""
    blurred = gaussian_blur(view)
    return {"paper": (blurred, torch.zeros_like(view)), "sound": (blurred, blurred)}[protocol]


@torch.no_grad()
def insertion_deletion(
    model,
    view1: Tensor,
    view2: Tensor,
    map1: Tensor,
    map2: Tensor,
    step: int,
    protocol: str | None = "paper",
    insertion_starts: tuple[Tensor, Tensor] | None = None,
    deletion_ends: tuple[Tensor, Tensor] | None = None,
    granularity: int = 1,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Areas and curves under the names ``si, sd, ci1, ci2, cd1, cd2``; areas also have the means ``ci`` and ``cd``.

    Areas normalised by the ends of their curves end in ``_normalized``. Where insertion starts in what deletion ends
    in, ``srg1, srg2, srg`` and ``srg_simultaneous`` compare deletion in both orders; the step must divide for that.

    Args:
        map1, map2: ``(H, W)``, larger is more important.
        protocol: names both baselines of both views; images given explicitly win.
    """
    if protocol is not None:
        (start1, end1), (start2, end2) = baselines(view1, protocol), baselines(view2, protocol)
    if insertion_starts is not None:
        start1, start2 = insertion_starts
    if deletion_ends is not None:
        end1, end2 = deletion_ends
    z1, z2 = model(view1, view=1), model(view2, view=2)

    inserted1 = [model(x, view=1) for x in path(start1, view1, map1, step, granularity)]
    inserted2 = [model(x, view=2) for x in path(start2, view2, map2, step, granularity)]
    deleted1 = [model(x, view=1) for x in path(view1, end1, map1, step, granularity)]
    deleted2 = [model(x, view=2) for x in path(view2, end2, map2, step, granularity)]

    def scores(left: list[Tensor], right: list[Tensor]) -> list[float]:
        return [model.similarity(a, b).item() for a, b in zip(left, right, strict=True)]

    points = len(inserted1)
    curves = {
        "si": scores(inserted1, inserted2),
        "sd": scores(deleted1, deleted2),
        "ci1": scores(inserted1, [z2] * points),
        "ci2": scores([z1] * points, inserted2),
        "cd1": scores(deleted1, [z2] * points),
        "cd2": scores([z1] * points, deleted2),
    }
    areas = {name: area(curve) for name, curve in curves.items()}
    for name in ("si", "ci1", "ci2"):
        areas[f"{name}_normalized"] = normalized_area(curves[name], blank=curves[name][0], whole=curves[name][-1])
    for name in ("sd", "cd1", "cd2"):
        areas[f"{name}_normalized"] = normalized_area(curves[name], blank=curves[name][-1], whole=curves[name][0])
    if torch.equal(start1, end1) and torch.equal(start2, end2):
        last1 = [model(x, view=1) for x in path(view1, end1, -map1, step, granularity)]
        last2 = [model(x, view=2) for x in path(view2, end2, -map2, step, granularity)]
        areas["srg1"] = area(scores(last1, [z2] * points)) - areas["cd1"]
        areas["srg2"] = area(scores([z1] * points, last2)) - areas["cd2"]
        areas["srg"] = (areas["srg1"] + areas["srg2"]) / 2
        areas["srg_simultaneous"] = area(scores(last1, last2)) - areas["sd"]
    for name in ("ci", "cd"):
        areas[name] = (areas[f"{name}1"] + areas[f"{name}2"]) / 2
        areas[f"{name}_normalized"] = (areas[f"{name}1_normalized"] + areas[f"{name}2_normalized"]) / 2
    return areas, curves
