"""The table of a set: explainers down, metrics across, with intervals, gains, costs and everything that was counted."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twinsight.metrics import ALL_METRICS, METRICS
from twinsight.report.grids import DASH, Entry, Grid, number
from twinsight.report.results import SHARES, Facts, Results, Row
from twinsight.report.statistics import Agreement, Interval

_COST_HEADS = {"forwards": "F", "backwards": "b", "seconds": "s"}


@dataclass(frozen=True)
class Cell:
    """One explainer by one metric.

    Attributes:
        value: mean and interval over pairs.
        best: no other explainer does better, to the digits that are shown; controls never are, nor is the only one.
        gain: over the matched control; None where there is none.
        against: label of that control.
        why_not: why there is no value.
    """

    value: Interval
    best: bool
    gain: Interval | None
    against: str | None
    why_not: str | None


@dataclass(frozen=True)
class ResultTable:
    """Everything that the tables of a set show.

    Attributes:
        rows: in order, controls last.
        metrics: columns, in the order of the paper's tables.
        cells: by label of the row and metric.
        facts: counts and costs, by label of the row.
        level: of the intervals.

    >>> from twinsight.report import Results, Row, Run
    >>> runs = [Run([{"index": i, "pair_id": str(i), "skipped": None, "si": i / 4} for i in range(4)])]
    >>> table = ResultTable.of(Results([Row("gradcam", "Grad-CAM", runs)], resamples=99))
    >>> table.cells["gradcam", "si"].value.n, table.names
    (4, {'gradcam': 'Grad-CAM'})
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    facts: Mapping[str, Facts]
    level: float

    @classmethod
    def of(cls, results: Results) -> "ResultTable":
        """Work out a table."""
        cells = {}
        for metric in results.metrics:
            best = _best(results, metric)
            for row in results.rows:
                gain, control = results.gain(row.label, metric), results.matched_control(row)
                value = results.interval(row.label, metric)
                cells[row.label, metric] = Cell(
                    value,
                    best=not row.is_control and best is not None and number(value.mean) == best,
                    gain=gain,
                    against=control.label if gain is not None and control is not None else None,
                    why_not=None if value.n else row.not_applicable.get(metric, "no pair has a value"),
                )
        facts = {row.label: results.facts(row) for row in results.rows}
        return cls(results.rows, results.metrics, cells, facts, results.level)

    @cached_property
    def names(self) -> dict[str, str]:
        """What each row is called: its title, with the label where another row has the same."""
        titles = [row.title for row in self.rows]
        return {
            row.label: row.title if titles.count(row.title) == 1 else f"{row.title} ({row.label})" for row in self.rows
        }

    @property
    def pairs(self) -> int:
        """Most pairs that a row explained."""
        return max(facts.pairs for facts in self.facts.values())

    def means(self, title: str = "Two-image metrics") -> Grid:
        """Means with intervals, and what a pair cost."""
        costs = [name for name in _COST_HEADS if any(self._cost(row, name) is not None for row in self.rows)]
        grid = self._grid(title, [_COST_HEADS[name] for name in costs])
        for row in self.rows:
            line = [Entry(self.names[row.label], notes=[grid.note(text) for text in self._counted(row)])]
            for metric in self.metrics:
                cell = self.cells[row.label, metric]
                if cell.why_not is not None:
                    line.append(Entry(DASH, notes=[grid.note(_sentence(cell.why_not))]))
                    continue
                notes = [grid.note(_without_a_value(cell.value))] if cell.value.missing else []
                line.append(Entry(number(cell.value.mean), _ends(cell.value), cell.best, notes))
            for name in costs:
                cost = self._cost(row, name)
                line.append(Entry(DASH if cost is None else _cost_text(name, cost)))
            grid.lines.append(line)
        grid.caption = self._caption(costs)
        return grid

    def gains(self) -> Grid | None:
        """Gains over the matched random control; None where no row has one."""
        if not any(cell.gain for cell in self.cells.values()):
            return None
        grid = self._grid("Gain over matched random", [])
        for row in self.rows:
            line = [Entry(self.names[row.label])]
            for metric in self.metrics:
                cell = self.cells[row.label, metric]
                if cell.gain is None:
                    # That a control has none goes without saying.
                    why = cell.why_not or "no matched random control of this explainer or its family"
                    line.append(Entry(DASH, notes=[] if row.is_control else [grid.note(_sentence(why))]))
                    continue
                control = next(other for other in self.rows if other.label == cell.against)
                own = control.controls == (row.controls if row.is_control else row.label)
                notes = [] if own else [grid.note(f"Against {self.names[control.label]}, of the same family.")]
                line.append(Entry(number(cell.gain.mean, signed=True), _ends(cell.gain, signed=True), notes=notes))
            grid.lines.append(line)
        grid.caption = (
            "Mean over pairs of how much better an explanation does than noise that is as smooth as its maps: positive "
            f"is better whatever the metric. {self.level:.0%} intervals."
        )
        return grid

    def long(self) -> list[dict[str, Any]]:
        """One dictionary per row and metric, everything in it, unrounded; None where there is nothing."""
        found = []
        for row in self.rows:
            facts = self.facts[row.label]
            for metric in self.metrics:
                cell = self.cells[row.label, metric]
                found.append(
                    {
                        "row": row.label,
                        "title": row.title,
                        "family": row.family,
                        "control": row.is_control,
                        "controls": row.controls,
                        "metric": metric,
                        "higher_is_better": bool(ALL_METRICS[metric].higher_is_better),
                        **_interval_columns(cell.value, ("mean", "low", "high", "n", "method")),
                        "missing": cell.value.missing,
                        "best": cell.best,
                        **_gain_columns(cell),
                        "not_applicable": cell.why_not,
                        "pairs": facts.pairs,
                        "skipped": facts.skipped,
                        "degenerate": facts.degenerate,
                        "nonpositive": facts.nonpositive,
                        "approximate": facts.approximate,
                        "reduced": sum(facts.reduced.values()),
                        **facts.costs,
                        "level": self.level,
                    }
                )
        return found

    def _grid(self, title: str, more: list[str]) -> Grid:
        heads = [(head(metric), bool(ALL_METRICS[metric].higher_is_better)) for metric in self.metrics]
        explainers = sum(not row.is_control for row in self.rows)
        return Grid(title, [("Explainer", None), *heads, *((head, None) for head in more)], explainers)

    def _cost(self, row: Row, name: str) -> float | None:
        costs = self.facts[row.label].costs
        if name != "seconds":
            return costs.get(name)
        parts = [costs[part] for part in ("explain_seconds", "metrics_seconds") if part in costs]
        return math.fsum(parts) if parts else None

    def _counted(self, row: Row) -> list[str]:
        facts = self.facts[row.label]
        said = [
            (facts.skipped, "could not be read."),
            (facts.degenerate, "with a constant or non-finite map: its ranking is chance."),
            (facts.nonpositive, "with a similarity of zero or less: relative drops mean little."),
            (facts.approximate, "with approximate areas: only where curves bend were points computed."),
            *(
                (count, f"asked for in {precision}, less than single precision.")
                for precision, count in facts.reduced.items()
            ),
        ]
        fewer = [f"Explained {_pairs(facts.pairs)} of {self.pairs}."] if facts.pairs < self.pairs else []
        return [f"{_pairs(count)} {what}" for count, what in said if count] + fewer

    def _caption(self, costs: list[str]) -> str:
        shares = [head(metric) for metric in self.metrics if metric in SHARES]
        wilson = f"; Wilson's for {' and '.join(shares)}" if shares else ""
        seeds = len(self.rows[0].runs)
        bootstrap = "BCa bootstrap" if seeds == 1 else f"bootstrap of {seeds} seeds and of pairs"
        text = (
            f"{_pairs(self.pairs)}. Mean and {self.level:.0%} interval over pairs ({bootstrap}{wilson}). "
            "The best explanation of a column is bold; controls, in italics, do not compete."
        )
        said = {
            "forwards": "F: forward passes a pair, metrics included, without what rows before had encoded.",
            "backwards": "b: backward passes a pair.",
            "seconds": "s: seconds a pair.",
        }
        return " ".join([text, *(said[name] for name in costs)])


