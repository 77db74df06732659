"""Maps against regions that are known: where the answer lies, and where both views show the same pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twinsight.engine import degenerate
from twinsight.errors import UserError
from twinsight.metrics.functional.correlation import pearson, spearman

Box = tuple[float, float, float, float]
Regions = Sequence[tuple[Box | None, Box | None] | tuple[Box, Box, bool] | None]
"""For each pair the boxes (top, left, height, width) of view 1 and view 2, and whether one is the other's mirror."""


@dataclass(eq=False)
class Localization:
    """How well the maps of a batch point at their regions; each in [0, 1], higher is better.

    Of each, ``..1`` is for view 1, ``..2`` for view 2, and the one without a digit their mean, or the one there is. NaN
    where the map or the region is missing.

    Attributes:
        pointing_game1, pointing_game2, pointing_game: ``(B,)`` 1 where the largest value lies inside the region, else
            0; where several pixels tie for it, the share of them inside.
        relevance_mass1, relevance_mass2, relevance_mass: ``(B,)`` share of all positive relevance inside; 0 where a map
            has none.
        rank_accuracy1, rank_accuracy2, rank_accuracy: ``(B,)`` share of the k highest pixels inside, for a region of k
            pixels; where the k-th ties with others, its mean over all orders of the ties.
        region_share1, region_share2, region_share: ``(B,)`` share of the view that the region takes up: what all three
            give on average for a map by chance.
        degenerate1, degenerate2: ``(B,)`` True where a map is constant or not finite, and is scored as by chance.
    """

    pointing_game1: Tensor
    pointing_game2: Tensor
    pointing_game: Tensor
    relevance_mass1: Tensor
    relevance_mass2: Tensor
    relevance_mass: Tensor
    rank_accuracy1: Tensor
    rank_accuracy2: Tensor
    rank_accuracy: Tensor
    region_share1: Tensor
    region_share2: Tensor
    region_share: Tensor
    degenerate1: Tensor
    degenerate2: Tensor


def localization(
    map1: Tensor, map2: Tensor | None, regions: Regions, size: tuple[int, int] | None = None
) -> Localization:
    """Whether the maps are large where the views are known to show the same: pointing game, relevance mass, rank
    accuracy (Zhang et al. 2018; Kohlbrenner et al. 2020; Arras et al. 2022).

    Args:
        map1, map2: ``(B, h, w)``, larger is more important; ``map2`` may be None.
        regions: for each pair the box (top, left, height, width) of view 1 and that of view 2, in pixels of the views,
            as in :class:`twinsight.data.PairBatch`; None where there is none. A pixel is inside where its centre is.
        size: (height, width) of the views; maps of another size are brought to it bilinearly. None is that of the maps.

    Raises:
        UserError: maps that are not ``(B, h, w)``, or not one region for each.

    >>> heatmap = torch.zeros(1, 4, 4)
    >>> heatmap[0, :2, :2] = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    >>> result = localization(heatmap, None, [((0, 0, 2, 1), None)])
    >>> result.pointing_game1, result.relevance_mass1, result.rank_accuracy1, result.region_share1
    (tensor([1.]), tensor([0.7500]), tensor([0.5000]), tensor([0.1250]))
    """
    _check(map1, map2, regions)
    columns: dict[str, list[Tensor]] = {}
    flags = []
    for view, maps in ((0, map1), (1, map2)):
        scores = torch.full((len(map1), len(_SCORES)), torch.nan)
        flagged = torch.zeros(len(map1), dtype=torch.bool)
        for place, region in enumerate(regions):
            if maps is None:
                continue
            heatmap = _resized(maps[place], size)
            flagged[place] = degenerate(heatmap)
            box = None if region is None else (region[0], region[1])[view]
            if box is not None:
                inside = _inside(box, (heatmap.shape[0], heatmap.shape[1]))
                scores[place] = _scores(heatmap, inside)
        for name, column in zip(_SCORES, scores.unbind(dim=1), strict=True):
            columns.setdefault(name, []).append(column)
        flags.append(flagged)
    fields: dict[str, Tensor] = {}
    for name, (one, two) in columns.items():
        fields |= {f"{name}1": one, f"{name}2": two, name: torch.stack([one, two]).nanmean(dim=0)}
    return Localization(**fields, degenerate1=flags[0], degenerate2=flags[1])


_SCORES = ("pointing_game", "relevance_mass", "rank_accuracy", "region_share")
localization.columns = _SCORES[:3]  # type: ignore[attr-defined]


@dataclass(eq=False)
class Overlap:
    """Whether the two maps of a pair agree where the views show the same content; higher is better.

    Attributes:
        overlap_agreement: ``(B,)`` Spearman correlation, in [-1, 1]. NaN where the views share too little, a map is
            missing, or one is constant or not finite over what they share.
        overlap_correlation: ``(B,)`` Pearson correlation of the same values.
        overlap_share: ``(B,)`` share of a view that shows what the other one shows as well, the smaller of the two; 0
            where there is no region.
    """

    overlap_agreement: Tensor
    overlap_correlation: Tensor
    overlap_share: Tensor


