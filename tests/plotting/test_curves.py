import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from plotting.conftest import pixels_of
from twinsight.plotting import draw_curves
from twinsight.plotting.charts import COLORS


def test_curves_run_from_no_pixels_to_all():
    axes = draw_curves({"insertion": [0.1, 0.4, 0.9], "deletion": [0.9, 0.5, 0.3, 0.1, 0.0]})
    insertion, deletion = axes.lines
    assert insertion.get_xydata().tolist() == [[0.0, 0.1], [0.5, 0.4], [1.0, 0.9]]
    assert deletion.get_xdata().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert axes.get_xlim() == (0.0, 1.0)


def test_axes_are_labelled_and_the_legend_tells_the_area():
    axes = draw_curves({"insertion": np.linspace(0, 1, 225), "deletion": [1.0, 0.0]}, title="Grad-CAM of $x")
    assert axes.get_xlabel() == "Fraction of pixels inserted or deleted"
    assert axes.get_ylabel() == "Similarity"
    assert axes.get_title(loc="left") == "Grad-CAM of $x"
    legend = axes.get_legend()
    assert legend.get_title().get_text() == "Area under the curve"
    assert [text.get_text() for text in legend.get_texts()] == ["insertion  0.500", "deletion  0.500"]


def test_the_legend_stands_outside_the_data_and_inside_the_page():
    axes = draw_curves({f"a conditional curve, number {n}": [n, 1.0] for n in range(8)})
    pixels_of(axes.figure)
    legend = axes.get_legend().get_window_extent()
    assert legend.x0 >= axes.get_window_extent().x1
    assert legend.x1 <= axes.figure.bbox.x1


def test_more_curves_than_colours_differ_in_their_dashes():
    lines = draw_curves({str(n): [n, 0.0] for n in range(len(COLORS) + 2)}).lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)


def test_a_gap_in_a_curve_leaves_no_area():
    axes = draw_curves({"insertion": [0.0, np.nan, 1.0]})
    assert axes.get_legend().get_texts()[0].get_text() == "insertion  n/a"
    pixels_of(axes.figure)


def test_the_callers_axes_are_used():
    axes = Figure(layout="constrained").add_subplot()
    assert draw_curves({"insertion": [0.0, 1.0]}, axes) is axes


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "`curves` is empty"),
        ({"si": [1.0]}, r"`curves\['si'\]` must be one-dimensional with at least two values, got shape \(1,\)"),
        ({"si": np.zeros((2, 5))}, r"one-dimensional.*got shape \(2, 5\)"),
    ],
)
def test_bad_curves_are_refused_by_name(curves, message):
    with pytest.raises(ValueError, match=message):
        draw_curves(curves)


def test_drawing_needs_neither_pyplot_nor_torch():
    program = (
        "import sys, twinsight.plotting as plotting; plotting.draw_curves({'a': [0, 1]});"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
