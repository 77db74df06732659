"""One picture per pair: the views, what of them the explainer points at, and how similar the model finds them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from twinsight.plotting.figure import MUTED, PixelFigure, checked_path
from twinsight.plotting.furniture import BAR, HEADER, ScoreTable, draw_color_bar, draw_header
from twinsight.plotting.heatmap import checked_heatmap, checked_image, overlay, show_photo
from twinsight.plotting.original import Place, overlay_on_photo
from twinsight.plotting.scale import shared_scale

# Lengths in pixels. Panels keep a view's own pixels within these heights, and a row of them within these widths.
MARGIN, GAP, CAPTION = 36, 14, 28
PANEL_HEIGHTS, ROW_WIDTHS = (384, 512), (640, 1400)


def draw_pair(
    view1: ArrayLike,
    view2: ArrayLike,
    map1: ArrayLike,
    map2: ArrayLike | None,
    similarity: float,
    title: str | None = None,
    subtitle: str | None = None,
    scores: Mapping[str, float] | None = None,
    path: str | Path | None = None,
    signed: bool | None = None,
    photos: tuple[ArrayLike, ArrayLike] | None = None,
    places: tuple[Place, Place] | None = None,
    inches: float | None = None,
) -> Figure:
    """One figure: both views as they are, the heatmaps over them on one shared scale, the similarity and scores.

    With ``photos``, a last row shows where both views lie on what they were cut from, and their maps there.

    Views that are 384 to 512 pixels high keep their pixels, one to one; others are scaled into that range.

    Args:
        view1: ``(H, W, 3)`` floats in [0, 1], of any aspect ratio.
        view2: the same, of a size of its own.
        map1: ``(h, w)`` heatmap of view 1, of any size; see :func:`twinsight.plotting.overlay`.
        map2: heatmap of view 2; None for explainers that make one map only.
        similarity: the model's score of the pair.
        title: what made the maps, as a reader should see it ("Conditional occlusion").
        subtitle: what was explained (file name, model); a long one loses its middle.
        scores: metric values by name, written under the maps.
        path: PNG or PDF to write; it appears whole, and its folder is made if needed.
        signed: as for :func:`twinsight.plotting.overlay`; None decides from both maps together.
        photos: ``(H, W, 3)`` floats in [0, 1], the whole photos behind view 1 and view 2, mostly the same one.
        places: where on them the views lie; needed with ``photos``.
        inches: width for print, such as ``plotting.COLUMN``: no margins, and PNGs at 300 dpi. None makes a picture for
            the screen, at 150 dpi.

    Raises:
        ValueError: an argument has a wrong shape or range, ``photos`` comes without ``places``, or ``path`` is neither
            PNG nor PDF.

    >>> figure = draw_pair(np.zeros((64, 64, 3)), np.ones((64, 64, 3)), np.eye(8), None, 0.25, title="Grad-CAM")
    >>> [text.get_text() for text in figure.texts][:3]
    ['0.250', 'similarity', 'Grad-CAM']
    """
    if path is not None:
        checked_path(path)
    if (photos is None) != (places is None):
        raise ValueError("`photos` and `places` belong together: give both or neither")
    views = [checked_image(view1, "view1"), checked_image(view2, "view2")]
    maps = [checked_heatmap(map1, "map1")] + ([] if map2 is None else [checked_heatmap(map2, "map2")])
    signed, limit = shared_scale(maps, signed)

    # Two maps lie under their views; a single one stands beside them, which leaves no hole in the page.
    captions = ["View 1", "View 2"] if len(maps) == 2 else ["View 1", "View 2", "One map, over view 1"]
    height, widths = _panel_size([*views, views[0]][: len(captions)])
    lefts = [MARGIN + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    content = max(ROW_WIDTHS[0], lefts[-1] + widths[-1] - MARGIN)
    panels = height if len(maps) == 1 else 2 * height + GAP
    bar = 0 if limit is None else BAR
    wholes = [] if photos is None else [checked_image(photo, "photos") for photo in photos]
    whole_height, whole_widths = _fitting(wholes, lefts[min(1, len(lefts) - 1)] + widths[1] - MARGIN)
    row = CAPTION + GAP + whole_height if wholes else 0
    table = ScoreTable(scores or {}, content)
    page_height = 2 * MARGIN + HEADER + CAPTION + panels + bar + row + table.height
    page = PixelFigure(content + 2 * MARGIN, page_height, inches, MARGIN)

    draw_header(page, MARGIN, content, similarity, title, subtitle)
    top = MARGIN + HEADER
    for left, width, caption in zip(lefts, widths, captions, strict=True):
        page.write(left, top, caption, size=8.5, color=MUTED, width=width)
    top += CAPTION
    for left, width, view in zip(lefts, widths, views, strict=False):
        show_photo(page.axes(left, top, width, height), view)
    first, top_of_maps = (2, top) if len(maps) == 1 else (0, top + height + GAP)
    artists = [
        overlay(page.axes(left, top_of_maps, width, height), view, heatmap, signed=signed, limit=limit)
        for left, width, view, heatmap in zip(lefts[first:], widths[first:], views, maps, strict=False)
    ]
    top += panels
    if limit is not None:
        draw_color_bar(page, artists[0], MARGIN, top, content)
    if places is not None:
        page.write(MARGIN, top + bar + GAP, "Both views on the whole photo", size=8.5, color=MUTED, width=content)
        left = MARGIN
        for width, photo, place, heatmap in zip(whole_widths, wholes, places, [*maps, None], strict=False):
            axes = page.axes(left, top + bar + GAP + CAPTION, width, whole_height)
            overlay_on_photo(axes, photo, heatmap, place, signed=signed, limit=limit)
            left += width + GAP
    table.draw(page, MARGIN, top + bar + row)
    if path is not None:
        page.save(path)
    return page.figure


def draw_explanation(
    axes1: Axes,
    axes2: Axes,
    view1: ArrayLike,
    view2: ArrayLike,
    map1: ArrayLike,
    map2: ArrayLike | None,
    signed: bool | None = None,
    limit: float | tuple[float, float] | None = None,
) -> tuple[AxesImage, AxesImage | None]:
    """Draw both heatmaps over their views on axes of your own, on one scale; shapes as for :func:`draw_pair`.

    Without ``map2`` the second axes show view 2 as it is and say so. ``signed`` and ``limit`` are those of
    :func:`twinsight.plotting.overlay`; None decides from both maps together.

    Returns:
        The heatmaps' image artists, for colour bars; the second is None without ``map2``.

    >>> left, right = Figure().subplots(1, 2)
    >>> artists = draw_explanation(left, right, np.zeros((8, 8, 3)), np.ones((8, 8, 3)), np.eye(4), 2 * np.eye(4))
    >>> [artist.get_clim() for artist in artists]
    [(0.0, 2.0), (0.0, 2.0)]
    """
    maps = [checked_heatmap(map1, "map1")] + ([] if map2 is None else [checked_heatmap(map2, "map2")])
    signed, shared = shared_scale(maps, signed)
    limit = shared if limit is None else limit
    axes1.set_title("View 1", fontsize=9)
    artist1 = overlay(axes1, view1, map1, signed=signed, limit=limit)
    if map2 is None:
        axes2.set_title("View 2 (one map: view 1)", fontsize=9)
        show_photo(axes2, view2)
        return artist1, None
    axes2.set_title("View 2", fontsize=9)
    return artist1, overlay(axes2, view2, map2, signed=signed, limit=limit)


def _fitting(photos: Sequence[NDArray], width: int) -> tuple[int, list[int]]:
    """The height that a row of photos shares, and their widths, so that the row is ``width`` pixels wide."""
    if not photos:
        return 0, []
    ratios = [photo.shape[1] / photo.shape[0] for photo in photos]
    height = min((width - GAP * (len(photos) - 1)) / sum(ratios), PANEL_HEIGHTS[0])
    return max(1, round(height)), [max(1, round(height * ratio)) for ratio in ratios]


def _panel_size(views: Sequence[NDArray]) -> tuple[int, list[int]]:
    """The height that a row of views shares, and their widths."""
    ratios = [view.shape[1] / view.shape[0] for view in views]
    height = int(np.clip(max(view.shape[0] for view in views), *PANEL_HEIGHTS))
    room = ROW_WIDTHS[1] - GAP * (len(views) - 1)
    height = max(1, min(height, int(room / sum(ratios))))
    return height, [max(1, round(height * ratio)) for ratio in ratios]