def comparison_rows(results: Results) -> list[dict[str, Any]]:
    """One dictionary per metric and two explainers: mean of first minus second, interval, p-values, who is better."""
    found = []
    for metric, first, second, compared, corrected in results.comparisons:
        towards = compared.difference.mean * (1 if ALL_METRICS[metric].higher_is_better else -1)
        better = first if towards > 0 else second if towards < 0 else None
        found.append(
            {
                "metric": metric,
                "first": first,
                "second": second,
                **_interval_columns(compared.difference, ("difference", "low", "high", "n", "method")),
                "better": better if compared.difference.n else None,
                "p": _or_none(compared.p),
                "p_holm": _or_none(corrected),
            }
        )
    return found


def agreement_rows(agreement: list[Agreement]) -> list[dict[str, Any]]:
    """One dictionary per two metrics."""
    return [
        {"first": one.first, "second": one.second, "tau": _or_none(one.tau), "p": _or_none(one.p), "n": one.n}
        for one in agreement
    ]


def agreement_grid(results: Results) -> Grid:
    """Kendall's tau of every two metrics, as a square."""
    tau = {frozenset((one.first, one.second)): one.tau for one in results.agreement}
    heads: list[tuple[str, bool | None]] = [(head(metric), None) for metric in results.metrics]
    grid = Grid("Rank agreement of metrics", [("Metric", None), *heads], explainers=len(results.metrics))
    for one in results.metrics:
        shown = ["1" if one == other else _tau(tau[frozenset((one, other))]) for other in results.metrics]
        grid.lines.append([Entry(head(one)), *map(Entry, shown)])
    grid.caption = (
        f"Kendall's tau between the rankings of {len(results.explainers)} explainers, controls left out, from best to "
        "worst: 1 where two metrics rank alike, -1 where what one calls good the other calls bad."
    )
    return grid


