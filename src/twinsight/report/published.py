"""The tables of the paper, and ours beside them."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from twinsight.metrics import METRICS
from twinsight.report.grids import DASH, Entry, Grid, number
from twinsight.report.statistics import Interval
from twinsight.report.tables import ResultTable

_MODELS = {"simclrv2_r50_2x": "SimCLRv2, ResNet-50 2x", "barlow_twins": "Barlow Twins, ResNet-50"}
Scores = Mapping[str, float]


def _read(model: str) -> dict[str, Scores]:
    text = resources.files("twinsight.report").joinpath("published_tables", f"{model}.csv").read_text(encoding="utf-8")
    return {
        line.pop("row"): {metric: float(value) for metric, value in line.items() if value}
        for line in csv.DictReader(text.splitlines())
    }


PUBLISHED: dict[str, dict[str, Scores]] = {model: _read(model) for model in _MODELS}
"""Mean over the paper's images by model, row and metric; rows are named as in ``explainers=paper``.

A metric that the paper does not give for a row is absent. Source: arXiv 2206.09753 v1; ``published_tables/*.csv``.
"""


@dataclass(frozen=True)
class PublishedTable:
    """Ours beside the published figures, for the rows and metrics that both have.

    Attributes:
        title: of the published model.
        names: what each row is called, by label.
        ours: mean and interval, by label and metric.
        published: figure of the paper, by label and metric.
    """

    title: str
    names: Mapping[str, str]
    ours: Mapping[tuple[str, str], Interval]
    published: Mapping[tuple[str, str], float]

    def markdown(self) -> str:
        """Each cell: ours, published, ours minus published; bold where the published figure is outside our interval."""
        metrics = [metric for metric in METRICS if any(metric == other for _, other in self.ours)]
        heads = [(metric.upper(), bool(METRICS[metric].higher_is_better)) for metric in metrics]
        grid = Grid(f"Beside the paper: {self.title}", [("Explainer", None), *heads], explainers=len(self.names))
        for label, name in self.names.items():
            line = [Entry(name)]
            for metric in metrics:
                if (label, metric) not in self.ours:
                    line.append(Entry(DASH))
                    continue
                found, figure = self.ours[label, metric], self.published[label, metric]
                away = f"({number(found.mean - figure, signed=True)})"
                line.append(Entry(f"{number(found.mean)} / {number(figure)}", away, _outside(found, figure)))
            grid.lines.append(line)
        grid.caption = (
            "Ours / published (difference). Bold: the published figure lies outside our interval. The paper's images "
            "and their number are not published; protocol=paper computes what its code computes."
        )
        return grid.markdown()

    def long(self) -> list[dict[str, Any]]:
        """One dictionary per row and metric."""
        return [
            {
                "row": label,
                "metric": metric,
                "ours": found.mean,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "published": self.published[label, metric],
                "difference": found.mean - self.published[label, metric],
            }
            for (label, metric), found in self.ours.items()
        ]


def beside_published(table: ResultTable, model: str | None) -> PublishedTable | None:
    """The second table, None where ``model`` is no model of the paper's tables, or no row is one of theirs.

    Rows are matched by their labels. That their options are the paper's is the caller's to know.
    """
    figures = PUBLISHED.get(model or "", {})
    shared = {
        (row.label, metric): table.cells[row.label, metric].value
        for row in table.rows
        for metric in table.metrics
        if metric in figures.get(row.label, {}) and table.cells[row.label, metric].value.n
    }
    if not shared:
        return None
    assert model is not None
    return PublishedTable(
        _MODELS[model],
        {row.label: table.names[row.label] for row in table.rows if any(row.label == label for label, _ in shared)},
        shared,
        {(label, metric): figures[label][metric] for label, metric in shared},
    )


def _outside(found: Interval, figure: float) -> bool:
    return figure < found.low or figure > found.high
