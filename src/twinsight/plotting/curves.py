"""Insertion and deletion curves."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from twinsight.plotting.figure import DPI, INK, MUTED, RULE
from twinsight.plotting.furniture import readable

# Okabe and Ito's colours, told apart by colour-blind readers, without the yellow that fades on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")


def draw_curves(curves: Mapping[str, ArrayLike], axes: Axes | None = None, title: str | None = None) -> Axes:
    """Similarity against the fraction of pixels inserted or deleted, with the area under each curve in the legend.

    The legend stands to the right of the axes; ``layout="constrained"`` on a figure of your own makes room for it.

    Args:
        curves: one-dimensional arrays of at least two values, by name; the first value belongs to 0 pixels, the last
            to all, the others lie evenly between. Values that are not finite leave a gap, and the area is "n/a".
        axes: where to draw; None makes a figure of 960 x 540 pixels at 150 dpi.
        title: written above the axes.

    Raises:
        ValueError: there is no curve, or one is not one-dimensional with at least two values.

    >>> axes = draw_curves({"insertion": [0.0, 0.5, 1.0], "deletion": [1.0, 0.0, 0.0]})
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['insertion  0.500', 'deletion  0.250']
    >>> axes.get_xlabel()
    'Fraction of pixels inserted or deleted'
    """
    if not curves:
        raise ValueError("`curves` is empty; give at least one name with its values")
    values = {name: np.asarray(curve, dtype=np.float64) for name, curve in curves.items()}
    for name, curve in values.items():
        if curve.ndim != 1 or curve.size < 2:
            raise ValueError(
                f"`curves[{name!r}]` must be one-dimensional with at least two values, got shape {curve.shape}"
            )
    if axes is None:
        figure = Figure(figsize=(960 / DPI, 540 / DPI), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()

    dashes = (dash for dash in cycle(DASHES) for _ in COLORS)
    for (name, curve), color, dash in zip(values.items(), cycle(COLORS), dashes, strict=False):
        fractions = np.linspace(0, 1, curve.size)
        area = float(np.mean((curve[1:] + curve[:-1]) / 2))
        axes.plot(fractions, curve, dash, color=color, linewidth=1.8, label=f"{name}  {readable(area)}")
    _style(axes, title)
    return axes


def _style(axes: Axes, title: str | None) -> None:
    axes.set_xlim(0, 1)
    axes.margins(y=0.06)
    axes.set_xlabel("Fraction of pixels inserted or deleted", fontsize=8.5, color=INK)
    axes.set_ylabel("Similarity", fontsize=8.5, color=INK)
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    if title:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False, pad=10)
    legend = axes.legend(
        title="Area under the curve",
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=8.5,
        title_fontsize=8,
        alignment="left",
    )
    legend.get_title().set_color(MUTED)
    for text in legend.get_texts():
        text.set_parse_math(False)
