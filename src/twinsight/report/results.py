"""Results of several explainers on the same pairs, from their records alone."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from twinsight.errors import UserError
from twinsight.metrics import ALL_METRICS
from twinsight.report import statistics
from twinsight.report.resampling import Array
from twinsight.report.statistics import LEVEL, RESAMPLES, SEED, Agreement, Comparison, Interval, Kind
from twinsight.sealed import read_sealed

Record = Mapping[str, Any]
SHARES = frozenset({"sic", "cic", "cic1", "cic2", "pointing_game", "pointing_game1", "pointing_game2"})
"""Columns of trials that succeed or fail, or the mean of two such: they get Wilson's interval."""
COSTS = ("forwards", "backwards", "explain_seconds", "metrics_seconds")
"""Columns of the timings that are averaged over pairs."""


def kind_of(column: str) -> Kind:
    """Which interval a column of the records gets.

    >>> kind_of("sic"), kind_of("si")
    ('share', 'mean')
    """
    return "share" if column in SHARES else "mean"


@dataclass(frozen=True)
class Run:
    """What one cell recorded; the order of its rows does not matter.

    Attributes:
        records: one per pair: ``index``, ``pair_id``, ``skipped`` (a reason or None), scores, flags.
        timings: one per pair; columns of ``COSTS`` are read, where they are.
    """

    records: Sequence[Record]
    timings: Sequence[Record] = ()

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """From a cell's folder: the compacted files, and fragments where it is not finished.

        Raises:
            UserError: there are no records.
            Damaged: a file is not what was written.
        """
        records = _rows(folder, "records")
        if not records:
            raise UserError(f"no records in {folder}: run the cell first")
        return cls(records, _rows(folder, "timings"))


