"""Maps of views on the photo that the views were cut from."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from twinsight.plotting.heatmap import checked_heatmap, checked_image, draw_map, show_photo
from twinsight.plotting.scale import OPACITY


class Place(NamedTuple):
    """What of its photo a view shows.

    Attributes:
        box: (top, left, height, width) of the crop, in pixels of the photo as it is stored.
        flipped: whether the crop was mirrored left to right.
        photo_size: (height, width) of the photo as it is stored; None where it is drawn at that size.
    """

    box: tuple[float, float, float, float]
    flipped: bool = False
    photo_size: tuple[int, int] | None = None


def overlay_on_photo(
    axes: Axes,
    photo: ArrayLike,
    heatmap: ArrayLike | None,
    place: Place,
    signed: bool | None = False,
    alpha: float = OPACITY,
    limit: float | tuple[float, float] | None = None,
    saturation: float = 0.2,
    outside: float = 0.35,
) -> AxesImage | None:
    """Draw a view's ``heatmap`` where the view lies on its photo, turned back if the view was mirrored.

    The crop gets a frame, and the photo outside of it is paler.

    Args:
        axes: where to draw; ticks and frame are removed.
        photo: ``(H, W, 3)`` floats in [0, 1], the whole photo at any size.
        heatmap: ``(h, w)`` over the view; None only shows where the view lies.
        place: what of the photo the view shows.
        signed, alpha, limit, saturation: as for :func:`twinsight.plotting.overlay`.
        outside: opacity of the photo outside of the crop, from 0 (white) to 1.

    Returns:
        The heatmap's image artist; None without a heatmap.

    Raises:
        ValueError: an argument has a wrong shape or range, or the crop leaves the photo.

    The right half of a photo, mirrored: what is left in the view lies at the photo's right border.

    >>> from matplotlib.figure import Figure
    >>> artist = overlay_on_photo(Figure().add_subplot(), np.zeros((8, 8, 3)), [[1.0, 0.0]], Place((0, 4, 8, 4), True))
    >>> np.asarray(artist.get_array()).tolist(), [float(edge) for edge in artist.get_extent()]
    ([[0.0, 1.0]], [3.5, 7.5, 7.5, -0.5])
    """
    photo = checked_image(photo, "photo")
    top, left, height, width = _scaled_box(photo, place)
    whole = show_photo(axes, outside * photo + (1 - outside), saturation)
    extent = (left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5)
    # The crop at full strength lies over the paler photo, in the same pixels.
    inside = show_photo(axes, photo, saturation if heatmap is not None else 1.0)
    frame = Rectangle((extent[0], extent[3]), width, height, fill=False, edgecolor="white", linewidth=1.6)
    inside.set_clip_path(Rectangle((extent[0], extent[3]), width, height, transform=axes.transData))
    artist = None
    if heatmap is not None:
        heatmap = checked_heatmap(heatmap)
        heatmap = heatmap[:, ::-1] if place.flipped else heatmap
        artist = draw_map(axes, heatmap, extent, signed=signed, alpha=alpha, limit=limit)
    # Over the map; a dark line under the white one shows on any photo.
    axes.add_patch(Rectangle(frame.get_xy(), width, height, fill=False, edgecolor="#1a1a1a", linewidth=2.6))
    axes.add_patch(frame)
    left_edge, right_edge, bottom_edge, top_edge = whole.get_extent()
    axes.set(xlim=(left_edge, right_edge), ylim=(bottom_edge, top_edge))  # each image has set them to its own
    return artist


def _scaled_box(photo: NDArray[np.floating], place: Place) -> tuple[float, float, float, float]:
    """The crop in pixels of the photo as it is drawn."""
    stored = place.photo_size or (photo.shape[0], photo.shape[1])
    rows, columns = photo.shape[0] / stored[0], photo.shape[1] / stored[1]
    top, left, height, width = place.box
    inside = min(top, left) >= 0 and top + height <= stored[0] and left + width <= stored[1]
    if not (inside and min(height, width) > 0):
        size = f"{stored[0]} x {stored[1]}"
        raise ValueError(f"`place.box` (top, left, height, width) must lie on the photo of {size}, got {place.box}")
    return top * rows, left * columns, height * rows, width * columns
