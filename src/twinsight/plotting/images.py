"""Images that a method made, with how it got there: one page for a grid of them, and animations."""

import os
import uuid
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from twinsight.plotting.charts import COLORS
from twinsight.plotting.figure import MUTED, RULE, PixelFigure, checked_path
from twinsight.plotting.furniture import HEADER, draw_header, readable
from twinsight.plotting.heatmap import checked_image, show_photo

# Lengths in pixels.
MARGIN, GAP, CAPTION, TRACE, TICKS, LABELS = 36, 24, 30, 170, 52, 44
PANEL_HEIGHTS, CONTENT_WIDTHS = (256, 448), (900, 1600)


def draw_images(
    views: Mapping[str, ArrayLike],
    images: Mapping[str, ArrayLike],
    traces: Mapping[str, ArrayLike],
    similarity: float,
    title: str | None = None,
    subtitle: str | None = None,
    trace_label: str = "Objective",
    path: str | Path | None = None,
) -> Figure:
    """One page: the views, the images made from them as a grid, and under each column how its images came about.

    Args:
        views: ``(H, W, 3)`` floats in [0, 1] by their captions, drawn on the left.
        images: the same, all of one size, by name. ``"row/column"`` places an image in a grid, rows and columns in
            the order in which they are first named; names without a slash make one row.
        traces: for each image, by the same name, what was optimised, step by step; of any length.
        similarity: the model's score of the pair.
        title: what made the images.
        subtitle: what was explained.
        trace_label: what the traces hold.
        path: PNG at 150 dpi or PDF to write; it appears whole.

    Returns:
        the figure; its axes are the views, the images row by row, and the traces, one axes per column.

    Raises:
        ValueError: no image, a wrong shape or range, names of images and traces differ, or ``path`` is neither PNG
            nor PDF.

    >>> grey = np.full((8, 8, 3), 0.5)
    >>> figure = draw_images({"View 1": grey}, {"a": grey, "b": grey}, {"a": [0.0, 1.0], "b": [1.0, 0.5]}, 0.9)
    >>> len(figure.axes)
    5
    """
    if path is not None:
        checked_path(path)
    if not images or images.keys() != traces.keys():
        raise ValueError(f"`images` and `traces` must have the same names, got {[*images]} and {[*traces]}")
    shown = {caption: checked_image(view, caption) for caption, view in views.items()}
    made = {_place(name): checked_image(image, name) for name, image in images.items()}
    rows, columns = (list(dict.fromkeys(place[axis] for place in made)) for axis in (0, 1))

    # The views stand in one column beside a grid, in one row before a single row.
    grid = len(rows) > 1
    before = min(1, len(shown)) if grid else len(shown)
    # A single column is too narrow for its trace, which gets the width of the page.
    wide = len(columns) == 1
    first = next(iter(made.values()))
    height, width = _panel_size(first.shape[0], first.shape[1], before + len(columns), wide)
    content = (before + len(columns)) * (width + GAP) - GAP
    top = MARGIN + HEADER + CAPTION * grid
    traces_top = top + len(rows) * (CAPTION + height + GAP) + CAPTION * wide
    page = PixelFigure(content + 2 * MARGIN, traces_top + TRACE + TICKS + MARGIN)
    draw_header(page, MARGIN, content, similarity, title, subtitle)

    def corner(row: int, column: int) -> tuple[int, int]:
        return MARGIN + column * (width + GAP), top + row * (CAPTION + height + GAP)

    for number, (caption, view) in enumerate(shown.items()):
        left, above = corner(number, 0) if grid else corner(0, number)
        page.write(left, above, caption, size=8.5, color=MUTED, width=width)
        show_photo(page.axes(left, above + CAPTION, width, height), view)
    colors = dict(zip(rows, cycle(COLORS), strict=False))
    decades = _spans_decades(list(traces.values()))
    for (row, column), image in made.items():
        left, above = corner(rows.index(row), before + columns.index(column))
        last = readable(float(np.asarray(traces[_name(row, column)])[-1]))
        room = width - page.width_of(page.write(left + width, above, last, size=8.5, align="right")) - 10
        if grid:
            page.write(left, above, row, size=8.5, color=colors[row], weight="bold", width=room)
        else:
            page.write(left, above, column, size=8.5, color=MUTED, width=room)
        show_photo(page.axes(left, above + CAPTION, width, height), image)
    for number, column in enumerate(columns):
        left = MARGIN if wide else corner(0, before + number)[0]
        if grid:
            page.write(corner(0, before + number)[0], top - CAPTION, column, size=8.5, color=MUTED, width=width)
        axes = page.axes(left + LABELS, traces_top, (content if wide else width) - LABELS, TRACE)
        lines = [(traces[_name(row, column)], colors[row]) for row in rows if (row, column) in made]
        _draw_traces(axes, lines, decades)
    room = content if wide else width
    page.write(MARGIN, traces_top - CAPTION * wide, trace_label, size=8.5, color=MUTED, width=room)
    if path is not None:
        page.save(path)
    return page.figure


