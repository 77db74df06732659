from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from plotting.conftest import pixels_of
from twinsight.plotting import draw_explanation, draw_pair
from twinsight.plotting import figure as figure_module


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def boxes_of(figure: Figure) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) in pixels of all axes, in the order they were drawn."""
    page_width, page_height = figure.canvas.get_width_height()
    return [
        (round(x * page_width), round((1 - y - h) * page_height), round(w * page_width), round(h * page_height))
        for x, y, w, h in (axes.get_position().bounds for axes in figure.axes)
    ]


def test_everything_a_reader_needs_is_written(photo, corner):
    figure = draw_pair(photo, photo, corner, corner, 0.87312, "Grad-CAM", "cat.png · demo", {"si": 0.5, "cd": -0.25})
    texts = texts_of(figure)
    for expected in ("0.873", "similarity", "Grad-CAM", "cat.png · demo", "View 1", "View 2", "Importance"):
        assert expected in texts
    assert texts[-4:] == ["si", "0.500", "cd", "−0.250"]


def test_the_similarity_is_the_largest_text(photo, corner):
    figure = draw_pair(photo, photo, corner, corner, 0.5, "Grad-CAM", "cat.png", {"si": 0.5})
    largest = max(figure.texts, key=lambda text: text.get_fontsize())
    assert largest.get_text() == "0.500"


def test_views_keep_their_pixels_one_to_one():
    view1, view2 = np.random.default_rng(0).random((2, 400, 400, 3))
    figure = draw_pair(view1, view2, np.eye(4), np.eye(4), 0.5)
    pixels = pixels_of(figure)
    for (left, top, width, height), view in zip(boxes_of(figure)[:2], (view1, view2), strict=True):
        assert (width, height) == (400, 400)
        assert np.abs(pixels[top : top + 400, left : left + 400] - 255 * view).max() < 4


def test_each_map_is_drawn_over_its_own_view(photo, corner):
    plain = pixels_of(draw_pair(photo, photo, np.zeros((8, 8)), np.full((8, 8), np.nan), 0.5))
    figure = draw_pair(photo, photo, corner, np.flip(corner), 0.5)
    pixels = pixels_of(figure)
    boxes = boxes_of(figure)
    assert len(boxes) == 5
    for (left, top, width, height), bright in zip(boxes[2:4], (slice(0, 60), slice(-60, None)), strict=True):
        panel = slice(top, top + height), slice(left, left + width)
        difference = np.abs(pixels[panel] - plain[panel]).max(axis=2)
        assert difference[bright, bright].mean() > 40
        assert difference[150:160, 30:60].max() == 0


def test_both_maps_share_one_scale(photo, corner):
    figure = draw_pair(photo, photo, corner, 4 * corner, 0.5)
    assert [axes.images[1].get_clim() for axes in figure.axes[2:4]] == [(0.0, 4.0), (0.0, 4.0)]
    assert "4.000" in texts_of(figure)
    signed = draw_pair(photo, photo, corner, -4 * corner, 0.5)
    assert {"−4.000", "4.000"} <= set(texts_of(signed))


def test_without_a_second_map_one_is_drawn_and_the_picture_says_so(photo, corner):
    figure = draw_pair(photo, photo, corner, None, 0.5)
    assert "One map, over view 1" in texts_of(figure)
    assert [len(axes.images) for axes in figure.axes[:3]] == [1, 1, 2]


@pytest.mark.parametrize("map2", [np.full((4, 4), np.nan), np.ones((4, 4)), None])
def test_degenerate_maps_are_noted_and_get_no_colour_bar(photo, map2):
    figure = draw_pair(photo, photo, np.zeros((4, 4)), map2, float("nan"))
    notes = [text.get_text().splitlines()[0] for axes in figure.axes for text in axes.texts]
    assert notes == ["degenerate map"] * (1 if map2 is None else 2)
    assert "Importance" not in texts_of(figure)
    assert "n/a" in texts_of(figure)
    pixels_of(figure)


LONG = "holiday_2024_" + "with_a_name_from_a_phone_" * 8 + "final.jpeg"
SHAPES = [((64, 64), (64, 64)), ((400, 400), (300, 600)), ((600, 100), (600, 100)), ((50, 900), (50, 900))]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("one_map", [False, True])
def test_nothing_overlaps_and_nothing_leaves_the_page(corner, shapes, one_map):
    scores = {f"score_number_{n}": n / 7 for n in range(9)}
    view1, view2 = (np.full((*shape, 3), 0.5) for shape in shapes)
    figure = draw_pair(view1, view2, corner, None if one_map else corner, -0.1234, LONG, LONG, scores)
    page_width, page_height = figure.canvas.get_width_height()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= page_width
        assert box.y1 <= page_height
        assert not [other for other in boxes[:number] if box.overlaps(other)]


@pytest.mark.parametrize("shape", [(300, 600), (600, 300)])
def test_photos_keep_their_aspect_ratio(corner, shape):
    figure = draw_pair(np.zeros((*shape, 3)), np.zeros((400, 400, 3)), corner, corner, 0.5)
    (_, _, width1, height1), (_, _, width2, height2) = boxes_of(figure)[:2]
    assert width1 / height1 == pytest.approx(shape[1] / shape[0], abs=0.01)
    assert (width2, height2) == (height1, height1)


def test_a_long_file_name_keeps_its_beginning_and_its_end(photo, corner):
    subtitle = next(
        text for text in texts_of(draw_pair(photo, photo, corner, corner, 0.5, subtitle=LONG)) if "…" in text
    )
    assert subtitle.startswith("holiday_2024")
    assert subtitle.endswith("final.jpeg")


def test_dollars_and_line_breaks_in_names_are_plain_text(photo, corner):
    figure = draw_pair(photo, photo, corner, corner, 0.5, "a $\\frac{1$ b", "two\nlines", {"$x$": 1.0})
    pixels_of(figure)
    assert {"a $\\frac{1$ b", "two lines", "$x$"} <= set(texts_of(figure))


def test_the_file_appears_whole_and_alone(photo, corner, tmp_path):
    path = tmp_path / "new folder" / ("n" * 240 + ".png")
    figure = draw_pair(photo, photo, corner, corner, 0.5, path=path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.size == figure.canvas.get_width_height()
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels_of(figure))


def test_a_failed_write_leaves_the_old_file_and_no_other(photo, corner, tmp_path, monkeypatch):
    path = tmp_path / "pair.png"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(figure_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_pair(photo, photo, corner, corner, 0.5, path=path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_threads_draw_the_same_picture_as_one(photo, corner, tmp_path):
    def draw(number: int) -> bytes:
        path = tmp_path / f"{number}.png"
        draw_pair(photo, photo, corner, corner, 0.5, "Grad-CAM", LONG, {"si": 0.5}, path)
        return path.read_bytes()

    alone = draw(0)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(draw, range(1, 9))) == {alone}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view2": np.zeros((3, 8, 8))}, r"`view2` must have shape"),
        ({"map1": np.zeros((1, 8, 8))}, r"`map1` must have shape"),
        ({"map2": np.zeros(8)}, r"`map2` must have shape"),
        ({"path": "pair.jpg"}, r"`path` must end in .png or .pdf, got 'pair.jpg'"),
    ],
)
def test_bad_arguments_are_refused_by_name(photo, corner, changes, message):
    arguments = {"view1": photo, "view2": photo, "map1": corner, "map2": corner, "similarity": 0.5} | changes
    with pytest.raises(ValueError, match=message):
        draw_pair(**arguments)


def test_an_explanation_is_drawn_on_axes_of_the_callers_own(photo, corner):
    left, right = Figure().subplots(1, 2)
    artist1, artist2 = draw_explanation(left, right, photo, photo, corner, -corner)
    assert (left.get_title(), right.get_title()) == ("View 1", "View 2")
    assert artist1.get_clim() == artist2.get_clim() == (-1.0, 1.0)
    assert artist1.axes is left
    assert artist2.axes is right


def test_an_explanation_with_one_map_shows_view_2_as_it_is(photo, corner):
    left, right = Figure().subplots(1, 2)
    _, artist2 = draw_explanation(left, right, photo, photo, corner, None)
    assert artist2 is None
    assert "one map" in right.get_title()
    assert np.array_equal(right.images[0].get_array(), photo)