def head(metric: str) -> str:
    """What a metric is called at the top of its column.

    >>> head("si"), head("pointing_game")
    ('SI', 'Pointing game')
    """
    return metric.upper() if metric in METRICS else metric.replace("_", " ").capitalize()


def _best(results: Results, metric: str) -> str | None:
    """The best mean of the explainers as it is shown; None where fewer than two have one."""
    means = [results.interval(row.label, metric).mean for row in results.explainers]
    present = [mean for mean in means if not math.isnan(mean)]
    pick: Callable[[list[float]], float] = max if ALL_METRICS[metric].higher_is_better else min
    return number(pick(present)) if len(present) > 1 else None


def _interval_columns(found: Interval, names: tuple[str, str, str, str, str]) -> dict[str, Any]:
    values = (_or_none(found.mean), _or_none(found.low), _or_none(found.high), found.n, found.method)
    return dict(zip(names, values, strict=True))


def _gain_columns(cell: Cell) -> dict[str, Any]:
    names = ("gain", "gain_low", "gain_high", "gain_n", "gain_method")
    columns = dict.fromkeys(names) if cell.gain is None else _interval_columns(cell.gain, names)
    return {**columns, "gain_over": cell.against}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _ends(found: Interval, signed: bool = False) -> str:
    return "" if math.isnan(found.low) else f"[{number(found.low, signed)}, {number(found.high, signed)}]"


def _tau(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:+.2f}"


def _cost_text(name: str, cost: float) -> str:
    return f"{cost:.2f}" if name == "seconds" and cost < 100 else f"{cost:.0f}"


def _without_a_value(value: Interval) -> str:
    return f"{_pairs(value.missing)} of {value.n + value.missing} without a value."


def _pairs(count: int) -> str:
    return f"{count} pair" if count == 1 else f"{count} pairs"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
