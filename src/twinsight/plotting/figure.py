"""Figures laid out in pixels, text that knows its own width, and PNG and PDF files that appear whole."""

import os
import sys
import uuid
from contextlib import nullcontext
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

DPI, PRINT_DPI = 150, 300
COLUMN, PAGE = 3.5, 7.16
"""Width in inches of a column and of both columns of a page, as IEEE's journals have them."""
INK, MUTED, RULE = "#1a1a1a", "#6a6a6a", "#d9d9d9"


class PixelFigure:
    """A white figure of ``width`` x ``height`` pixels whose parts are placed in pixels from the top left corner.

    With ``inches`` it is made for print: when it is written, all but 14 pixels of its ``margin`` are cut off, and the
    rest is so wide; text keeps its size relative to the page.

    >>> page = PixelFigure(300, 200)
    >>> page.write(10, 10, "a view", size=8).get_text()
    'a view'
    >>> page.figure.canvas.get_width_height()
    (300, 200)
    """

    def __init__(self, width: int, height: int, inches: float | None = None, margin: int = 0):
        self.width, self.height = width, height
        self._crop = 0 if inches is None else max(0, margin - 14)
        dpi = DPI if inches is None else (width - 2 * self._crop) / inches
        self._type_scale = DPI / dpi
        self._print = inches is not None
        # The canvas truncates: without the excess a rounding error costs a row of pixels, and the photos their 1:1.
        self.figure = Figure(figsize=((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi, facecolor="white")
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
            fontsize=self.points(size),
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

    def points(self, size: float) -> float:
        """Font size that looks on this page as ``size`` does on one that is not made for print."""
        return size * self._type_scale

    def save(self, path: str | Path) -> Path:
        """Write the page to a PNG or PDF; for print at 300 dpi, else pixel by pixel."""
        if not self._print:
            return write_figure(self.figure, path, DPI)
        dpi = self.figure.dpi
        corners = [(self._crop, self._crop), (self.width - self._crop, self.height - self._crop)]
        return write_figure(self.figure, path, crop=Bbox([(x / dpi, y / dpi) for x, y in corners]))

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


def write_figure(figure: Figure, path: str | Path, dpi: float = PRINT_DPI, crop: Bbox | None = None) -> Path:
    """Write ``figure`` in one step: the file is there whole or not at all. Folders are made as needed.

    Args:
        figure: any figure of matplotlib.
        path: ends in ``.png``, or in ``.pdf`` for vector graphics with embedded fonts.
        dpi: of a PNG, and of the photos in a PDF.
        crop: part of the figure to write, in inches from its lower left corner.

    Raises:
        ValueError: ``path`` ends in anything else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = write_figure(PixelFigure(30, 20).figure, Path(folder) / "pair.png")
    ...     written.name, sorted(file.name for file in Path(folder).iterdir())
    ('pair.png', ['pair.png'])
    """
    path = checked_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    kind = path.suffix.lower().removeprefix(".")
    # Without software and date the same picture is the same bytes, whenever and under whichever version.
    metadata = {"Software": None} if kind == "png" else {"Creator": None, "Producer": None, "CreationDate": None}
    # Publishers ask for TrueType fonts; the default is Type 3. The setting is the whole process's: PNGs leave it alone.
    fonts = matplotlib.rc_context({"pdf.fonttype": 42}) if kind == "pdf" else nullcontext()
    try:
        with fonts:
            figure.savefig(unfinished, format=kind, dpi=dpi, metadata=metadata, bbox_inches=crop)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def checked_path(path: str | Path) -> Path:
    """``path``, refused before any drawing if its name asks for another format.

    >>> checked_path("pair.jpg")
    Traceback (most recent call last):
    ValueError: `path` must end in .png or .pdf, got 'pair.jpg'
    """
    if Path(path).suffix.lower() not in (".png", ".pdf"):
        raise ValueError(f"`path` must end in .png or .pdf, got {str(path)!r}")
    return Path(path)


def blank_figure(width: float, height: float, dpi: float = DPI) -> Figure:
    """A white figure of ``width`` x ``height`` inches with constrained layout, shown at once in a notebook.

    Elsewhere it is drawn without pyplot, which keeps every figure it has made.

    >>> blank_figure(3.5, 2).get_size_inches().tolist()
    [3.5, 2.0]
    """
    if in_notebook():
        from matplotlib import pyplot

        return pyplot.figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def in_notebook() -> bool:
    """Whether an IPython kernel runs this process, and will show pyplot's figures.

    >>> in_notebook()
    False
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _without_middle(text: str, kept: int) -> str:
    tail = kept * 2 // 5
    return text[: kept - tail].rstrip() + "…" + text[len(text) - tail :].lstrip()
