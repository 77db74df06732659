"""Charts of scores: bars with intervals, the agreement of metrics; and what all charts share."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from twinsight.plotting.figure import DPI, INK, MUTED, RULE, blank_figure
from twinsight.plotting.furniture import readable

# Okabe and Ito's colours, told apart by colour-blind readers, without the yellow that fades on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
CONTROL = "#8c8c8c"
DASHES = ("-", "--", "-.", ":")
WIDTH, NARROW = 6.4, 5.0
"""Inches of a figure that is asked for no width, and those below which legends stand under the axes."""


def draw_bars(
    means: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    axes: Axes | None = None,
    title: str | None = None,
    label: str = "",
    controls: Collection[str] = (),
    inches: float | None = None,
) -> Axes:
    """A horizontal bar for each mean, from zero, with its interval; values stand at the right border.

    Args:
        means: by name, from top to bottom; NaN leaves its line empty and says "n/a".
        intervals: low and high end by name; NaN or missing where there is none.
        axes: where to draw; None makes a figure as high as it has bars.
        title: written above the axes.
        label: of the axis of values.
        controls: names that must lose: hatched grey.
        inches: width of the figure, such as ``plotting.COLUMN``; None is 6.4.

    Raises:
        ValueError: there is nothing to draw, or an interval that does not hold its mean.

    >>> axes = draw_bars({"Grad-CAM": 0.5, "random": 0.25}, {"Grad-CAM": (0.4, 0.7)}, label="SI", controls=["random"])
    >>> [float(bar.get_width()) for bar in axes.patches], [text.get_text() for text in axes.get_yticklabels()]
    ([0.5, 0.25], ['Grad-CAM', 'random'])
    """
    if not means:
        raise ValueError("`means` is empty; give at least one name with its value")
    ends = {name: ends for name, ends in (intervals or {}).items() if np.isfinite(ends).all()}
    for name, (low, high) in ends.items():
        if name not in means or not low <= means[name] <= high:
            raise ValueError(f"`intervals[{name!r}]` must hold the mean of that name, got ({low}, {high})")
    width = inches or WIDTH
    axes = chart_axes(axes, width, (0.7 + 0.22 * len(means)) / width)
    places = np.arange(len(means))
    for place, (name, mean) in zip(places, means.items(), strict=True):
        control = name in controls
        look: dict[str, Any] = (
            {"color": "white", "edgecolor": CONTROL, "hatch": "////"} if control else {"color": COLORS[0]}
        )
        axes.barh(place, mean, height=0.62, linewidth=0.8, **look)
        if name in ends:
            axes.hlines(place, *ends[name], color=INK, linewidth=1.2)
            axes.vlines(ends[name], place - 0.16, place + 0.16, color=INK, linewidth=1.2)
        axes.annotate(
            readable(mean), (1, place), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7.5, color=INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(places, list(means))
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylim(len(means) - 0.4, -0.6)
    axes.margins(x=0.03)
    style(axes, title, grid="x")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(label, fontsize=8.5, color=INK, parse_math=False, loc="right")
    return axes


def draw_agreement(
    tau: ArrayLike,
    names: Sequence[str],
    axes: Axes | None = None,
    title: str | None = None,
    inches: float | None = None,
) -> Axes:
    """A square of rank correlations in [-1, 1], written and coloured: blue below zero, red above.

    Args:
        tau: ``(M, M)``, symmetric; NaN where there is none.
        names: of the M metrics.
        axes: where to draw; None makes a figure.
        title: written above the axes.
        inches: width of the figure, such as ``plotting.COLUMN``; None fits the number of metrics.

    Raises:
        ValueError: ``tau`` is not square, not symmetric, or outside [-1, 1], or does not fit ``names``.

    >>> axes = draw_agreement([[1, -0.5], [-0.5, 1]], ["SI", "SD"])
    >>> [text.get_text() for text in axes.texts]
    ['+1.00', '−0.50', '−0.50', '+1.00']
    """
    values = np.asarray(tau, dtype=np.float64)
    if values.shape != (len(names), len(names)) or not names:
        raise ValueError(f"`tau` must be (M, M) for M `names`, got {values.shape} for {len(names)}")
    if not np.array_equal(values, values.T, equal_nan=True) or (np.abs(values[np.isfinite(values)]) > 1).any():
        raise ValueError("`tau` must be symmetric, with values in [-1, 1]")
    width = inches or min(WIDTH, 1.4 + 0.52 * len(names))
    axes = chart_axes(axes, width, 0.92)
    colors = colormaps["RdBu_r"].with_extremes(bad="#f0f0f0")
    axes.imshow(np.ma.masked_invalid(values), cmap=colors, norm=Normalize(-1.15, 1.15), aspect="equal")
    size = float(np.clip(72 * width * 0.8 / len(names) / 3.6, 4.5, 8))
    for (row, column), value in np.ndenumerate(values):
        text = "n/a" if np.isnan(value) else f"{value:+.2f}".replace("-", "−")
        ink = "white" if abs(value) > 0.7 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    places = np.arange(len(names))
    style(axes, title, grid=None)
    axes.set_xticks(
        places, list(names), rotation=0 if len(names) < 7 else 45, ha="center" if len(names) < 7 else "right"
    )
    axes.set_yticks(places, list(names))
    axes.tick_params(labelcolor=INK, labelsize=min(8, size + 1))
    axes.spines[:].set_visible(False)
    return axes


def chart_axes(axes: Axes | None, inches: float | None, ratio: float) -> Axes:
    """``axes``, or those of a new figure ``inches`` wide and ``ratio`` times as high."""
    if axes is not None:
        return axes
    width = inches or WIDTH
    return blank_figure(width, width * ratio, DPI).add_subplot()


def style(axes: Axes, title: str | None, grid: Literal["x", "y", "both"] | None) -> None:
    """What all charts look like: no box, faint lines, a title that is plain text."""
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    if grid:
        axes.grid(color=RULE, linewidth=0.6, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    if title:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False, pad=10)


def legend_beside(axes: Axes, title: str) -> None:
    """A legend to the right of the axes, below them where the figure is a narrow one."""
    figure = axes.get_figure()
    place, anchor = (1.02, 1.0), axes.transAxes
    narrow = isinstance(figure, Figure) and figure.get_figwidth() < NARROW and len(figure.axes) == 1
    if isinstance(figure, Figure) and narrow:
        # Below the label of the axis, whose height is in points.
        place, anchor = (0.0, 0.0), axes.transAxes + ScaledTranslation(0, -32 / 72, figure.dpi_scale_trans)
    legend = axes.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=place,
        bbox_transform=anchor,
        borderaxespad=0,
        frameon=False,
        fontsize=7.5 if narrow else 8.5,
        title_fontsize=7.5 if narrow else 8,
        alignment="left",
    )
    legend.get_title().set_color(MUTED)
    for text in legend.get_texts():
        text.set_parse_math(False)
