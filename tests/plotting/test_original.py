"""Maps on the photo that their views were cut from, and figures made for print."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from plotting.conftest import pixels_of, square_page
from twinsight.plotting import (
    COLUMN,
    PAGE,
    ExplainedPair,
    Place,
    draw_curves,
    draw_grid,
    draw_pair,
    draw_pairs,
    overlay_on_photo,
    write_figure,
)

GREY = np.full((60, 60, 3), 0.5)


def changed(heatmap, place):
    """Where a map changes the picture of a grey photo of 120 x 120 drawn pixels, against the frame alone."""
    drawn = []
    for each in (heatmap, np.full_like(heatmap, np.nan)):
        figure, axes = square_page()
        overlay_on_photo(axes, GREY, each, place)
        for text in axes.texts:
            text.set_visible(False)  # the note of a degenerate map
        drawn.append(pixels_of(figure))
    return np.abs(drawn[0] - drawn[1]).max(axis=2)


@pytest.mark.parametrize(
    ("flipped", "columns"), [(False, slice(60, 68)), (True, slice(92, 100))], ids=["as it is", "mirrored"]
)
def test_a_bright_corner_lights_that_corner_of_the_photo_through_crop_and_flip(corner, flipped, columns):
    # The crop is the photo's rows 10-40 and columns 30-50: at twice the size rows 20-80 and columns 60-100.
    difference = changed(corner, Place((10, 30, 30, 20), flipped))
    lit = np.zeros_like(difference, bool)
    lit[22:30, columns] = True
    assert difference[lit].mean() > 40
    rows, places = np.nonzero(difference > 10)
    assert rows.min() >= 20
    assert rows.max() < 20 + 60 / 2
    assert places.min() >= 60
    assert places.max() < 100
    assert np.abs(places.mean() - (columns.start + columns.stop) / 2) < 5


def test_the_same_crop_of_a_smaller_copy_of_the_photo_lies_in_the_same_place(corner):
    whole = changed(corner, Place((10, 30, 30, 20)))
    assert np.array_equal(whole, changed(corner, Place((100, 300, 300, 200), photo_size=(600, 600))))


def test_the_photo_is_paler_outside_of_the_crop_and_none_of_it_is_cut_off():
    figure, axes = square_page()
    overlay_on_photo(axes, GREY, None, Place((10, 30, 30, 20)))
    pixels = pixels_of(figure)
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 59.5), (59.5, -0.5))
    assert np.abs(pixels[50, 80] - 127.5).max() < 1
    assert pixels[5, 5].min() > 200
    assert [to_hex(patch.get_edgecolor()) for patch in axes.patches] == ["#1a1a1a", "#ffffff"]


@pytest.mark.parametrize("box", [(-1, 0, 8, 8), (0, 55, 8, 8), (0, 0, 0, 8)])
def test_a_crop_that_leaves_the_photo_is_refused(corner, box):
    with pytest.raises(ValueError, match=r"`place.box` .* must lie on the photo of 60 x 60"):
        overlay_on_photo(square_page()[1], GREY, corner, Place(box))


def test_a_pair_shows_both_maps_on_the_whole_photo(photo, corner):
    places = (Place((0, 0, 20, 20)), Place((10, 10, 30, 30), True))
    figure = draw_pair(photo, photo, corner, corner, 0.5, photos=(photo, photo), places=places)
    assert "Both views on the whole photo" in [text.get_text() for text in figure.texts]
    on_photo = figure.axes[-2:]
    assert [tuple(map(float, axes.images[-1].get_extent())) for axes in on_photo] == [
        (-0.5, 19.5, 19.5, -0.5),
        (9.5, 39.5, 39.5, 9.5),
    ]
    assert len({axes.images[-1].get_clim() for axes in figure.axes if len(axes.images) > 1}) == 1
    with pytest.raises(ValueError, match="`photos` and `places` belong together"):
        draw_pair(photo, photo, corner, corner, 0.5, photos=(photo, photo))


def test_a_common_scale_is_one_for_all_methods_and_has_a_colour_bar(photo, corner):
    maps = {"weak": (corner, corner), "strong": (4 * corner, None)}
    own, common = (draw_grid(photo, photo, maps, 0.5, common_scale=each) for each in (False, True))
    limits = [{axes.images[1].get_clim() for axes in f.axes if len(axes.images) > 1} for f in (own, common)]
    assert limits == [{(0.0, 1.0), (0.0, 4.0)}, {(0.0, 4.0)}]
    assert "Importance" in [text.get_text() for text in common.texts]
    assert "Importance" not in [text.get_text() for text in own.texts]


def test_pairs_stand_in_rows_and_methods_in_columns(photo, corner):
    pairs = [
        ExplainedPair(photo, photo, {"a": (corner, corner), "b": (corner, None)}, 0.25, "cat.png"),
        ExplainedPair(photo, photo, {"b": (corner, corner)}, 0.75, "dog.png"),
    ]
    figure = draw_pairs(pairs, title="Two pairs")
    texts = [text.get_text() for text in figure.texts]
    assert {"a", "b", "cat.png", "dog.png", "similarity 0.250", "similarity 0.750", "Two pairs"} <= set(texts)
    lefts = [round(axes.get_position().x0, 3) for axes in figure.axes]
    assert len(figure.axes) == 6 + 4
    assert lefts[:3] == lefts[3:6]
    assert lefts[6:8] == lefts[8:10] == [lefts[0], lefts[2]]
    with pytest.raises(ValueError, match="at least one method of at least one pair"):
        draw_pairs([])


@pytest.mark.parametrize("inches", [COLUMN, PAGE])
def test_a_page_for_print_has_its_width_in_png_and_pdf(photo, corner, tmp_path, inches):
    png, pdf = tmp_path / "pair.png", tmp_path / "pair.pdf"
    for path in (png, pdf):
        draw_pair(photo, photo, corner, corner, 0.5, "Grad-CAM", scores={"CI": 0.5}, path=path, inches=inches)
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.width == pytest.approx(300 * inches, abs=2)
    assert width_of(pdf) == pytest.approx(inches, abs=0.01)


def test_a_chart_is_vectors_and_embedded_truetype_in_a_pdf_and_300_dpi_in_a_png(tmp_path):
    axes = draw_curves({"insertion": [0.0, 1.0]}, inches=COLUMN)
    pdf = write_figure(axes.figure, tmp_path / "curves.pdf")
    assert width_of(pdf) == pytest.approx(COLUMN, abs=0.01)
    content = pdf.read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"/Subtype /Image" not in content
    assert content == write_figure(axes.figure, tmp_path / "again.pdf").read_bytes()
    with Image.open(write_figure(axes.figure, tmp_path / "curves.png")) as image:
        assert image.width == 300 * COLUMN


def width_of(pdf):
    """Width of the page in inches."""
    box = re.search(rb"/MediaBox \[\s*0 0 ([\d.]+) [\d.]+\s*\]", pdf.read_bytes())
    return float(box.group(1)) / 72
