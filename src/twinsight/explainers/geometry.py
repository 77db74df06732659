"""How the cells of a map lie on the image, and how they spread over its pixels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from twinsight.errors import UserError
from twinsight.models import full_precision

GeometryKind = Literal["stretch", "window_average", "centres"]
KINDS = ("stretch", "window_average", "centres")


@dataclass(frozen=True)
class MapGeometry:
    """Where the cells of an ``(h, w)`` map lie on an image.

    Attributes:
        kind: ``"stretch"``: cells tile the image. ``"window_average"``: a cell is the score of a window, a pixel gets
            the mean over all windows that cover it. ``"centres"``: a cell is a value at its window's centre, pixels
            between centres are interpolated, those beyond the outermost take the nearest.
        image_size: (height, width) the windows refer to.
        window: (height, width) of each window.
        tops, lefts: offset of each row and each column of windows.

    >>> grid = MapGeometry("window_average", (4, 4), (2, 2), (0, 2), (0, 2))
    >>> grid.resize(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), (4, 4))[0, 0]
    tensor([1., 1., 2., 2.])
    """

    kind: GeometryKind = "stretch"
    image_size: tuple[int, int] | None = None
    window: tuple[int, int] | None = None
    tops: tuple[int, ...] = ()
    lefts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"`geometry` must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def resize(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps ``(B, h, w)`` at ``size`` (H, W): bilinear, align_corners=False, after the windows are spread."""
        if self.kind != "stretch":
            maps = full_precision(maps)
            assert self.image_size is not None  # set together with the kind by the occlusions
            assert self.window is not None
            spread = _averages if self.kind == "window_average" else _interpolation
            rows = spread(self.tops, self.window[0], self.image_size[0]).to(maps)
            columns = spread(self.lefts, self.window[1], self.image_size[1]).to(maps)
            # Windows lie on a grid, so spreading them is separable: a matrix from each side.
            # One by one: a product over the batch may round by the size of the batch.
            with torch.autocast(maps.device.type, enabled=False):
                maps = torch.stack([rows @ heatmap @ columns.T for heatmap in maps])
        if tuple(maps.shape[-2:]) == tuple(size):
            return maps
        return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False).squeeze(1)


def _averages(starts: tuple[int, ...], window: int, length: int) -> Tensor:
    """``(length, windows)``: each pixel's mean over the windows that cover it."""
    pixels, begins = np.arange(length)[:, None], np.asarray(starts)[None]
    covers = ((pixels >= begins) & (pixels < begins + window)).astype(np.float64)
    count = covers.sum(axis=1, keepdims=True)
    # Pixels that no window reaches (a stride beyond the window, no flush window) take the value between centres.
    between = _interpolation(starts, window, length).numpy()
    return torch.from_numpy(np.where(count > 0, covers / np.maximum(count, 1), between))


def _interpolation(starts: tuple[int, ...], window: int, length: int) -> Tensor:
    """``(length, windows)``: linear weights of the two centres around each pixel."""
    centres = np.asarray(starts) + (window - 1) / 2
    identity = np.eye(len(starts))
    return torch.from_numpy(np.stack([np.interp(np.arange(length), centres, row) for row in identity], axis=1))
