"""Many explanations of one pair on one page."""

import numpy as np
import pytest
from PIL import Image

from twinsight.plotting import draw_grid

GREY = np.full((64, 64, 3), 0.5)
MAP = np.add.outer(np.arange(8.0), np.arange(8.0))


def names(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("count", [1, 5, 6, 16])
def test_every_method_has_its_name_and_two_panels(count):
    figure = draw_grid(GREY, GREY, {f"method {n}": (MAP, MAP) for n in range(count)}, 0.5)
    assert len(figure.axes) == 2 * (count + 1)
    assert [name for name in names(figure) if name.startswith("method")] == [f"method {n}" for n in range(count)]


def test_panels_do_not_overlap_and_stay_on_the_page():
    figure = draw_grid(GREY, np.full((48, 96, 3), 0.5), {f"{n}": (MAP, MAP) for n in range(16)}, 0.5)
    boxes = [axes.get_position() for axes in figure.axes]
    for place, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
        for other in boxes[place + 1 :]:
            assert box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0


def test_each_map_has_a_scale_of_its_own():
    figure = draw_grid(GREY, GREY, {"small": (MAP, 2 * MAP), "large": (100 * MAP, 200 * MAP)}, 0.5)
    highest = [axes.images[-1].get_clim()[1] for axes in figure.axes[2:]]
    assert [high / highest[0] for high in highest] == pytest.approx([1, 2, 100, 200])


def test_a_missing_second_map_is_said_and_not_drawn():
    figure = draw_grid(GREY, GREY, {"one": (MAP, None)}, 0.5)
    lower = figure.axes[-1]
    assert len(lower.images) == 1
    assert [text.get_text() for text in lower.texts] == ["one map: view 1"]


def test_the_picture_is_written_whole(tmp_path):
    draw_grid(GREY, GREY, {"a": (MAP, MAP)}, 0.5, title="t", subtitle="s", path=tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.width > 300
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GREY, GREY, {}, 0.5), "at least one method"),
        ((GREY.transpose(2, 0, 1), GREY, {"a": (MAP, MAP)}, 0.5), "`view1` must have shape"),
        ((GREY, GREY, {"a": (MAP[None], MAP)}, 0.5), "`a` must have shape"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_grid(*arguments)


def test_another_format_is_refused_before_drawing():
    with pytest.raises(ValueError, match=r"must end in .png"):
        draw_grid(GREY, GREY, {"a": (MAP, MAP)}, 0.5, path="grid.jpg")
