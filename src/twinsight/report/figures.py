"""The charts of a table as a paper prints them: PNG at 300 dpi and PDF."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twinsight.metrics import ALL_METRICS
from twinsight.plotting import (
    COLUMN,
    PAGE,
    blank_figure,
    draw_agreement,
    draw_bars,
    draw_curves,
    draw_parallel,
    write_figure,
)
from twinsight.report.curves import Curve
from twinsight.report.results import Results
from twinsight.report.tables import ResultTable, head

_TITLES = {
    "si": "Simultaneous insertion",
    "sd": "Simultaneous deletion",
    "ci": "Conditional insertion",
    "cd": "Conditional deletion",
}
EXPLAINERS_SHOWN, CONTROLS_SHOWN = 5, 2


def write_figures(
    results: Results, table: ResultTable, curves: Mapping[str, Mapping[str, Curve]], folder: Path
) -> list[Path]:
    """Write ``scores`` (bars with intervals), ``curves`` and ``rank_agreement``; what there is.

    Args:
        results, table: of one model and data set.
        curves: by label of the row and name, from :func:`twinsight.report.curves.mean_curves`.
        folder: where the files go.

    Returns:
        the PDFs; a PNG of the same name lies beside each.
    """
    figures = {"scores": _scores(table), "curves": _curves(table, curves)}
    if len(results.explainers) > 2 and len(results.metrics) > 1:
        figures["rank_agreement"] = _agreement(results)
    return _write({name: figure for name, figure in figures.items() if figure is not None}, folder)


def write_sweep(lines: list[dict[str, Any]], metrics: list[str], folder: Path) -> list[Path]:
    """Write ``sweep``: parallel coordinates of all cells, options to the left and scores to the right."""
    better: dict[str, Any] = {name: "high" if ALL_METRICS[name].higher_is_better else "low" for name in metrics}
    return _write({"sweep": draw_parallel(lines, better=better, inches=PAGE).figure}, folder)


def agreement_matrix(results: Results) -> np.ndarray:
    """Kendall's tau of every two metrics, ``(M, M)``."""
    places = {metric: place for place, metric in enumerate(results.metrics)}
    tau = np.eye(len(places))
    for one in results.agreement:
        first, second = places[one.first], places[one.second]
        tau[first, second] = tau[second, first] = one.tau
    return tau


def _scores(table: ResultTable) -> Any:
    if not table.metrics:
        return None
    columns = min(3, len(table.metrics))
    lines = -(-len(table.metrics) // columns)
    figure = blank_figure(PAGE, lines * (0.55 + 0.17 * len(table.rows)))
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    controls = [table.names[row.label] for row in table.rows if row.is_control]
    for panel, metric in zip(panels, table.metrics, strict=False):
        values = {table.names[row.label]: table.cells[row.label, metric].value for row in table.rows}
        draw_bars(
            {name: value.mean for name, value in values.items()},
            {name: (value.low, value.high) for name, value in values.items()},
            axes=panel,
            title=f"{head(metric)} {'↑' if ALL_METRICS[metric].higher_is_better else '↓'}",
            controls=controls,
        )
        panel.tick_params(labelsize=6.5)
        panel.title.set_size(8)
        for text in panel.texts:
            text.set_fontsize(6)
    for panel in panels[len(table.metrics) :]:
        panel.set_visible(False)
    return figure


def _curves(table: ResultTable, curves: Mapping[str, Mapping[str, Curve]]) -> Any:
    shown = [name for name in _TITLES if any(name in found for found in curves.values())]
    if not shown:
        return None
    # As many as a reader can tell apart: the first explainers, and random maps before other controls.
    controls = sorted(
        (row for row in table.rows if row.is_control), key=lambda row: (not row.is_matched, row.label != "random")
    )
    rows = [*[row for row in table.rows if not row.is_control][:EXPLAINERS_SHOWN], *controls[:CONTROLS_SHOWN]]
    figure = blank_figure(PAGE, 2.3 * -(-len(shown) // 2))
    panels = figure.subplots(-(-len(shown) // 2), 2, squeeze=False).ravel()
    for panel, name in zip(panels, shown, strict=False):
        found = {table.names[row.label]: curves.get(row.label, {}).get(name) for row in rows}
        present = {label: curve for label, curve in found.items() if curve is not None}
        bands = {label: (curve.low, curve.high) for label, curve in present.items() if np.isfinite(curve.low).all()}
        draw_curves(
            {label: curve.mean for label, curve in present.items()},
            axes=panel,
            title=_TITLES[name],
            bands=bands,
            controls=[table.names[row.label] for row in rows if row.is_control],
        )
        panel.title.set_size(8)
        panel.tick_params(labelsize=6.5)
        panel.get_legend().remove()
        panel.set_xlabel("Fraction of pixels", fontsize=7)
        panel.set_ylabel("Similarity", fontsize=7)
        lines = panel.get_lines()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    figure.legend(lines, list(present), loc="outside lower center", ncols=3, frameon=False, fontsize=6.5)
    return figure


def _agreement(results: Results) -> Any:
    return draw_agreement(agreement_matrix(results), [head(metric) for metric in results.metrics], inches=COLUMN).figure


def _write(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    written = []
    for name, figure in figures.items():
        write_figure(figure, folder / f"{name}.png")
        written.append(write_figure(figure, folder / f"{name}.pdf"))
    return written
