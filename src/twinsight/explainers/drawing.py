"""How explanations draw themselves; :mod:`twinsight.plotting` does the drawing."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from twinsight.errors import UserError
from twinsight.plotting import Place, blank_figure, draw_explanation, overlay_on_photo, shared_scale

Both = tuple[Axes, Axes]


def plot(explanation: Any, index: int, axes: Both | None, inches: float | None) -> Both:
    """:meth:`twinsight.explainers.PairExplanation.plot`."""
    if explanation.views is None:
        raise UserError("this explanation does not hold its views: build it with `views` to draw it")
    view1, view2 = (view[index].movedim(0, -1).cpu().numpy() for view in explanation.views)
    map1, map2 = _maps(explanation, index)
    drawn = axes or _axes(explanation, index, inches)
    artist, _ = draw_explanation(drawn[0], drawn[1], view1, view2, map1, map2)
    if axes is None:
        _add_colour_bar(drawn, artist)
    return drawn


def plot_on_photo(
    explanation: Any, photo: Any, geometry: Any, index: int, axes: Both | None, inches: float | None
) -> Both:
    """:meth:`twinsight.explainers.PairExplanation.plot_on_photo`."""
    photos = photo if isinstance(photo, tuple | list) else (photo, photo)
    maps = _maps(explanation, index)
    signed, limit = shared_scale([heatmap for heatmap in maps if heatmap is not None])
    drawn = axes or _axes(explanation, index, inches)
    artists = []
    for number, (one, each, heatmap) in enumerate(zip(photos, geometry, maps, strict=True)):
        pixels = np.asarray(one)
        pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels
        place = Place(each.box, each.flipped, each.photo_size)
        artists.append(overlay_on_photo(drawn[number], pixels, heatmap, place, signed=signed, limit=limit))
        drawn[number].set_title(f"View {number + 1}" + " (one map: view 1)" * (heatmap is None), fontsize=9)
    if axes is None:
        _add_colour_bar(drawn, artists[0])
    return drawn


def _maps(explanation: Any, index: int) -> list[Any]:
    """Both maps of one pair at the size of the views, where it is known."""
    size = explanation.geometry.image_size or explanation.map1.shape[-2:]
    if explanation.views is not None:
        size = explanation.views[0].shape[-2:]
    maps = explanation.resized((int(size[0]), int(size[1])))
    return [None if each is None else each[index].cpu().numpy() for each in maps]


def _axes(explanation: Any, index: int, inches: float | None) -> Both:
    width = inches or 7.0
    figure = blank_figure(width, width * 0.58)
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{explanation.title}: similarity {explanation.score[index]:.3f}", fontsize=min(11.0, 2.6 * width))
    return left, right


def _add_colour_bar(axes: Both, artist: AxesImage | None) -> None:
    values = None if artist is None else artist.get_array()
    if artist is not None and values is not None and np.isfinite(np.ma.filled(values, np.nan)).any():
        figure = axes[0].figure
        figure.colorbar(artist, ax=list(axes), orientation="horizontal", shrink=0.6, aspect=40, label="Importance")
