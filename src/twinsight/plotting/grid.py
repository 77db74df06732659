"""Many explanations side by side: of one pair, or of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from twinsight.plotting.figure import MUTED, PixelFigure, checked_path
from twinsight.plotting.furniture import BAR, HEADER, draw_color_bar, draw_header, readable
from twinsight.plotting.heatmap import checked_heatmap, checked_image, overlay, show_photo
from twinsight.plotting.scale import shared_scale

# Lengths in pixels; a column holds the two views of one method under its name.
MARGIN, GAP, BAND_GAP, CAPTION = 36, 14, 26, 30
PANEL_HEIGHTS, CONTENT_WIDTHS = (176, 256), (640, 1700)
# In print, so many pixels are an inch that the smallest text is 6 points.
PRINT_PIXELS = 200

Maps = Mapping[str, tuple[ArrayLike, ArrayLike | None]]
Scale = tuple[bool, tuple[float, float] | None] | None


@dataclass(frozen=True)
class ExplainedPair:
    """One pair of :func:`draw_pairs`.

    Attributes:
        view1, view2: ``(H, W, 3)`` floats in [0, 1].
        maps: both heatmaps by name of the method; None for view 2 where a method makes one map only. A method that is
            missing leaves its place empty.
        similarity: the model's score of the pair.
        name: what was explained.
    """

    view1: ArrayLike
    view2: ArrayLike
    maps: Maps
    similarity: float
    name: str = ""


def draw_grid(
    view1: ArrayLike,
    view2: ArrayLike,
    maps: Maps,
    similarity: float,
    title: str | None = None,
    subtitle: str | None = None,
    path: str | Path | None = None,
    common_scale: bool = False,
    inches: float | None = None,
) -> Figure:
    """One figure: the views, then for each method its heatmap over view 1 above that over view 2, in bands of columns.

    Methods differ in what their values mean, and some say far more about one view than about the other: each map has a
    colour scale of its own, unless they are asked to share one. :func:`draw_pair` has one for both maps of a method.

    Args:
        view1, view2: ``(H, W, 3)`` floats in [0, 1].
        maps: both heatmaps by name of the method, of any size; None for view 2 where a method makes one map only.
        similarity: the model's score of the pair.
        title: what is compared.
        subtitle: what was explained.
        path: PNG or PDF to write; it appears whole.
        common_scale: one scale for all maps, with its colour bar: for methods whose values have the same unit.
        inches: width for print, as for :func:`draw_pair`.

    Raises:
        ValueError: no method, an argument of wrong shape or range, or ``path`` is neither PNG nor PDF.

    >>> grey = np.full((8, 8, 3), 0.5)
    >>> figure = draw_grid(grey, grey, {"Grad-CAM": (np.eye(4), np.eye(4)), "One map": (np.eye(4), None)}, 0.9)
    >>> len(figure.axes)
    6
    """
    if path is not None:
        checked_path(path)
    if not maps:
        raise ValueError("`maps` must hold the heatmaps of at least one method")
    views = (checked_image(view1, "view1"), checked_image(view2, "view2"))
    scale = _common_scale([maps]) if common_scale else None
    height = int(np.clip(max(view.shape[0] for view in views), *PANEL_HEIGHTS))
    widths = [max(1, round(height * view.shape[1] / view.shape[0])) for view in views]
    wide = max(widths)
    limit = CONTENT_WIDTHS[1] if inches is None else round(inches * PRINT_PIXELS)
    columns = min(1 + len(maps), max(2, (limit + GAP) // (wide + GAP)))
    bands = -(-(1 + len(maps)) // columns)
    columns = -(-(1 + len(maps)) // bands)  # bands of equal length
    content = max(CONTENT_WIDTHS[0], columns * (wide + GAP) - GAP)
    tall = CAPTION + 2 * height + GAP
    bottom = MARGIN + HEADER + bands * (tall + BAND_GAP) - BAND_GAP
    bar = BAR if scale and scale[1] else 0
    page = PixelFigure(content + 2 * MARGIN, bottom + bar + MARGIN, inches, MARGIN)
    draw_header(page, MARGIN, content, similarity, title, subtitle)

    artists = []
    for place, (name, pair) in enumerate([("The two views", None), *maps.items()]):
        left = MARGIN + place % columns * (wide + GAP)
        top = MARGIN + HEADER + place // columns * (tall + BAND_GAP)
        page.write(left, top, name, size=8, color=MUTED, width=wide)
        for row, (view, width) in enumerate(zip(views, widths, strict=True)):
            axes = page.axes(left, top + CAPTION + row * (height + GAP), width, height)
            artists.append(_draw_panel(axes, view, pair, row, name, scale))
    if scale and scale[1]:
        draw_color_bar(page, next(artist for artist in artists if artist), MARGIN, bottom, content)
    if path is not None:
        page.save(path)
    return page.figure


def draw_pairs(
    pairs: Sequence[ExplainedPair],
    title: str | None = None,
    path: str | Path | None = None,
    common_scale: bool = False,
    inches: float | None = None,
) -> Figure:
    """One figure: a row for each pair, with view 1 above view 2, and a column for each method.

    Args:
        pairs: what was explained; columns are the methods of all of them, in the order in which they first appear.
        title: what is shown.
        path, common_scale, inches: as for :func:`draw_grid`.

    Raises:
        ValueError: no pair, no method, an argument of wrong shape or range, or ``path`` is neither PNG nor PDF.

    >>> grey, eye = np.full((8, 8, 3), 0.5), np.eye(4)
    >>> pair = ExplainedPair(grey, grey, {"Grad-CAM": (eye, eye)}, 0.9, "cat")
    >>> len(draw_pairs([pair, pair]).axes)
    8
    """
    if path is not None:
        checked_path(path)
    names = list(dict.fromkeys(name for pair in pairs for name in pair.maps))
    if not names:
        raise ValueError("`pairs` must hold the heatmaps of at least one method of at least one pair")
    scale = _common_scale([pair.maps for pair in pairs]) if common_scale else None
    columns = 1 + len(names)
    limit = CONTENT_WIDTHS[1] if inches is None else round(inches * PRINT_PIXELS)
    side = int(np.clip((limit + GAP) // columns - GAP, PANEL_HEIGHTS[0] // 2, PANEL_HEIGHTS[1]))
    content = columns * (side + GAP) - GAP
    head = MARGIN + (CAPTION + BAND_GAP) * bool(title)
    band = CAPTION + 2 * side + GAP // 2 + BAND_GAP
    bottom = head + CAPTION + len(pairs) * band - BAND_GAP
    bar = BAR if scale and scale[1] else 0
    page = PixelFigure(content + 2 * MARGIN, bottom + bar + MARGIN, inches, MARGIN)
    if title:
        page.write(MARGIN, MARGIN, title, size=14, weight="bold", width=content)
    lefts = [MARGIN + column * (side + GAP) for column in range(columns)]
    for left, name in zip(lefts[1:], names, strict=True):
        page.write(left, head, name, size=8, color=MUTED, width=side)
    artists = []
    for number, pair in enumerate(pairs):
        top = head + CAPTION + number * band
        score = page.write(MARGIN + content, top, f"similarity {readable(pair.similarity)}", size=8, align="right")
        page.write(MARGIN, top, pair.name, size=8, width=content - page.width_of(score) - GAP)
        views = (checked_image(pair.view1, "view1"), checked_image(pair.view2, "view2"))
        for row, view in enumerate(views):
            for left, column in zip(lefts, [None, *names], strict=True):
                maps = None if column is None else pair.maps.get(column)
                if column is not None and maps is None:
                    continue
                width, height = _within(side, view.shape[1], view.shape[0])
                above = top + CAPTION + row * (side + GAP // 2)
                axes = page.axes(left + (side - width) / 2, above + (side - height) / 2, width, height)
                artists.append(_draw_panel(axes, view, maps, row, column or "", scale))
    if scale and scale[1]:
        draw_color_bar(page, next(artist for artist in artists if artist), MARGIN, bottom, content)
    if path is not None:
        page.save(path)
    return page.figure


def _draw_panel(
    axes: Axes,
    view: ArrayLike,
    maps: tuple[ArrayLike, ArrayLike | None] | None,
    row: int,
    name: str,
    scale: Scale,
) -> AxesImage | None:
    """One view with its heatmap, None for the view alone."""
    if maps is None:
        show_photo(axes, view)
        return None
    heatmap = maps[row]
    if heatmap is not None:
        signed, limit = scale or (None, None)
        return overlay(axes, view, checked_heatmap(heatmap, name), signed=signed, limit=limit)
    show_photo(axes, view, 0.0)
    box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.text(0.5, 0.5, "one map: view 1", transform=axes.transAxes, ha="center", fontsize=7, bbox=box)
    return None


def _common_scale(maps: Sequence[Maps]) -> tuple[bool, tuple[float, float] | None]:
    both = [heatmap for each in maps for pair in each.values() for heatmap in pair if heatmap is not None]
    return shared_scale([checked_heatmap(heatmap) for heatmap in both])


def _within(side: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of a view that fits a square."""
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
