"""Pages of made images, and their animations."""

import numpy as np
import pytest
from PIL import Image

from twinsight.plotting import draw_images, write_gif

GREY = np.full((8, 12, 3), 0.5)


def page(names, views=("View 1", "View 2"), trace=(1.0, 0.5), **options):
    return draw_images(
        dict.fromkeys(views, GREY), dict.fromkeys(names, GREY), dict.fromkeys(names, trace), 0.5, **options
    )


def boxes(figure):
    """Left, top, width and height of all axes in pixels."""
    width, height = figure.canvas.get_width_height()
    found = [axes.get_position() for axes in figure.axes]
    return [
        (round(b.x0 * width), round((1 - b.y1) * height), round(b.width * width), round(b.height * height))
        for b in found
    ]


@pytest.mark.parametrize(
    "names",
    [["one"], ["a", "b"], ["model/deep", "model/shallow", "reference/deep", "reference/shallow"], ["m/a", "r/b"]],
)
def test_nothing_overlaps_and_nothing_leaves_the_page(names):
    figure = page(names)
    width, height = figure.canvas.get_width_height()
    found = boxes(figure)
    for number, (left, top, wide, tall) in enumerate(found):
        assert left > 0
        assert top > 0
        assert left + wide < width
        assert top + tall < height
        for other_left, other_top, other_wide, other_tall in found[:number]:
            beside = left >= other_left + other_wide or other_left >= left + wide
            assert beside or top >= other_top + other_tall or other_top >= top + tall


def test_images_of_a_grid_stand_in_the_rows_and_columns_of_their_names():
    figure = page(["model/a", "model/b", "reference/a", "reference/b"], views=["View 1"])
    view, *images = boxes(figure)[:5]
    (a, b), (below_a, below_b) = images[:2], images[2:]
    assert view[1] == a[1] == b[1] < below_a[1] == below_b[1]
    assert view[0] < a[0] == below_a[0] < b[0] == below_b[0]
    lines = [axes.lines for axes in figure.axes if axes.lines]
    assert [len(each) for each in lines] == [2, 2]
    written = [text.get_text() for text in figure.texts]
    assert [written.count(name) for name in ("model", "reference", "a", "b")] == [2, 2, 1, 1]
    # A trace has the colour of its row's name.
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert [line.get_color() for line in lines[0]] == [colours["model"], colours["reference"]]


def test_images_keep_their_proportions():
    for left, top, wide, tall in boxes(page(["a", "b"]))[:4]:
        assert wide / tall == pytest.approx(12 / 8, rel=0.02), (left, top)


@pytest.mark.parametrize(
    ("trace", "scale"), [((1.0, 0.01), "log"), ((1.0, 0.5), "linear"), ((1.0, 0.0), "linear"), ((1.0, -0.01), "linear")]
)
def test_traces_that_span_decades_are_drawn_on_a_logarithmic_scale(trace, scale):
    assert page(["a"], trace=trace).axes[-1].get_yscale() == scale


def test_a_trace_that_is_not_finite_is_drawn_as_far_as_it_goes():
    figure = page(["a"], trace=(1.0, float("nan")))
    figure.canvas.draw()
    assert any(text.get_text() == "n/a" for text in figure.texts)


@pytest.mark.parametrize(
    ("images", "traces", "message"),
    [
        ({}, {}, "`images` and `traces` must have the same names"),
        ({"a": GREY}, {"b": [1.0]}, r"must have the same names, got \['a'\] and \['b'\]"),
        ({"a": GREY[..., :2]}, {"a": [1.0]}, r"`a` must have shape \(H, W, 3\), got \(8, 12, 2\)"),
        ({"a": GREY * 4}, {"a": [1.0]}, r"`a` must lie in \[0, 1\], got \[2, 2\]"),
    ],
)
def test_wrong_images_are_refused_by_name(images, traces, message):
    with pytest.raises(ValueError, match=message):
        draw_images({}, images, traces, 0.5)


def test_another_format_is_refused_before_drawing(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in .png"):
        page(["a"], path=tmp_path / "page.svg")
    with pytest.raises(ValueError, match=r"`path` must end in .gif"):
        write_gif([GREY], tmp_path / "film.mp4")


def test_an_animation_shows_its_frames_in_time_and_holds_the_last(tmp_path):
    frames = np.linspace(0, 1, 4).reshape(4, 1, 1, 1) * np.ones((4, 8, 12, 3))
    path = write_gif(frames, tmp_path / "folder" / "film.gif", seconds=2.0, hold=1.0, side=24)
    assert [file.name for file in path.parent.iterdir()] == ["film.gif"]
    with Image.open(path) as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (24, 16), 0)
        durations, levels = [], []
        for number in range(4):
            animation.seek(number)
            durations.append(animation.info["duration"])
            levels.append(animation.convert("RGB").getpixel((5, 5))[0])
    assert durations == [500, 500, 500, 1500]
    np.testing.assert_allclose(levels, [0, 85, 170, 255], atol=3)


@pytest.mark.parametrize("frames", [np.zeros((0, 8, 8, 3)), np.zeros((8, 8, 3))])
def test_frames_of_a_wrong_shape_are_refused(frames, tmp_path):
    with pytest.raises(ValueError, match=r"`frames` must have shape \(K, H, W, 3\)"):
        write_gif(frames, tmp_path / "film.gif")
