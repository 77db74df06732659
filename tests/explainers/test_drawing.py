"""Explanations that draw themselves: over their views, and on the photo."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from twinsight.data.views import ViewGeometry
from twinsight.errors import UserError
from twinsight.explainers.base import PairExplanation
from twinsight.plotting import COLUMN
from twinsight.plotting import figure as figures

GEOMETRY = (ViewGeometry((60, 90), (0, 0, 60, 60)), ViewGeometry((60, 90), (10, 40, 30, 50), flipped=True))


def explanation(**changes):
    """Two pairs; the second has a bright top left corner in both maps."""
    maps = torch.zeros(2, 4, 4)
    maps[1, 0, 0] = 1.0
    facts = {"map1": maps, "map2": 2 * maps, "score": torch.tensor([0.25, 0.75]), "title": "Grad-CAM"}
    views = (torch.full((2, 3, 16, 16), 0.5), torch.full((2, 3, 16, 16), 0.5))
    return PairExplanation(**{**facts, "views": views, **changes})


def test_a_plot_is_axes_with_one_scale_a_colour_bar_and_the_similarity():
    left, right = explanation().plot(index=1)
    assert isinstance(left, Axes)
    assert left.images[1].get_clim() == right.images[1].get_clim()
    figure = left.figure
    assert figure.get_suptitle() == "Grad-CAM: similarity 0.750"
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "Importance"]
    assert explanation().plot(index=1, inches=COLUMN)[0].figure.get_figwidth() == COLUMN


def test_axes_of_the_callers_own_are_drawn_on_and_left_as_many_as_they_were():
    from matplotlib.figure import Figure

    axes = tuple(Figure().subplots(1, 2))
    assert explanation().plot(index=1, axes=axes) == axes
    assert len(axes[0].figure.axes) == 2


def test_both_maps_lie_on_the_photo_where_their_views_were_cut_mirrored_back():
    photo = Image.new("RGB", (90, 60), "grey")
    left, right = explanation().plot_on_photo(photo, GEOMETRY, index=1)
    first, second = left.images[-1], right.images[-1]
    assert [float(edge) for edge in first.get_extent()] == [-0.5, 59.5, 59.5, -0.5]
    assert [float(edge) for edge in second.get_extent()] == [39.5, 89.5, 39.5, 9.5]
    maps = [np.asarray(each.get_array()) for each in (first, second)]
    assert maps[0][0, 0] == maps[0].max() > 0 == maps[0][0, -1]
    assert maps[1][0, -1] == maps[1].max() > 0 == maps[1][0, 0]


def test_one_map_alone_is_said_to_be_alone():
    photo = np.full((60, 90, 3), 0.5)
    _, right = explanation(map2=None).plot_on_photo(photo, GEOMETRY, index=1)
    assert "one map" in right.get_title()


def test_a_degenerate_map_gets_no_colour_bar():
    assert len(explanation().plot(index=0)[0].figure.axes) == 2


def test_without_views_only_the_photo_can_be_drawn_on():
    with pytest.raises(UserError, match="does not hold its views"):
        explanation(views=None).plot()
    assert explanation(views=None).plot_on_photo(np.full((60, 90, 3), 0.5), GEOMETRY, index=1)


def test_in_a_notebook_the_figure_is_one_that_the_notebook_shows(monkeypatch):
    from matplotlib import pyplot

    assert not pyplot.fignum_exists(getattr(explanation().plot(index=1)[0].figure, "number", -1))
    monkeypatch.setattr(figures, "in_notebook", lambda: True)
    figure = explanation().plot(index=1)[0].figure
    assert pyplot.fignum_exists(figure.number)
    pyplot.close(figure)
