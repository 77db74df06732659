"""What the plotting tests share: a grey photo, a map with one bright corner, and the pixels that were drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from twinsight.plotting.figure import PixelFigure


def pixels_of(figure: Figure) -> np.ndarray:
    """The drawn figure as ``(H, W, 3)`` integers."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def square_page(side: int = 120):
    """A page that its only axes fill."""
    page = PixelFigure(side, side)
    return page.figure, page.axes(0, 0, side, side)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).random((40, 40, 3)) * 0.5 + 0.25


@pytest.fixture
def corner() -> np.ndarray:
    """Bright in the top left corner, zero elsewhere."""
    heatmap = np.zeros((8, 8))
    heatmap[:2, :2] = 1.0
    return heatmap
