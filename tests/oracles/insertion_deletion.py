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


def path(start: Tensor, end: Tensor, saliency: Tensor, step: int) -> list[Tensor]:
    """``T + 1`` images: in the t-th the ``t * step`` most important pixels show ``end`` and the others ``start``."""
    rank = ranks(saliency)
    steps = math.ceil(rank.numel() / step)
    return [torch.where(rank < t * step, end, start) for t in range(steps + 1)]


def area(curve: list[float]) -> float:
    """Trapezoids over the number of steps."""
    return sum((left + right) / 2 for left, right in pairwise(curve)) / (len(curve) - 1)


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
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Areas and curves under the names ``si, sd, ci1, ci2, cd1, cd2``; areas also have the means ``ci`` and ``cd``.

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

    inserted1 = [model(x, view=1) for x in path(start1, view1, map1, step)]
    inserted2 = [model(x, view=2) for x in path(start2, view2, map2, step)]
    deleted1 = [model(x, view=1) for x in path(view1, end1, map1, step)]
    deleted2 = [model(x, view=2) for x in path(view2, end2, map2, step)]

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
    areas["ci"] = (areas["ci1"] + areas["ci2"]) / 2
    areas["cd"] = (areas["cd1"] + areas["cd2"]) / 2
    return areas, curves
