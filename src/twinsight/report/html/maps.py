"""Maps small enough for a page: 8 bits a value, at most 32 x 32, with what is needed to colour them as figures do."""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from twinsight.explainers.geometry import MapGeometry
from twinsight.plotting import color_limits, degeneracy, fading_colormap

INLINE = 32
"""Side of the maps in the page; larger ones lie beside it."""
STEPS = 254
"""Values are 1 to 255; 0 is what is not finite."""


@dataclass(frozen=True)
class SmallMap:
    """A map in 8 bits.

    Attributes:
        pixels: ``(h, w)``; value ``low + (pixel - 1) / 254 * (high - low)``, and 0 for what is not finite.
        low, high: least and largest value.
        signed: whether negative values matter.
        limits: robust range of the colour scale.
        flaw: why there is nothing to see, or None.
        reduced: whether the map is larger than what is kept here.
    """

    pixels: NDArray[np.uint8]
    low: float
    high: float
    signed: bool
    limits: tuple[float, float]
    flaw: str | None
    reduced: bool

    def facts(self) -> list[Any]:
        """As the page reads it: height, width, low, high, signed, limits, flaw, reduced."""
        low, high, *limits = (float(f"{value:.5g}") for value in (self.low, self.high, *self.limits))
        return [*self.pixels.shape, low, high, int(self.signed), *limits, self.flaw, int(self.reduced)]


def geometry_of(described: dict[str, Any] | None) -> MapGeometry:
    """How the cells of a map lie on the view, from what the cell wrote down; tiles where it wrote nothing."""
    if not described:
        return MapGeometry()
    lists = {name: tuple(described[name]) for name in ("tops", "lefts")}
    sizes = {name: described[name] and tuple(described[name]) for name in ("image_size", "window")}
    return MapGeometry(described["kind"], **sizes, **lists)


def spread_map(heatmap: NDArray[Any], geometry: MapGeometry) -> NDArray[Any]:
    """Windows spread over the view that they are windows of; other maps as they are."""
    if geometry.kind == "stretch" or geometry.image_size is None:
        return heatmap
    return geometry.resize(torch.from_numpy(np.ascontiguousarray(heatmap)).unsqueeze(0), geometry.image_size)[0].numpy()


def at_view_size(heatmap: NDArray[Any], side: int | None) -> NDArray[Any]:
    """A spread map as figures draw it: bilinear, at the size of the view where that is known."""
    if side is None or heatmap.shape == (side, side):
        return heatmap
    return MapGeometry().resize(torch.from_numpy(np.ascontiguousarray(heatmap))[None], (side, side))[0].numpy()


def small_map(
    heatmap: NDArray[Any], signed: bool, limits: tuple[float, float] | None = None, side: int = INLINE
) -> SmallMap:
    """Reduce a map to ``side`` by area averaging, if it is larger, and to 8 bits; ``limits`` of None are its own.

    >>> small = small_map(np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64), signed=True)
    >>> small.pixels.shape, int(small.pixels.min()), int(small.pixels.max()), small.reduced
    ((32, 32), 1, 255, True)
    """
    limits = limits or color_limits(heatmap, signed=signed)
    flaw = degeneracy(heatmap, signed)
    reduced = max(heatmap.shape) > side
    if reduced:
        size = tuple(min(side, length) for length in heatmap.shape)
        whole = torch.from_numpy(np.ascontiguousarray(heatmap, dtype=np.float32))[None, None]
        heatmap = F.adaptive_avg_pool2d(whole, size)[0, 0].numpy()
    pixels, low, high = eight_bits(heatmap)
    return SmallMap(pixels, low, high, signed, limits, flaw, reduced)


def eight_bits(values: NDArray[Any]) -> tuple[NDArray[np.uint8], float, float]:
    """Values as 1 to 255 between the least and the largest, 0 where they are not finite.

    >>> eight_bits(np.array([[0.0, 0.5, 1.0, float("nan")]]))
    (array([[  1, 128, 255,   0]], dtype=uint8), 0.0, 1.0)
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8), 0.0, 0.0
    low, high = float(values[finite].min()), float(values[finite].max())
    scaled = (np.where(finite, values, low).astype(np.float64) - low) / ((high - low) or 1.0)
    return np.where(finite, np.round(1 + scaled * STEPS), 0).astype(np.uint8), low, high


def packed(content: bytes) -> str:
    """Deflated (zlib) and in base64: what the page's script inflates."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def colours() -> dict[str, list[int]]:
    """The colours of maps, 256 times red, green, blue and opacity in 0 to 255, as figures have them."""
    places = np.linspace(0, 1, 256)
    return {
        name: np.round(fading_colormap(signed, 1.0)(places) * 255).astype(int).ravel().tolist()
        for name, signed in (("positive", False), ("signed", True))
    }
