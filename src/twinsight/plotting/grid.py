"""Many explanations of one pair side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from twinsight.plotting.figure import MUTED, PixelFigure, checked_png, write_png
from twinsight.plotting.furniture import HEADER, draw_header
from twinsight.plotting.heatmap import checked_heatmap, checked_image, overlay, show_photo

# Lengths in pixels; a column holds the two views of one method under its name.
MARGIN, GAP, BAND_GAP, CAPTION = 36, 14, 26, 30
PANEL_HEIGHTS, CONTENT_WIDTHS = (176, 256), (640, 1700)


def draw_grid(
    view1: ArrayLike,
    view2: ArrayLike,
    maps: Mapping[str, tuple[ArrayLike, ArrayLike | None]],
    similarity: float,
    title: str | None = None,
    subtitle: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """One figure: the views, then for each method its heatmap over view 1 above that over view 2, in bands of columns.

    Methods differ in what their values mean, and some say far more about one view than about the other: each map has a
    colour scale of its own. :func:`draw_pair` has one for both.

    Args:
        view1, view2: ``(H, W, 3)`` floats in [0, 1].
        maps: both heatmaps by name of the method, of any size; None for view 2 where a method makes one map only.
        similarity: the model's score of the pair.
        title: what is compared.
        subtitle: what was explained.
        path: PNG to write at 150 dpi; it appears whole.

    Raises:
        ValueError: no method, an argument of wrong shape or range, or ``path`` is no PNG.

    >>> grey = np.full((8, 8, 3), 0.5)
    >>> figure = draw_grid(grey, grey, {"Grad-CAM": (np.eye(4), np.eye(4)), "One map": (np.eye(4), None)}, 0.9)
    >>> len(figure.axes)
    6
    """
    if path is not None:
        checked_png(path)
    if not maps:
        raise ValueError("`maps` must hold the heatmaps of at least one method")
    views = (checked_image(view1, "view1"), checked_image(view2, "view2"))
    height = int(np.clip(max(view.shape[0] for view in views), *PANEL_HEIGHTS))
    widths = [max(1, round(height * view.shape[1] / view.shape[0])) for view in views]
    wide = max(widths)
    columns = min(1 + len(maps), max(2, (CONTENT_WIDTHS[1] + GAP) // (wide + GAP)))
    bands = -(-(1 + len(maps)) // columns)
    columns = -(-(1 + len(maps)) // bands)  # bands of equal length
    content = max(CONTENT_WIDTHS[0], columns * (wide + GAP) - GAP)
    tall = CAPTION + 2 * height + GAP
    page = PixelFigure(content + 2 * MARGIN, 2 * MARGIN + HEADER + bands * (tall + BAND_GAP) - BAND_GAP)
    draw_header(page, MARGIN, content, similarity, title, subtitle)

    for place, (name, pair) in enumerate([("The two views", None), *maps.items()]):
        left = MARGIN + place % columns * (wide + GAP)
        top = MARGIN + HEADER + place // columns * (tall + BAND_GAP)
        page.write(left, top, name, size=8, color=MUTED, width=wide)
        heatmaps = (None, None) if pair is None else pair
        for row, (view, heatmap, width) in enumerate(zip(views, heatmaps, widths, strict=True)):
            axes = page.axes(left, top + CAPTION + row * (height + GAP), width, height)
            if heatmap is not None:
                overlay(axes, view, checked_heatmap(heatmap, name), signed=None)
                continue
            show_photo(axes, view, 1.0 if pair is None else 0.0)
            if pair is not None:
                box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
                axes.text(0.5, 0.5, "one map: view 1", transform=axes.transAxes, ha="center", fontsize=7, bbox=box)
    if path is not None:
        write_png(page.figure, path)
    return page.figure
