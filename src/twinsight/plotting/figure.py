"""Figures laid out in pixels, text that knows its own width, and PNG files that appear whole."""

import os
import uuid
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

DPI = 150
INK, MUTED, RULE = "#1a1a1a", "#6a6a6a", "#d9d9d9"


class PixelFigure:
    """A white figure of ``width`` x ``height`` pixels whose parts are placed in pixels from the top left corner.

    >>> page = PixelFigure(300, 200)
    >>> page.write(10, 10, "a view", size=8).get_text()
    'a view'
    >>> page.figure.canvas.get_width_height()
    (300, 200)
    """

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        # The canvas truncates: without the excess a rounding error costs a row of pixels, and the photos their 1:1.
        self.figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes that fill a rectangle of pixels."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def write(
        self,
        left: float,
        top: float,
        text: str,
        *,
        size: float,
        color: str = INK,
        weight: str = "normal",
        align: str = "left",
        width: float | None = None,
    ) -> Text:
        """One line of text: its ascenders end at ``top``; ``left`` is its right end for ``align="right"``.

        Text wider than ``width`` pixels loses its middle, so that the end of a file name survives. Dollar signs are
        text, not mathematics.
        """
        artist = self.figure.text(
            left / self.width,
            1 - top / self.height,
            " ".join(text.split()),
            fontsize=size,
            color=color,
            fontweight=weight,
            fontfamily="DejaVu Sans",
            ha=align,
            va="top",
            parse_math=False,
        )
        if width is not None:
            self._shorten(artist, width)
        return artist

    def width_of(self, artist: Text) -> float:
        """Width of a text in pixels."""
        return artist.get_window_extent(self._canvas.get_renderer()).width

    def _shorten(self, artist: Text, width: float) -> None:
        text = artist.get_text()
        if self.width_of(artist) <= width:
            return
        fits, too_many = 0, len(text)
        while too_many - fits > 1:
            kept = (fits + too_many) // 2
            artist.set_text(_without_middle(text, kept))
            if self.width_of(artist) <= width:
                fits = kept
            else:
                too_many = kept
        artist.set_text(_without_middle(text, fits))


def write_png(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` to ``path`` in one step: the file is there whole or not at all. Folders are made as needed.

    Raises:
        ValueError: ``path`` does not end in ``.png``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = write_png(PixelFigure(30, 20).figure, Path(folder) / "pair.png")
    ...     written.name, sorted(file.name for file in Path(folder).iterdir())
    ('pair.png', ['pair.png'])
    """
    path = checked_png(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        # Without the name of the software the same picture is the same bytes under every version.
        figure.savefig(unfinished, format="png", dpi=DPI, metadata={"Software": None})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def checked_png(path: str | Path) -> Path:
    """``path``, refused before any drawing if its name asks for another format.

    >>> checked_png("pair.jpg")
    Traceback (most recent call last):
    ValueError: `path` must end in .png, got 'pair.jpg'
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"`path` must end in .png, got {str(path)!r}")
    return Path(path)


def _without_middle(text: str, kept: int) -> str:
    tail = kept * 2 // 5
    return text[: kept - tail].rstrip() + "…" + text[len(text) - tail :].lstrip()
