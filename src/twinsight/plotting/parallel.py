"""Parallel coordinates of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from twinsight.plotting.charts import COLORS, CONTROL, chart_axes, style
from twinsight.plotting.figure import INK, MUTED, RULE
from twinsight.plotting.furniture import readable


def draw_parallel(
    lines: Sequence[Mapping[str, float | str | None]],
    columns: Sequence[str] | None = None,
    color: str | None = None,
    better: Mapping[str, Literal["high", "low"]] | None = None,
    axes: Axes | None = None,
    title: str | None = None,
    inches: float | None = None,
) -> Axes:
    """Parallel coordinates: a vertical axis for each column, a line for each run of a sweep.

    Args:
        lines: one mapping for each run: options, as text or numbers, and scores. A value that is missing, None or NaN
            interrupts the line.
        columns: from left to right; None takes all, in the order in which they first appear.
        color: column that colours the lines: one of ``COLORS`` for each text, from dark to bright for numbers. None is
            the first column.
        better: ``"low"`` turns an axis over, so that up is good on all of them; a column named here gets an arrow.
        axes: where to draw; None makes a figure.
        title: written above the axes.
        inches: width of the figure; None is 6.4.

    Raises:
        ValueError: no line, fewer than two columns, an unknown name, or numbers and texts in one column.

    >>> axes = draw_parallel([{"model": "a", "si": 0.2, "sd": 0.5}, {"model": "b", "si": 0.4, "sd": 0.1}],
    ...                      better={"si": "high", "sd": "low"})
    >>> [text.get_text() for text in axes.get_xticklabels()], [line.get_ydata().tolist() for line in axes.lines[-2:]]
    (['model', 'si ↑', 'sd ↓'], [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    """
    better = dict(better or {})
    found = list(dict.fromkeys(name for line in lines for name in line))
    names = found if columns is None else list(columns)
    color = color or next(iter(names), "")
    unknown = {*names, *better, color} - {*found}
    if len(names) < 2 or not lines or unknown:
        raise ValueError(
            f"`lines` needs a line, `columns` two names; names that no line has: {', '.join(sorted(unknown)) or 'none'}"
        )
    axes = chart_axes(axes, inches, 0.5)
    scales = {name: _Scale(name, [line.get(name) for line in lines], better.get(name)) for name in {*names, color}}
    ramp = colormaps["viridis"]
    for place, name in enumerate(names):
        axes.axvline(place, color=RULE, linewidth=1, zorder=0)
        for height, text in scales[name].ticks:
            axes.annotate(
                text,
                (place, height),
                xytext=(3, 0) if place else (-4, 0),  # those of the first axis stand before it
                ha="left" if place else "right",
                annotation_clip=False,
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                color=MUTED,
                parse_math=False,
                zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
            )
    for line in lines:
        height = scales[color].place(line.get(color))
        paint = CONTROL if np.isnan(height) else ramp(0.9 * height)
        if scales[color].texts and not np.isnan(height):
            paint = COLORS[scales[color].texts.index(str(line[color])) % len(COLORS)]
        heights = [scales[name].place(line.get(name)) for name in names]
        axes.plot(range(len(names)), heights, color=paint, linewidth=1.2, alpha=0.75, marker="o", markersize=2.5)
    style(axes, title, grid=None)
    arrows = {"high": " ↑", "low": " ↓"}
    axes.set_xticks(range(len(names)), [f"{name}{arrows.get(better.get(name, ''), '')}" for name in names])
    axes.set_yticks([])
    axes.tick_params(axis="x", labelcolor=INK)
    axes.set_xlim(-0.05, len(names) - 1 + 0.35)
    axes.set_ylim(-0.06, 1.06)
    axes.spines[:].set_visible(False)
    return axes


class _Scale:
    """Where values of one column lie between 0 and 1."""

    def __init__(self, name: str, values: Sequence[float | str | None], better: str | None) -> None:
        present = [value for value in values if value is not None]
        self.texts = list(dict.fromkeys(value for value in present if isinstance(value, str)))
        if self.texts and len(self.texts) < len(set(present)):
            raise ValueError(f"`lines` must hold either numbers or texts in {name!r}, not both")
        numbers = [float(value) for value in present if not isinstance(value, str) and np.isfinite(value)]
        self.low, self.high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
        self.turned = better == "low"
        marks: list[float] | list[str] = self.texts
        if not self.texts:
            marks = list(dict.fromkeys(np.linspace(self.low, self.high, 3).tolist()))
        self.ticks = [(self.place(mark), mark if isinstance(mark, str) else _plain(mark)) for mark in marks]

    def place(self, value: float | str | None) -> float:
        if value is None or (not isinstance(value, str) and not np.isfinite(value)):
            return float("nan")
        if isinstance(value, str):
            height = self.texts.index(value) / max(1, len(self.texts) - 1) if len(self.texts) > 1 else 0.5
        else:
            height = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return 1 - height if self.turned else height


def _plain(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 10_000 else readable(value)
