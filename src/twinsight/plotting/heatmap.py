"""A heatmap over a photo that stays readable wherever the map says nothing."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from twinsight.plotting.scale import OPACITY, color_limits, degeneracy, fading_colormap, is_signed


def overlay(
    axes: Axes,
    image: ArrayLike,
    heatmap: ArrayLike,
    signed: bool | None = False,
    alpha: float = OPACITY,
    limit: float | tuple[float, float] | None = None,
    saturation: float = 0.2,
) -> AxesImage:
    """Draw ``heatmap`` over ``image``: hue and lightness say how much, and so does opacity.

    A map that has nothing to show (constant, not finite, or not signed and without a positive value) leaves the photo
    alone and a note that says so.

    Args:
        axes: where to draw; ticks and frame are removed.
        image: ``(H, W, 3)`` floats in [0, 1].
        heatmap: ``(h, w)`` of any size, row 0 at the top; stretched bilinearly over the whole image.
        signed: True colours negative values too; False treats them as nothing; None decides as :func:`is_signed`.
        alpha: opacity of the strongest values, in (0, 1]; nothing is opaque where the map is zero.
        limit: value that gets the full colour, or (low, high) to say also which value fades to nothing. None takes
            them from the map with :func:`color_limits`.
        saturation: how much of the photo's own colour stays under the map, from 0 (grey) to 1 (all), so that the
            map's colours are not taken for the photo's.

    Returns:
        The heatmap's image artist; a colour bar made from it shows colours and fading.

    Raises:
        ValueError: an argument has a wrong shape or range.

    >>> from matplotlib.figure import Figure
    >>> artist = overlay(Figure().add_subplot(), np.full((8, 8, 3), 0.5), np.eye(4), limit=2.0)
    >>> artist.get_clim(), tuple(float(edge) for edge in artist.get_extent())
    ((0.0, 2.0), (-0.5, 7.5, 7.5, -0.5))
    """
    heatmap = checked_heatmap(heatmap)
    if not 0 <= saturation <= 1:
        raise ValueError(f"`saturation` must lie in [0, 1], got {saturation}")
    _check_alpha(alpha)
    signed = is_signed(heatmap) if signed is None else signed
    if limit is not None:
        _explicit_limits(limit, signed)
    photo = show_photo(axes, image, saturation)
    return draw_map(axes, heatmap, photo.get_extent(), signed=signed, alpha=alpha, limit=limit)


def draw_map(
    axes: Axes,
    heatmap: ArrayLike,
    extent: tuple[float, float, float, float],
    signed: bool | None = False,
    alpha: float = OPACITY,
    limit: float | tuple[float, float] | None = None,
) -> AxesImage:
    """A map without its photo, stretched over ``extent`` (left, right, bottom, top); else as :func:`overlay`."""
    heatmap = checked_heatmap(heatmap)
    _check_alpha(alpha)
    signed = is_signed(heatmap) if signed is None else signed
    low, high = color_limits(heatmap, signed=signed) if limit is None else _explicit_limits(limit, signed)
    flaw = degeneracy(heatmap, signed)
    artist = axes.imshow(
        heatmap if flaw is None else np.full_like(heatmap, np.nan),
        cmap=fading_colormap(bool(signed), alpha),
        norm=Normalize(low, high),
        extent=extent,
        interpolation="bilinear",
        interpolation_stage="data",
    )
    if flaw is not None:
        _note(axes, f"degenerate map\n{flaw}")
    return artist


def show_photo(axes: Axes, image: ArrayLike, saturation: float = 1.0) -> AxesImage:
    """Draw ``image``, ``(H, W, 3)`` floats in [0, 1], without ticks or frame; ``saturation`` as in :func:`overlay`.

    >>> from matplotlib.figure import Figure
    >>> artist = show_photo(Figure().add_subplot(), np.zeros((4, 6, 3)))
    >>> [tuple(float(edge) for edge in edges) for edges in (artist.axes.get_xlim(), artist.axes.get_ylim())]
    [(-0.5, 5.5), (3.5, -0.5)]
    """
    image = checked_image(image)
    if saturation < 1:
        grey = image @ np.array([0.299, 0.587, 0.114])
        image = saturation * image + (1 - saturation) * grey[..., None]
    axes.set_axis_off()
    # Smooth at any zoom and exact at 1:1, where the default switches between blocks and smoothing.
    return axes.imshow(np.clip(image, 0, 1), interpolation="catrom")


def checked_image(image: ArrayLike, name: str = "image") -> NDArray[np.floating]:
    """``image`` as an array, or a ValueError that says how to mend it.

    >>> checked_image(np.zeros((3, 8, 8)))
    Traceback (most recent call last):
    ValueError: `image` must have shape (H, W, 3), got (3, 8, 8); move the channels last
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        remedy = "; move the channels last" if image.ndim == 3 and image.shape[0] == 3 else ""
        raise ValueError(f"`{name}` must have shape (H, W, 3), got {image.shape}{remedy}")
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"`{name}` must hold floats in [0, 1], got {image.dtype}; divide 8-bit pixels by 255")
    # Resampling may overshoot a little; a normalised image goes far beyond.
    if not (image.min() >= -0.1 and image.max() <= 1.1):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got [{image.min():.3g}, {image.max():.3g}]; undo the model's normalisation"
        )
    return image


def checked_heatmap(heatmap: ArrayLike, name: str = "heatmap") -> NDArray[np.float64]:
    """``heatmap`` as an array, or a ValueError that says how to mend it.

    >>> checked_heatmap(np.zeros((5, 8, 8)))
    Traceback (most recent call last):
    ValueError: `heatmap` must have shape (h, w), got (5, 8, 8); draw one map of a batch at a time
    """
    heatmap = np.asarray(heatmap, dtype=np.float64)
    if heatmap.ndim != 2 or heatmap.size == 0:
        remedy = "; draw one map of a batch at a time" if heatmap.ndim > 2 else ""
        raise ValueError(f"`{name}` must have shape (h, w), got {heatmap.shape}{remedy}")
    return heatmap


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha <= 1:
        raise ValueError(f"`alpha` must lie in (0, 1], got {alpha}")


def _explicit_limits(limit: float | tuple[float, float], signed: bool) -> tuple[float, float]:
    low, high = limit if isinstance(limit, tuple) else (-limit if signed else 0.0, limit)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"`limit` must be a finite positive number or (low, high) with low < high, got {limit}")
    if signed and low != -high:
        raise ValueError(f"`limit` of a signed map must be symmetric about zero, got {limit}; pass one number")
    return float(low), float(high)


def _note(axes: Axes, text: str) -> None:
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=8, color="#1a1a1a", bbox=box)
