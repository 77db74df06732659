"""Embeddings in the plane."""

from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from twinsight.plotting.charts import COLORS
from twinsight.plotting.figure import DPI, INK, blank_figure, write_figure

MARKERS = ("o", "^", "s")


def draw_embedding(
    points: ArrayLike, labels: ArrayLike, title: str | None = None, path: str | Path | None = None
) -> Figure:
    """Points of the plane, coloured and marked by class; axes have no units and are left out.

    Args:
        points: ``(N, 2)`` floats.
        labels: ``(N,)`` integers.
        title: written above.
        path: PNG at 150 dpi or PDF to write; it appears whole.

    Raises:
        ValueError: the shapes do not fit, or ``path`` is neither PNG nor PDF.

    >>> figure = draw_embedding([[0.0, 0.0], [1.0, 1.0]], [0, 1])
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['0', '1']
    """
    places, classes = np.asarray(points, dtype=float), np.asarray(labels)
    if places.ndim != 2 or places.shape[1] != 2 or classes.shape != (len(places),):
        raise ValueError(f"`points` must be (N, 2) and `labels` (N,), got {places.shape} and {classes.shape}")
    figure = blank_figure(760 / DPI, 640 / DPI)
    axes = figure.add_subplot()
    markers = (marker for marker in cycle(MARKERS) for _ in COLORS)
    for name, color, marker in zip(np.unique(classes), cycle(COLORS), markers, strict=False):
        chosen = places[classes == name]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=9, marker=marker, color=color, alpha=0.7, linewidths=0, label=name)
    axes.set_axis_off()
    if title:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, markerscale=2)
    if path is not None:
        write_figure(figure, path, DPI)
    return figure
