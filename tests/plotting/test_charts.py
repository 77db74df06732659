"""Bars, agreement of metrics, parallel coordinates, and curves beside a control."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from plotting.conftest import pixels_of
from twinsight.plotting import COLUMN, draw_agreement, draw_bars, draw_curves, draw_parallel
from twinsight.plotting.charts import COLORS, CONTROL

SWEEP = [
    {"model": "a", "window": 8, "ci": 0.2, "seconds": 1.0},
    {"model": "b", "window": 16, "ci": 0.6, "seconds": 3.0},
    {"model": "b", "window": None, "ci": 0.4, "seconds": 2.0},
]


def test_bars_end_at_their_means_and_intervals_span_them():
    axes = draw_bars({"a": 0.5, "b": -0.25}, {"a": (0.4, 0.7), "b": (float("nan"), float("nan"))}, label="SRG")
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 0.5), (0, -0.25)]
    spans = [segment.tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert [[0.4, 0], [0.7, 0]] in spans
    assert all(y < 0.5 for segment in spans for _, y in segment)
    assert axes.get_xlabel() == "SRG"
    top, bottom = axes.get_yticks()
    assert axes.transData.transform((0, top))[1] > axes.transData.transform((0, bottom))[1]


def test_a_control_among_bars_is_hatched_and_grey():
    control, other = draw_bars({"random": 1.0, "a": 2.0}, controls=["random"]).patches
    assert (control.get_hatch(), to_hex(control.get_edgecolor())) == ("////", CONTROL)
    assert other.get_hatch() is None


def test_a_bar_without_a_value_says_so():
    axes = draw_bars({"a": float("nan"), "b": 1.0})
    assert [text.get_text() for text in axes.texts] == ["n/a", "1.000"]


@pytest.mark.parametrize("names", [["SI", "SD", "CI"], [f"metric {n}" for n in range(9)]])
def test_agreement_is_written_where_it_is_coloured(names):
    tau = np.eye(len(names))
    tau[0, 1] = tau[1, 0] = -0.5
    tau[0, 2] = tau[2, 0] = np.nan
    axes = draw_agreement(tau, names)
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert (written[1, 0], written[0, 1], written[2, 0]) == ("−0.50", "−0.50", "n/a")
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    low, high = axes.images[0].get_clim()
    assert low == -high


def test_up_is_good_on_every_axis_of_a_sweep():
    axes = draw_parallel(SWEEP, ["model", "ci", "seconds"], better={"ci": "high", "seconds": "low"})
    worst, best = (line.get_ydata() for line in axes.lines[-3:-1])
    assert worst[1:].tolist() == [0.0, 1.0]
    assert best[1:].tolist() == [1.0, 0.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["model", "ci ↑", "seconds ↓"]


def test_a_missing_option_interrupts_its_line():
    lines = draw_parallel(SWEEP).lines[-3:]
    assert np.isnan(lines[2].get_ydata()[1])
    assert np.isfinite(lines[2].get_ydata()[[0, 2, 3]]).all()
    assert [line.get_color() for line in lines] == [COLORS[0], COLORS[1], COLORS[1]]


def test_curves_of_controls_are_grey_and_bands_lie_around_their_curves():
    curve = np.array([0.0, 0.6, 1.0])
    axes = draw_curves({"a": curve, "random": curve / 2}, bands={"a": (curve - 0.1, curve + 0.1)}, controls=["random"])
    assert [to_hex(line.get_color()) for line in axes.lines] == [COLORS[0].lower(), CONTROL]
    (band,) = axes.collections
    middle = band.get_paths()[0].vertices
    assert middle[np.isclose(middle[:, 0], 0.5), 1].min() == pytest.approx(0.5)
    assert middle[np.isclose(middle[:, 0], 0.5), 1].max() == pytest.approx(0.7)


def test_curves_for_a_column_keep_all_they_say_inside_the_page():
    names = ["Interaction-CAM (attention)", "Context-agnostic conditional occlusion", "Random"]
    axes = draw_curves({name: [0.0, 1.0] for name in names}, inches=COLUMN)
    assert axes.figure.get_figwidth() == COLUMN
    pixels_of(axes.figure)
    legend, label = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
    assert legend.y1 <= label.y0
    assert legend.y0 >= 0
    assert legend.x1 <= axes.figure.bbox.x1


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: draw_bars({}), "`means` is empty"),
        (lambda: draw_bars({"a": 1.0}, {"a": (2.0, 3.0)}), r"`intervals\['a'\]` must hold the mean"),
        (lambda: draw_bars({"a": 1.0}, {"b": (0.0, 3.0)}), r"`intervals\['b'\]` must hold the mean"),
        (lambda: draw_agreement(np.eye(2), ["SI"]), r"`tau` must be \(M, M\)"),
        (lambda: draw_agreement([[1, 2], [2, 1]], ["SI", "SD"]), "`tau` must be symmetric, with values in"),
        (lambda: draw_agreement([[1, 0.5], [0.4, 1]], ["SI", "SD"]), "`tau` must be symmetric"),
        (lambda: draw_parallel(SWEEP, ["model", "stride"]), "names that no line has: stride"),
        (lambda: draw_parallel([{"a": 1, "b": 2}, {"a": "x", "b": 2}]), "either numbers or texts in 'a'"),
        (lambda: draw_curves({"a": [0, 1]}, bands={"b": ([0, 1], [0, 1])}), r"`bands\['b'\]` must be two arrays"),
        (lambda: draw_curves({"a": [0, 1]}, bands={"a": ([0], [1])}), r"`bands\['a'\]` must be two arrays"),
    ],
)
def test_bad_arguments_of_charts_are_refused_by_name(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
