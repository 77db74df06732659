"""How values become colours: the range of the scale, whether it has two sides, and when there is none."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from numpy.typing import ArrayLike, NDArray

# Lightness grows with the value. The darkest part is left out: over a photo it would read as shadow.
SEQUENTIAL, SEQUENTIAL_RANGE = "inferno", (0.3, 1.0)
# The whitish middle is left out: fading does its work, and white would lie over the photo like fog.
DIVERGING, DIVERGING_MARGIN, DIVERGING_GAP = "RdBu_r", 0.06, 0.3
FADE = 0.85
OPACITY = 0.75
"""Of the strongest values."""


def shared_scale(heatmaps: Sequence[ArrayLike], signed: bool | None = None) -> tuple[bool, tuple[float, float] | None]:
    """Whether the maps are signed, and the scale they share: None when not one of them can be drawn.

    >>> shared_scale([np.eye(4), 3 * np.eye(4)]), shared_scale([[[1.0, 1.0]]])
    ((False, (0.0, 3.0)), (False, None))
    """
    signed = is_signed(*heatmaps) if signed is None else signed
    drawable = [heatmap for heatmap in heatmaps if degeneracy(heatmap, signed) is None]
    return signed, color_limits(*drawable, signed=signed) if drawable else None


def is_signed(*heatmaps: ArrayLike) -> bool:
    """Whether the negative part matters: the least value is below -5 % of the largest magnitude, over all maps.

    >>> is_signed([[-0.04, 1.0]]), is_signed([[-0.06, 1.0]]), is_signed([[0.0, 1.0]], [[-0.5, 0.0]])
    (False, True, True)
    """
    values = _finite_values(heatmaps)
    return bool(values.size) and bool(values.min() < -0.05 * np.abs(values).max())


def color_limits(*heatmaps: ArrayLike, signed: bool) -> tuple[float, float]:
    """The scale the maps share: robust against outliers, symmetric about zero when ``signed``.

    The upper end is the 99.5th percentile of the magnitudes. The lower end is zero, but for maps that stay above a
    tenth of the upper end (averages of random masks, say) it is their 0.5th percentile: what all pixels share tells
    none apart. Maps so sparse that the percentiles meet get their extremes. (0, 1) when there is nothing to scale by.

    >>> color_limits(np.arange(-200, 1)[None], signed=True)
    (-199.0, 199.0)
    >>> color_limits(np.arange(1000, 1201)[None], signed=False)
    (1001.0, 1199.0)
    """
    values = _finite_values(heatmaps)
    if not values.size:
        return (0.0, 1.0)
    if signed:
        magnitudes = np.abs(values)
        high = float(np.percentile(magnitudes, 99.5)) or float(magnitudes.max()) or 1.0
        return (-high, high)
    values = np.maximum(values, 0)
    low, high = (float(value) for value in np.percentile(values, [0.5, 99.5]))
    if not low < high:
        low, high = float(values.min()), float(values.max())
    if low < 0.1 * high:
        low = 0.0
    return (low, high) if low < high else (0.0, 1.0)


def degeneracy(heatmap: ArrayLike, signed: bool = False) -> str | None:
    """What keeps ``heatmap`` from being drawn, in words, or None.

    >>> degeneracy([[0.5, 0.5]]), degeneracy([[0.0, float("nan")]]), degeneracy([[-2.0, -1.0]])
    ('constant at 0.5', 'values are not finite', 'no positive value')
    >>> degeneracy([[-2.0, -1.0]], signed=True) is None
    True
    """
    heatmap = np.asarray(heatmap)
    if not np.isfinite(heatmap).all():
        return "values are not finite"
    # Rounding noise of 32-bit arithmetic must not be blown up to a full colour scale.
    if np.ptp(heatmap) <= 1e-6 * np.abs(heatmap).max():
        return f"constant at {heatmap.flat[0]:.3g}"
    if not signed and heatmap.max() <= 1e-6 * np.abs(heatmap).max():
        return "no positive value"
    return None


@lru_cache(maxsize=16)
def fading_colormap(signed: bool, alpha: float) -> ListedColormap:
    """Colours whose opacity grows from nothing to ``alpha`` with the magnitude of the value.

    >>> fading_colormap(True, 0.8)([0.0, 1.0])[:, 3].tolist()
    [0.8, 0.8]
    """
    if signed:
        half = np.linspace(DIVERGING_MARGIN, DIVERGING_GAP, 256)
        colors = colormaps[DIVERGING](np.concatenate([half, 1 - half[::-1]]))
        magnitude = np.abs(np.linspace(-1, 1, len(colors)))
    else:
        magnitude = np.linspace(0, 1, 512)
        colors = colormaps[SEQUENTIAL](np.interp(magnitude, (0, 1), SEQUENTIAL_RANGE))
    colors[:, 3] = alpha * magnitude**FADE
    return ListedColormap(colors, name="twinsight_signed" if signed else "twinsight")


def _finite_values(heatmaps: tuple[ArrayLike, ...]) -> NDArray[np.float64]:
    values = np.concatenate([np.asarray(heatmap, dtype=np.float64).ravel() for heatmap in heatmaps])
    return values[np.isfinite(values)]