def write_gif(
    frames: ArrayLike, path: str | Path, seconds: float = 4.0, hold: float = 1.5, side: int | None = 256
) -> Path:
    """Write an endless animation in one step: the file is there whole or not at all. Folders are made as needed.

    Args:
        frames: ``(K, H, W, 3)`` floats in [0, 1]. Equal frames in a row are stored as one that stays longer.
        path: ends in ``.gif``.
        seconds: duration of all frames together.
        hold: what the last frame stays longer.
        side: frames whose longer side is shorter are enlarged to it, in pixels; None leaves them as they are.

    Raises:
        ValueError: a wrong shape, range or name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Image.open(write_gif(np.linspace(0, 1, 5).reshape(5, 1, 1, 1) * np.ones((5, 8, 8, 3)),
    ...                               Path(folder) / "made.gif")) as animation:
    ...         animation.n_frames, animation.size
    (5, (256, 256))
    """
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"`path` must end in .gif, got {str(path)!r}")
    frames = np.asarray(frames)
    if frames.ndim != 4 or len(frames) == 0:
        raise ValueError(f"`frames` must have shape (K, H, W, 3) with K >= 1, got {frames.shape}")
    pictures = [_picture(checked_image(frame, "frames"), side) for frame in frames]
    durations = [round(1000 * seconds / len(pictures))] * len(pictures)
    durations[-1] += round(1000 * hold)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        pictures[0].save(
            unfinished, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _place(name: str) -> tuple[str, str]:
    row, slash, column = name.partition("/")
    return (row, column) if slash else ("", name)


def _name(row: str, column: str) -> str:
    return f"{row}/{column}" if row else column


def _panel_size(image_height: int, image_width: int, columns: int, wide: bool) -> tuple[int, int]:
    """Height and width of a panel, within the limits for a page of ``columns`` of them."""
    ratio = image_width / image_height
    narrow, broad = ((limit - GAP * (columns - 1)) / columns for limit in CONTENT_WIDTHS)
    width = float(np.clip(image_height, *PANEL_HEIGHTS)) * ratio
    width = min(max(width, narrow) if wide else width, broad)
    return max(1, round(width / ratio)), max(1, round(width))


def _draw_traces(axes: Axes, lines: Sequence[tuple[ArrayLike, str]], decades: bool) -> None:
    for line, color in lines:
        values = np.asarray(line, dtype=float)
        axes.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=1.6)
    axes.margins(x=0.01, y=0.08)
    axes.set_xlabel("Step", fontsize=7.5, color=MUTED)
    axes.tick_params(labelsize=7.5, colors=MUTED, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if decades:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _spans_decades(traces: Sequence[ArrayLike]) -> bool:
    """Whether traces are drawn on a logarithmic scale: all positive, the largest value 20 times the smallest."""
    values = np.concatenate([np.asarray(trace, dtype=float).ravel() for trace in traces])
    return bool(np.isfinite(values).all() and values.min() > 0 and values.max() > 20 * values.min())


def _picture(frame: NDArray, side: int | None) -> Image.Image:
    picture = Image.fromarray((np.clip(frame, 0, 1) * 255 + 0.5).astype(np.uint8))
    if side is not None and max(picture.size) < side:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return picture