def overlap_agreement(
    map1: Tensor,
    map2: Tensor | None,
    regions: Regions,
    size: tuple[int, int] | None = None,
    minimum: float = 1 / 16,
) -> Overlap:
    """Correlation of the two maps over the content that both views show, brought onto one grid.

    The grid has about one point for a pixel of the view that shows the content smaller, so that no detail is invented;
    a map of finer detail is averaged over each of its cells. Mirrored regions are turned first.

    Args:
        map1, map2: ``(B, h, w)``; ``map2`` may be None.
        regions: as for :func:`localization`, with a third entry that says whether they are mirrored.
        size: (height, width) of the views, None is that of the maps.
        minimum: share of each view, in (0, 1], that the region must take up: correlations over a few cells of a coarse
            map mean nothing. Ours: a quarter of the view either way.

    Raises:
        UserError: shapes do not fit, or ``minimum`` is out of range.

    >>> column = torch.arange(8.0).expand(1, 8, 8)
    >>> whole = (0, 0, 8, 8)
    >>> overlap_agreement(column, column.square(), [(whole, whole)]).overlap_agreement
    tensor([1.])
    >>> overlap_agreement(column, column, [(whole, whole, True)]).overlap_agreement
    tensor([-1.])
    """
    _check(map1, map2, regions)
    if not 0 < minimum <= 1:
        raise UserError(f"`minimum` must be in (0, 1], got {minimum}")
    rows = []
    for place, region in enumerate(regions):
        if region is None or region[0] is None or region[1] is None:
            rows.append((math.nan, math.nan, 0.0))
            continue
        box1, box2, mirrored = (*region, False)[:3]
        height, width = size or (map1.shape[-2], map1.shape[-1])
        share = min(box[2] * box[3] for box in (box1, box2)) / (height * width)
        if map2 is None or share < minimum:
            rows.append((math.nan, math.nan, share))
            continue
        grid = tuple(max(1, round(min(box1[axis], box2[axis]))) for axis in (2, 3))
        one = _sampled(_resized(map1[place], size), box1, grid, mirrored=False)
        two = _sampled(_resized(map2[place], size), box2, grid, mirrored=bool(mirrored))
        rows.append((spearman(one, two), pearson(one, two), share))
    rank, linear, shares = torch.tensor(rows).unbind(dim=1)
    return Overlap(rank, linear, shares)


overlap_agreement.columns = ("overlap_agreement",)  # type: ignore[attr-defined]


def _check(map1: Tensor, map2: Tensor | None, regions: Regions) -> None:
    for name, maps in (("map1", map1), ("map2", map2)):
        if maps is not None and (maps.ndim != 3 or len(maps) != len(map1)):
            raise UserError(f"`{name}` must be ({len(map1)}, h, w), one map per pair, got {tuple(maps.shape)}")
    if len(regions) != len(map1):
        raise UserError(f"`regions` must have one entry for each of the {len(map1)} pairs, got {len(regions)}")


def _resized(heatmap: Tensor, size: tuple[int, int] | None) -> Tensor:
    """A map at ``size``, in double precision on the CPU: sums over it must not depend on the device."""
    heatmap = heatmap.detach().cpu().double()
    if size is None or tuple(heatmap.shape) == tuple(size):
        return heatmap
    return F.interpolate(heatmap[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _inside(box: Box, size: tuple[int, int]) -> Tensor:
    """``(H, W)`` mask of the pixels whose centre is in the box."""
    top, left, height, width = box
    rows, columns = (torch.arange(length, dtype=torch.float64) + 0.5 for length in size)
    in_rows = (rows >= top) & (rows < top + height)
    return in_rows[:, None] & ((columns >= left) & (columns < left + width))[None]


def _scores(heatmap: Tensor, inside: Tensor) -> Tensor:
    """Pointing game, relevance mass, rank accuracy and share of the region; NaN for a region without a pixel."""
    k = int(inside.sum())
    if k == 0:
        return torch.full((len(_SCORES),), torch.nan)
    share = k / inside.numel()
    if degenerate(heatmap):
        return torch.full((len(_SCORES),), share)  # all pixels tie
    largest = heatmap == heatmap.max()
    positive = heatmap.clamp(min=0)
    mass = positive.sum()
    least = heatmap.flatten().topk(k).values[-1]
    above, tied = heatmap > least, heatmap == least
    # Of the tied pixels as many as there is room for, each as likely as the other.
    drawn = (k - above.sum()) / tied.sum() * (tied & inside).sum()
    return torch.stack(
        [
            largest[inside].sum() / largest.sum(),
            positive[inside].sum() / mass if mass > 0 else mass,
            ((above & inside).sum() + drawn) / k,
            torch.tensor(share),
        ]
    )


def _sampled(heatmap: Tensor, box: Box, grid: tuple[int, ...], mirrored: bool) -> Tensor:
    """What a map says inside a box, on a grid that spans it: bilinear, the mean over each cell, its edge carried on."""
    height, width = heatmap.shape
    fine = [max(1, math.ceil(box[axis + 2] / points)) for axis, points in enumerate(grid)]
    rows, columns = (
        box[axis] + (torch.arange(points * per, dtype=torch.float64) + 0.5) / (points * per) * box[axis + 2]
        for axis, (points, per) in enumerate(zip(grid, fine, strict=True))
    )
    if mirrored:
        columns = columns.flip(0)
    # Coordinates of grid_sample run from -1 to 1 over the image, borders included.
    places = torch.stack(torch.meshgrid(2 * columns / width - 1, 2 * rows / height - 1, indexing="xy"), dim=-1)
    values = F.grid_sample(heatmap[None, None], places[None], padding_mode="border", align_corners=False)
    return F.avg_pool2d(values, kernel_size=fine)[0, 0]
