"""Insertion and deletion curves."""

from collections.abc import Collection, Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from twinsight.plotting.charts import COLORS, CONTROL, DASHES, NARROW, chart_axes, legend_beside, style
from twinsight.plotting.figure import INK
from twinsight.plotting.furniture import readable


def draw_curves(
    curves: Mapping[str, ArrayLike],
    axes: Axes | None = None,
    title: str | None = None,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    controls: Collection[str] = (),
    inches: float | None = None,
) -> Axes:
    """Similarity against the fraction of pixels inserted or deleted, with the area under each curve in the legend.

    The legend stands to the right of the axes, below them in a narrow figure; ``layout="constrained"`` on a figure of
    your own makes room for it.

    Args:
        curves: one-dimensional arrays of at least two values, by name; the first value belongs to 0 pixels, the last
            to all, the others lie evenly between. Values that are not finite leave a gap, and the area is "n/a".
        axes: where to draw; None makes a figure.
        title: written above the axes.
        bands: lower and upper ends of an interval around a curve, by its name, as long as the curve.
        controls: names of curves that must lose: drawn grey, below the others.
        inches: width of the figure, such as ``plotting.COLUMN``; None is 6.4.

    Raises:
        ValueError: there is no curve, one is not one-dimensional with at least two values, or a band does not fit.

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
    around = {name: _band(name, ends, values) for name, ends in (bands or {}).items()}
    narrow = inches is not None and inches < NARROW
    axes = chart_axes(axes, inches, 0.66 + 0.05 * len(values) if narrow else 0.5625)

    dashes = (dash for dash in cycle(DASHES) for _ in COLORS)
    looks = zip(cycle(COLORS), dashes, strict=False)
    greys = cycle(DASHES[1:] + DASHES[:1])
    for name, curve in values.items():
        color, dash = (CONTROL, next(greys)) if name in controls else next(looks)
        fractions = np.linspace(0, 1, curve.size)
        area = float(np.mean((curve[1:] + curve[:-1]) / 2))
        order = 1.5 if name in controls else 2.0
        label = f"{name}  {readable(area)}"
        axes.plot(fractions, curve, dash, color=color, linewidth=1.8, label=label, zorder=order)
        if name in around:
            axes.fill_between(fractions, *around[name], color=color, alpha=0.18, linewidth=0, zorder=order - 0.5)
    axes.set_xlim(0, 1)
    axes.margins(y=0.06)
    style(axes, title, grid="both")
    axes.set_xlabel("Fraction of pixels inserted or deleted", fontsize=8.5, color=INK)
    axes.set_ylabel("Similarity", fontsize=8.5, color=INK)
    legend_beside(axes, "Area under the curve")
    return axes


def _band(
    name: str, ends: tuple[ArrayLike, ArrayLike], curves: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = (np.asarray(end, dtype=np.float64) for end in ends)
    if name not in curves or low.shape != curves[name].shape or high.shape != low.shape:
        raise ValueError(f"`bands[{name!r}]` must be two arrays as long as the curve of that name")
    return low, high