@dataclass(frozen=True)
class Row:
    """One explainer of a table.

    Attributes:
        label: its name in the set, unique.
        title: what readers call it.
        runs: its cell, or one cell per seed; the same seeds in the same order for every row.
        family: explainers of one family may share a matched control.
        is_control: it must lose, and never competes.
        controls: label of the row that it is a control of, None for a control of nothing in the table.
        is_matched: it is the random control as smooth as the row, or the family, that it controls.
        not_applicable: columns that make no sense for it, and why.
    """

    label: str
    title: str
    runs: Sequence[Run]
    family: str = ""
    is_control: bool = False
    controls: str | None = None
    is_matched: bool = False
    not_applicable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a row's records say beside scores.

    Attributes:
        pairs: explained, under any seed.
        skipped: pairs whose photo could not be read, under any seed.
        degenerate: records with a constant or non-finite map.
        nonpositive: records whose similarity is zero or less.
        approximate: records whose areas are of curves that were computed in part.
        reduced: records whose passes were in less than single precision, by precision.
        costs: mean over pairs, by column of the timings; only those that were recorded.
    """

    pairs: int
    skipped: int
    degenerate: int
    nonpositive: int
    approximate: int
    reduced: Mapping[str, int]
    costs: Mapping[str, float]


class Results:
    """Scores of several explainers, aligned by pair.

    Args:
        rows: explainers in the order of the table; controls are moved to its end.
        level, resamples, seed: of every interval and test.

    Raises:
        UserError: no rows, a label twice, a row without runs, or rows with different numbers of seeds.

    >>> records = [{"index": i, "pair_id": str(i), "skipped": None, "si": i / 4} for i in range(4)]
    >>> results = Results([Row("gradcam", "Grad-CAM", [Run(records)])], resamples=99)
    >>> results.metrics, results.interval("gradcam", "si").mean
    (('si',), 0.375)
    """

    def __init__(self, rows: Iterable[Row], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED) -> None:
        given = list(rows)
        labels = [row.label for row in given]
        if not given:
            raise UserError("a table needs at least one row")
        if len(set(labels)) < len(labels):
            raise UserError(f"labels of rows must differ, got {labels}")
        if len({len(row.runs) for row in given}) > 1 or not given[0].runs:
            raise UserError(f"every row needs a run for every seed, got {[len(row.runs) for row in given]} runs")
        self.rows = tuple(sorted(given, key=lambda row: row.is_control))
        self.level = level
        self.resamples = resamples
        self.seed = seed
        keys = {_key(record) for row in given for run in row.runs for record in run.records}
        self._places = {key: place for place, key in enumerate(sorted(keys))}

    @property
    def explainers(self) -> tuple[Row, ...]:
        """The rows that are no controls."""
        return tuple(row for row in self.rows if not row.is_control)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that some row has, in the order of the paper's tables."""
        return tuple(
            name for name in ALL_METRICS if any(np.isfinite(self.values(row.label, name)).any() for row in self.rows)
        )

    def values(self, label: str, column: str) -> Array:
        """A row's scores ``(N, S)`` over all pairs of the table, NaN where it has none."""
        return self._values[label].get(column, self._nothing)

    def interval(self, label: str, metric: str) -> Interval:
        """Mean of a row over the pairs that it has; pairs that it explained without a score are its missing ones."""
        return self._intervals[label, metric]

    def gain(self, label: str, metric: str) -> Interval | None:
        """How much better a row does than its matched control, None where there is none or one lacks the metric."""
        return self._gains.get((label, metric))

    def matched_control(self, row: Row) -> Row | None:
        """The matched random control to hold a row against: its own, else that of a row of the same family.

        A control is held against the matched control of what it controls; a matched control against none.
        """
        matched = [other for other in self.rows if other.is_matched]
        if row.is_matched:
            return None
        target = row.controls if row.is_control else row.label
        own = [other for other in matched if target is not None and other.controls == target]
        family = [other for other in matched if row.family and other.family == row.family]
        return next(iter(own + family), None)

    @cached_property
    def comparisons(self) -> list[tuple[str, str, str, Comparison, float]]:
        """Every two explainers by every metric: metric, labels of the two, comparison, p-value after Holm's correction.

        The correction is for all comparisons within one metric of this table. Controls are not compared.
        """
        found = []
        labels = [row.label for row in self.explainers]
        pairs = [(a, b) for place, a in enumerate(labels) for b in labels[place + 1 :]]
        keys = [(metric, a, b) for metric in self.metrics for a, b in pairs]
        differences = [statistics.difference(self.values(a, metric), self.values(b, metric)) for metric, a, b in keys]
        compared = statistics.comparisons(differences, self.level, self.resamples, self.seed) if keys else []
        for place in range(len(self.metrics)):
            part = slice(place * len(pairs), (place + 1) * len(pairs))
            corrected = statistics.holm([one.p for one in compared[part]])
            found += [
                (*key, one, p) for key, one, p in zip(keys[part], compared[part], corrected.tolist(), strict=True)
            ]
        return found

    @cached_property
    def agreement(self) -> list[Agreement]:
        """Whether metrics rank the explainers, controls left out, alike."""
        means = {metric: [self.interval(row.label, metric).mean for row in self.explainers] for metric in self.metrics}
        better = {metric: bool(ALL_METRICS[metric].higher_is_better) for metric in self.metrics}
        return statistics.rank_agreement(means, better)

    def facts(self, row: Row) -> Facts:
        """Counts and costs of a row."""
        records = [record for run in row.runs for record in run.records]
        explained = [record for record in records if record.get("skipped") is None]
        timings = [timing for run in row.runs for timing in run.timings]
        costs = {}
        for column in COSTS:
            present = [float(timing[column]) for timing in timings if timing.get(column) is not None]
            if present:
                costs[column] = math.fsum(present) / len(present)
        return Facts(
            pairs=len({_key(record) for record in explained}),
            skipped=len({_key(record) for record in records if record.get("skipped") is not None}),
            degenerate=sum(bool(record.get("degenerate1") or record.get("degenerate2")) for record in explained),
            nonpositive=sum(bool(record.get("nonpositive")) for record in explained),
            approximate=sum(bool(record.get("approximate")) for record in explained),
            reduced=Counter(record["precision"] for record in explained if record.get("precision", "fp32") != "fp32"),
            costs=costs,
        )

    @cached_property
    def _nothing(self) -> Array:
        return np.full((len(self._places), len(self.rows[0].runs)), np.nan)

    @cached_property
    def _values(self) -> dict[str, dict[str, Array]]:
        found: dict[str, dict[str, Array]] = {row.label: {} for row in self.rows}
        for row in self.rows:
            for seed, run in enumerate(row.runs):
                for record in run.records:
                    for column in ALL_METRICS.keys() & record.keys():
                        if record[column] is not None and math.isfinite(record[column]):
                            array = found[row.label].setdefault(column, self._nothing.copy())
                            array[self._places[_key(record)], seed] = record[column]
        return found

    @cached_property
    def _intervals(self) -> dict[tuple[str, str], Interval]:
        keys = [(row, metric) for row in self.rows for metric in self.metrics]
        # Only pairs that the row has a record of: another row's pairs are not missing here.
        explained = {row.label: self._explained(row) for row in self.rows}
        columns = [self.values(row.label, metric) for row, metric in keys]
        kinds = [kind_of(metric) for _, metric in keys]
        found = statistics.intervals(columns, kinds, self.level, self.resamples, self.seed)
        return {
            (row.label, metric): Interval(one.mean, one.low, one.high, one.n, explained[row.label] - one.n, one.method)
            for (row, metric), one in zip(keys, found, strict=True)
        }

    def _explained(self, row: Row) -> int:
        return len({_key(record) for run in row.runs for record in run.records if record.get("skipped") is None})

    @cached_property
    def _gains(self) -> dict[tuple[str, str], Interval]:
        keys, columns = [], []
        for row in self.rows:
            control = self.matched_control(row)
            for metric in self.metrics if control else ():
                assert control is not None
                sign = 1 if ALL_METRICS[metric].higher_is_better else -1
                column = sign * statistics.difference(
                    self.values(row.label, metric), self.values(control.label, metric)
                )
                if np.isfinite(column).any():
                    keys.append((row.label, metric))
                    columns.append(column)
        found = statistics.intervals(columns, ["mean"] * len(columns), self.level, self.resamples, self.seed)
        return dict(zip(keys, found, strict=True))


def _key(record: Record) -> tuple[int, str]:
    return int(record["index"]), str(record["pair_id"])


def _rows(folder: Path, table: str) -> list[Record]:
    whole = folder / f"{table}.parquet"
    parts = [*([whole] if whole.exists() else []), *sorted((folder / "fragments" / table).glob("*.parquet"))]
    by_index = {row["index"]: row for part in parts for row in read_sealed(part).to_pylist()}
    return [by_index[index] for index in sorted(by_index)]
