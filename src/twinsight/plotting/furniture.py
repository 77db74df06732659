"""What stands around the photos of a page: the header, the colour bar, the table of scores."""

import math
from collections.abc import Mapping

from matplotlib.image import AxesImage

from twinsight.plotting.figure import MUTED, PixelFigure

# Heights in pixels; a bar and a row of scores include the space above them.
HEADER, BAR, SCORES = 92, 40, 72
GROUND = "#808080"


def draw_header(
    page: PixelFigure, margin: int, content: int, similarity: float, title: str | None, subtitle: str | None
) -> None:
    """Title and subtitle on the left, the similarity on the right, ``margin`` from the top and the sides."""
    right = margin + content
    value = page.write(right, margin - 6, readable(similarity), size=21, weight="bold", align="right")
    label = page.write(right, margin + 46, "similarity", size=8.5, color=MUTED, align="right")
    room = content - max(page.width_of(value), page.width_of(label)) - margin
    if title:
        page.write(margin, margin, title, size=14, weight="bold", width=room)
    if subtitle:
        page.write(margin, margin + (46 if title else 4), subtitle, size=8.5, color=MUTED, width=room)


def draw_color_bar(page: PixelFigure, artist: AxesImage, left: int, top: int, width: int) -> None:
    """A slim bar with its name and both ends in one line under ``top``."""
    middle = top + BAR - 14
    name = page.write(left, middle - 9, "Importance", size=8, color=MUTED)
    low, high = ("0" if value == 0 else readable(value) for value in artist.get_clim())
    start = left + page.width_of(name) + 24
    low_text = page.write(start, middle - 9, low, size=8)
    high_text = page.write(left + width, middle - 9, high, size=8, align="right")
    start += page.width_of(low_text) + 10
    end = left + width - page.width_of(high_text) - 10
    axes = page.axes(start, middle - 5, end - start, 10)
    # On the grey of a photo of middling brightness the bar looks as the map does.
    axes.set_facecolor(GROUND)
    page.figure.colorbar(artist, cax=axes, orientation="horizontal", ticks=[]).outline.set_visible(False)


class ScoreTable:
    """Metric values under their names, in columns of equal width and as few rows as fit into ``width`` pixels.

    >>> ScoreTable({"si": 0.8, "sd": 0.2}, 640).rows
    [[('si', '0.800'), ('sd', '0.200')]]
    """

    def __init__(self, scores: Mapping[str, float], width: int):
        cells = [(name, readable(value)) for name, value in scores.items()]
        longest = max((len(name) for name in scores), default=0)
        # Wide letters take about 11 pixels at this size.
        fitting = max(1, width // max(96, 11 * longest + 24))
        row_count = math.ceil(len(cells) / fitting)
        columns = math.ceil(len(cells) / row_count) if row_count else 0
        self.rows = [cells[start : start + columns] for start in range(0, len(cells), columns or 1)]
        self.column_width = min(width / (columns or 1), max(160, 11 * longest + 24))
        self.height = SCORES * len(self.rows)

    def draw(self, page: PixelFigure, left: int, top: int) -> None:
        """Draw the table with a rule above it."""
        for number, row in enumerate(self.rows):
            for column, (name, value) in enumerate(row):
                x, y = left + column * self.column_width, top + number * SCORES + 24
                page.write(x, y, name, size=7.5, color=MUTED, width=self.column_width - 12)
                page.write(x, y + 22, value, size=10)


def readable(value: float) -> str:
    """Three decimals where they say something, a power of ten elsewhere, with a true minus sign.

    >>> readable(0.8712), readable(-0.5), readable(0.00012), readable(float("nan"))
    ('0.871', '−0.500', '1.2e−04', 'n/a')
    """
    if math.isnan(value):
        return "n/a"
    plain = value == 0 or 0.001 <= abs(value) < 10_000
    return (f"{value:.3f}" if plain else f"{value:.1e}").replace("-", "−")
