"""Results broken down by what kind of pair it is: pairs that show the same against those that do not."""

from collections.abc import Sequence
from dataclasses import replace

from twinsight.report.results import Record, Results, Run

MOST_LABELS = 12
"""A table for each label is for a handful of kinds, not for the classes of a data set."""


def labels_of(records: Sequence[Record]) -> list[str]:
    """The labels that explained pairs have, sorted; none where they are more than ``MOST_LABELS``.

    >>> labels_of([{"skipped": None, "label": "same"}, {"skipped": None, "label": None}, {"skipped": "broken"}])
    ['same']
    """
    found = {str(each["label"]) for each in records if each.get("skipped") is None and each.get("label") is not None}
    return sorted(found) if len(found) <= MOST_LABELS else []


def by_label(results: Results) -> dict[str, Results]:
    """The results of the pairs of each label; empty where pairs have none."""
    labels = labels_of([record for row in results.rows for run in row.runs for record in run.records])
    return {label: _of(results, label) for label in labels}


def _of(results: Results, label: str) -> Results:
    rows = [replace(row, runs=[_labelled(run, label) for run in row.runs]) for row in results.rows]
    return Results(rows, results.level, results.resamples, results.seed)


def _labelled(run: Run, label: str) -> Run:
    records = [record for record in run.records if record.get("label") == label]
    places = {record["index"] for record in records}
    return Run(records, [timing for timing in run.timings if timing["index"] in places])
