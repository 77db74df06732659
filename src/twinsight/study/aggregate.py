"""Many cells as one table: means and intervals over pairs and seeds, from the records of cells that are done."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinsight.errors import UserError, unknown
from twinsight.metrics import ALL_METRICS
from twinsight.report import Entry, Grid, Interval, intervals, kind_of, number, write_grid
from twinsight.sealed import Damaged
from twinsight.study.records import read
from twinsight.study.study import Study, StudyCell

Values = tuple[Any, ...]


@dataclass
class Group:
    """Cells that make one row of a table.

    Attributes:
        values: of the axes that the table is by.
        cells: that are done.
        scores: interval of each metric, over pairs and everything that the table is not by.
        is_control: every cell of it is a control.
    """

    values: Values
    cells: list[StudyCell]
    scores: Mapping[str, Interval]
    is_control: bool


@dataclass
class StudyTable:
    """Cells of a study, grouped.

    Attributes:
        name: of the study.
        by: axes that tell rows apart.
        over: axes that means are taken over.
        where: conditions that its cells meet.
        metrics: columns.
        groups: rows, controls last.
        missing: cells that are not in it, and how far they are.
    """

    name: str
    by: list[str]
    over: list[str]
    where: list[str]
    metrics: list[str]
    groups: list[Group]
    missing: dict[str, str]

    def grid(self) -> Grid:
        """For readers: means with intervals, best in bold, arrows for the direction; missing cells in notes."""
        heads: list[tuple[str, bool | None]] = [(axis, None) for axis in self.by or ["study"]]
        heads += [("pairs", None), *((name.upper(), _better(name)) for name in self.metrics)]
        explainers = sum(not group.is_control for group in self.groups)
        grid = Grid(f"Study {self.name}", heads, explainers=explainers)
        best = {name: self._best(name) for name in self.metrics}
        for group in self.groups:
            values = [_shown(value) for value in group.values] or [self.name]
            line = [*map(Entry, values), Entry(str(_pairs(group)))]
            for name in self.metrics:
                line.append(_entry(group.scores[name], not group.is_control and best[name]))
            grid.lines.append(line)
        over = f" and over {', '.join(self.over)}" if self.over else ""
        where = f", of cells with {' and '.join(self.where)}" if self.where else ""
        grid.caption = f"Mean over pairs{over}, with 95 % confidence intervals{where}."
        for name, state in self.missing.items():
            grid.note(f"{name} is missing: {state}.")
        return grid

    def long(self) -> list[dict[str, Any]]:
        """For programs: one dictionary per row and metric."""
        rows = []
        for group, name in itertools.product(self.groups, self.metrics):
            score = group.scores[name]
            rows.append(
                {
                    **{axis: _shown(value) for axis, value in zip(self.by, group.values, strict=True)},
                    "metric": name,
                    "mean": _or_none(score.mean),
                    "low": _or_none(score.low),
                    "high": _or_none(score.high),
                    "pairs": score.n,
                    "cells": len(group.cells),
                    "interval": score.method,
                    "is_control": group.is_control,
                }
            )
        return rows

    def write(self, folder: Path) -> list[Path]:
        """Write it as Markdown, CSV and Parquet; the files."""
        parts = ["table", *(["by", *self.by] if self.by else []), *(["where", *self.where] if self.where else [])]
        stem = re.sub(r"[^\w=-]", "_", "-".join(parts))
        return write_grid(self.grid(), self.long(), folder / stem)

    def _best(self, metric: str) -> str | None:
        means = [group.scores[metric].mean for group in self.groups if not group.is_control]
        present = [mean for mean in means if mean == mean]
        if len(present) < 2:
            return None
        return number(max(present) if ALL_METRICS[metric].higher_is_better else min(present))


def tabulate_study(study: Study, by: Sequence[str] | None = None, where: Sequence[str] = ()) -> StudyTable:
    """Group the cells of a study that are done.

    Args:
        study: planned.
        by: axes that tell rows apart; None is every axis but the seed.
        where: ``"axis=value"``: cells that have it, all others are left out.

    Raises:
        UserError: an axis that does not vary in this study, a condition that no cell meets, or no cell is done.
    """
    cells = list(_chosen(study.cells, where))
    known = list(dict.fromkeys(axis for cell in study.cells if cell.line.reason is None for axis in cell.axes))
    axes = [axis for axis in known if len({_shown(cell.axes[axis]) for cell in cells if axis in cell.axes}) > 1]
    by = [axis for axis in axes if axis != "seed"] if by is None else list(by)
    for axis in by:
        if axis not in known:
            raise unknown(f"axis of study {study.name}", axis, known)
    statuses = {cell: cell.status() for cell in cells}
    done = [cell for cell in cells if statuses[cell]["state"] == "done" and cell.line.maps]
    missing = {cell.name: _why(status) for cell, status in statuses.items() if status["state"] != "done"}
    records = {}
    for cell in list(done):
        try:
            records[cell] = [row for row in read(cell.folder) if row["skipped"] is None]
        except (Damaged, OSError) as error:
            done.remove(cell)
            missing[cell.name] = f"its records cannot be read ({str(error).splitlines()[0]}): run the study again"
    if not done:
        raise UserError(f"no cell of study {study.name} is done yet: twinsight study status {study.name}")
    missing |= {cell.name: "its explainer makes no maps" for cell, status in statuses.items() if _without(cell, status)}
    metrics = [name for name in ALL_METRICS if any(name in row for rows in records.values() for row in rows[:1])]
    groups: dict[Values, list[StudyCell]] = {}
    for cell in done:
        groups.setdefault(tuple(cell.axes.get(axis) for axis in by), []).append(cell)
    over = [axis for axis in axes if axis not in by]
    rows = [
        Group(
            values,
            members,
            _scores(members, records, metrics, over),
            is_control=all(cell.line.table.get("is_control") for cell in members),
        )
        for values, members in groups.items()
    ]
    rows.sort(key=lambda group: group.is_control)
    return StudyTable(study.name, by, over, list(where), metrics, rows, missing)


def flat_records(study: Study) -> Iterator[dict[str, Any]]:
    """Every record of every cell that is done, with the cell's name and axes in front.

    A record's own seed, which belongs to the pair, is called ``pair_seed``: ``seed`` is the study's.
    """
    for cell in study.cells:
        if cell.status()["state"] == "done":
            for row in read(cell.folder):
                own = {"pair_seed" if name == "seed" else name: value for name, value in row.items()}
                yield {"cell": cell.name, "explainer": cell.label, **cell.axes, **own}


def _chosen(cells: Iterable[StudyCell], where: Sequence[str]) -> Iterator[StudyCell]:
    conditions = []
    for text in where:
        axis, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"`--where {text}` must be AXIS=VALUE")
        conditions.append((axis, value))
    cells = [cell for cell in cells if cell.line.reason is None or not where]
    for axis, value in conditions:
        known = sorted({_shown(cell.axes[axis]) for cell in cells if axis in cell.axes})
        if not known:
            raise unknown("axis", axis, {axis for cell in cells for axis in cell.axes})
        if value not in known:
            raise unknown(f"value of {axis}", value, known)
    for cell in cells:
        if all(axis in cell.axes and _shown(cell.axes[axis]) == value for axis, value in conditions):
            yield cell


def _scores(
    cells: Sequence[StudyCell],
    records: Mapping[StudyCell, Sequence[Mapping[str, Any]]],
    metrics: Sequence[str],
    over: Sequence[str],
) -> dict[str, Interval]:
    """Intervals of every metric over pairs (rows) and replicates (columns), such as seeds.

    Photos of different data sets are different pairs, not replicates of each other.
    """
    replicates = [axis for axis in over if axis.split(".")[0] != "data"]
    columns: dict[Values, int] = {}
    places: dict[Values, int] = {}
    found = []
    for cell in cells:
        column = columns.setdefault(tuple(_shown(cell.axes.get(axis)) for axis in replicates), len(columns))
        data = tuple(_shown(value) for axis, value in cell.axes.items() if axis.split(".")[0] == "data")
        for row in records[cell]:
            key = (*data, row["pair_id"])
            found.append((places.setdefault(key, len(places)), column, row))
    arrays = {name: np.full((len(places), len(columns)), np.nan) for name in metrics}
    for place, column, row in found:
        for name in metrics:
            if row.get(name) is not None:
                arrays[name][place, column] = row[name]
    scores = intervals(list(arrays.values()), [kind_of(name) for name in metrics])
    return dict(zip(metrics, scores, strict=True))


def _entry(score: Interval, best: str | bool | None) -> Entry:
    if score.n == 0:
        return Entry("-")
    ends = "" if score.low != score.low else f"[{number(score.low)}, {number(score.high)}]"
    return Entry(number(score.mean), ends, bold=number(score.mean) == best)


def _pairs(group: Group) -> int:
    return max((score.n for score in group.scores.values()), default=0)


def _better(metric: str) -> bool:
    return bool(ALL_METRICS[metric].higher_is_better)


def _without(cell: StudyCell, status: Mapping[str, Any]) -> bool:
    return status["state"] == "done" and not cell.line.maps


def _why(status: Mapping[str, Any]) -> str:
    detail = status.get("error") or status.get("reason")
    return f"{status['state']}, {str(detail).splitlines()[0]}" if detail else str(status["state"])


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _or_none(value: float) -> float | None:
    return None if value != value else value
