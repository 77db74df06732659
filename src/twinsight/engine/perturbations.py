"""Many versions of one image, made chunk by chunk on its device, never all at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from twinsight.engine.seeds import content_digest, seed_of


class Perturbation:
    """``count`` versions of ``image`` in which the pixels that ``keep`` rejects come from ``fill``.

    Args:
        image: ``(C, H, W)``.
        fill: ``(C, H, W)``, see :func:`twinsight.engine.baselines.baseline_image`.
        keep: version indices ``(n,)`` to boolean masks ``(n, 1, H, W)``, True where the image stays.
        count: number of versions.
        key: what decides ``keep``; equal keys mean equal masks.
        boxes: ``(N, 4)`` integers (top, left, height, width) outside which every version is the same, where there are.
        kept: whether they are the image inside the boxes and the fill outside; else the other way round.
    """

    def __init__(
        self,
        image: Tensor,
        fill: Tensor,
        keep: Callable[[Tensor], Tensor],
        count: int,
        key: tuple[object, ...],
        boxes: Tensor | None = None,
        kept: bool = False,
    ) -> None:
        self.image = image
        self.fill = fill
        self.keep = keep
        self.count = count
        self.key = (*key, content_digest(fill))
        self.boxes = None if boxes is None else boxes.cpu()
        self.kept = kept

    @property
    def outside(self) -> Tensor:
        """``(C, H, W)`` what every version is outside its box."""
        return self.fill if self.kept else self.image

    def __len__(self) -> int:
        return self.count

    def versions(self, indices: Tensor) -> Tensor:
        """The versions ``indices`` (n,) as ``(n, C, H, W)``."""
        return torch.where(self.keep(indices), self.image, self.fill)


def some_of(perturbation: Perturbation, places: Sequence[int]) -> Perturbation:
    """Only the versions at ``places`` of ``perturbation``, in that order.

    >>> erased = erased_windows(torch.ones(1, 4, 4), torch.zeros(1, 4, 4), torch.tensor([[0, 0, 2, 2], [0, 0, 4, 4]]))
    >>> some_of(erased, [1]).versions(torch.tensor([0])).sum()
    tensor(0.)
    """
    chosen = torch.tensor(places, dtype=torch.long, device=perturbation.image.device)
    key = (*perturbation.key, "some of", tuple(places))
    return Perturbation(
        perturbation.image,
        perturbation.fill,
        lambda indices: perturbation.keep(chosen[indices]),
        len(places),
        key,
        None if perturbation.boxes is None else perturbation.boxes[chosen.cpu()],
        perturbation.kept,
    )


def erased_windows(image: Tensor, fill: Tensor, boxes: Tensor) -> Perturbation:
    """One version for each box, in which the box is erased.

    Args:
        boxes: ``(N, 4)`` integers (top, left, height, width).

    >>> erased = erased_windows(torch.ones(1, 4, 4), torch.zeros(1, 4, 4), torch.tensor([[0, 0, 2, 2]]))
    >>> erased.versions(torch.tensor([0])).sum()
    tensor(12.)
    """
    inside = _inside(boxes, image)
    key = ("erased_windows", content_digest(boxes))
    return Perturbation(image, fill, lambda indices: ~inside(indices), len(boxes), key, boxes)


def kept_windows(image: Tensor, fill: Tensor, boxes: Tensor) -> Perturbation:
    """One version for each box, of which nothing but the box is kept; as above.

    >>> kept = kept_windows(torch.ones(1, 4, 4), torch.zeros(1, 4, 4), torch.tensor([[0, 0, 2, 2]]))
    >>> kept.versions(torch.tensor([0])).sum()
    tensor(4.)
    """
    key = ("kept_windows", content_digest(boxes))
    return Perturbation(image, fill, _inside(boxes, image), len(boxes), key, boxes, kept=True)


def _inside(boxes: Tensor, image: Tensor) -> Callable[[Tensor], Tensor]:
    """Indices of boxes ``(n,)`` to masks ``(n, 1, H, W)``, True inside the box."""
    height, width = image.shape[-2:]
    boxes = boxes.to(image.device)
    rows, columns = torch.arange(height, device=image.device), torch.arange(width, device=image.device)

    def inside(indices: Tensor) -> Tensor:
        top, left, tall, wide = boxes[indices].unsqueeze(-1).unbind(1)
        in_rows = (rows >= top) & (rows < top + tall)
        in_columns = (columns >= left) & (columns < left + wide)
        return (in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)).unsqueeze(1)

    return inside


def revealed_by_rank(image: Tensor, fill: Tensor, ranks: Tensor, step: int, steps: int) -> Perturbation:
    """Interior of the insertion path: version ``t - 1`` shows the pixels of rank below ``t * step``, 0 < t < steps.

    The two ends are the fill and the image themselves, which every path shares.

    Args:
        ranks: ``(H, W)`` integers, 0 for the most important pixel.
    """

    def keep(indices: Tensor) -> Tensor:
        return ranks < ((indices + 1) * step).view(-1, 1, 1, 1)

    return Perturbation(image, fill, keep, steps - 1, ("revealed", content_digest(ranks), step))


def erased_by_rank(image: Tensor, fill: Tensor, ranks: Tensor, step: int, steps: int) -> Perturbation:
    """Interior of the deletion path: version ``t - 1`` lacks the pixels of rank below ``t * step``; as above."""

    def keep(indices: Tensor) -> Tensor:
        return ranks >= ((indices + 1) * step).view(-1, 1, 1, 1)

    return Perturbation(image, fill, keep, steps - 1, ("erased", content_digest(ranks), step))


def pixel_ranks(heatmap: Tensor, seed: int) -> Tensor:
    """Rank of each pixel of an ``(H, W)`` map: 0 for the largest value, NaN last.

    Ties are broken by a permutation drawn from ``seed``, so that neither the device nor the scan order of the image
    decides them.

    >>> pixel_ranks(torch.tensor([[0.1, 0.9], [0.5, -1.0]]), seed=0)
    tensor([[2, 0],
            [1, 3]])
    """
    values = torch.nan_to_num(heatmap.detach().cpu().double(), nan=-torch.inf).flatten()
    shuffled = torch.from_numpy(np.random.Generator(np.random.PCG64(seed_of(seed, "ties"))).permutation(len(values)))
    order = shuffled[torch.argsort(values[shuffled], descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks.view(heatmap.shape)


def region_ranks(heatmap: Tensor, side: int, seed: int) -> Tensor:
    """``(H, W)`` ranks that the pixels of a square region share: that of the mean of an ``(H, W)`` map over it.

    Regions tile the map from its upper left corner; those at the right and lower border are smaller where ``side`` does
    not divide. Ranks count regions, 0 for the largest mean, NaN last; ties as for :func:`pixel_ranks`, which this is
    for a ``side`` of 1.

    >>> region_ranks(torch.tensor([[0.0, 0.0, 3.0], [0.0, 1.0, 1.0]]), side=2, seed=0)
    tensor([[1, 1, 0],
            [1, 1, 0]])
    """
    if side == 1:
        return pixel_ranks(heatmap, seed)
    # In double precision the mean of equal values of a float map is that value, so that equal regions tie.
    values = heatmap.detach().cpu().double().unsqueeze(0)
    means = F.avg_pool2d(values, side, ceil_mode=True, count_include_pad=False)[0]
    ranks = pixel_ranks(means, seed).repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)
    return ranks[: heatmap.shape[0], : heatmap.shape[1]].contiguous()
