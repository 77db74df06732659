"""Cells as the rows of tables: which can be held against each other, and what their records say."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twinsight.report.curves import Curve, mean_curves
from twinsight.report.html.sources import CellFolder
from twinsight.report.results import Results, Row
from twinsight.report.statistics import Interval
from twinsight.report.tables import ResultTable

EXPLAINER_KEYS = ("explainer", "explainers", "metrics")
"""Where the keys begin that may differ within one table."""


@dataclass
class Group:
    """Cells of one model on one data set: one table.

    Attributes:
        name: what the group has that others have not.
        rows: label: its cells, one for each seed.
    """

    name: str
    rows: dict[str, list[CellFolder]]

    @cached_property
    def results(self) -> Results:
        return Results([self._row(label, cells) for label, cells in self.rows.items()])

    @cached_property
    def table(self) -> ResultTable:
        return ResultTable.of(self.results)

    @cached_property
    def curves(self) -> dict[str, dict[str, Curve]]:
        """Mean curves by label."""
        return {label: mean_curves([cell.folder for cell in cells]) for label, cells in self.rows.items()}

    def _row(self, label: str, cells: Sequence[CellFolder]) -> Row:
        shown = cells[0].explainer
        of = cells[0].identity.get("explainer", {}).get("options", {}).get("of")
        controlled = [other for other, (first, *_) in self.rows.items() if of and first.identity.get("explainer") == of]
        return Row(
            label=label,
            title=shown["title"],
            runs=[run for cell in cells if (run := cell.run) is not None],
            family=shown["family"],
            is_control=shown["is_control"],
            controls=controlled[0] if controlled else None,
            is_matched=shown["is_matched"],
            not_applicable=cells[0].summary.get("not_applicable") or {},
        )


def grouped(cells: Sequence[CellFolder]) -> list[Group]:
    """Cells with records, by what decides whether their numbers can be compared.

    Cells that differ only by their seed are one row, if every row has the same seeds.
    """
    readable = [
        cell for cell in cells if cell.run is not None and any(r.get("skipped") is None for r in cell.run.records)
    ]
    groups: dict[str, list[CellFolder]] = defaultdict(list)
    for cell in readable:
        shared = {
            key: value for key, value in cell.identity.items() if key not in (*EXPLAINER_KEYS, "seed", "chunk_size")
        }
        groups[json.dumps(shared, sort_keys=True)].append(cell)
    names = _group_names(list(groups.values()))
    return [Group(name, _rows(members)) for name, members in zip(names, groups.values(), strict=True)]


def differences(cells: Sequence[CellFolder]) -> list[str]:
    """Keys that vary: those of the plan, or else of the identities, the explainer's own options aside."""
    planned = list(dict.fromkeys(key for cell in cells for key in cell.axes))
    if planned:
        return planned
    flat = [settings_of(cell) for cell in cells]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [key for key in keys if len({json.dumps(each.get(key)) for each in flat}) > 1]


def settings_of(cell: CellFolder) -> dict[str, Any]:
    """What decides a cell's result, flat: ``model.name``, ``seed``; axes of the plan win."""
    identity = {key: value for key, value in cell.identity.items() if key not in EXPLAINER_KEYS}
    return {**_flat(identity), **cell.axes}


def options_of(cell: CellFolder) -> str:
    """The explainer's resolved options in one line."""
    explainer = cell.identity.get("explainer", {})
    parts = [f"{key}={_short(value)}" for key, value in (explainer.get("options") or {}).items()]
    protocol = explainer.get("protocol")
    return ", ".join([*parts, *([f"protocol={protocol}"] if protocol else [])])


def ends(found: Interval | None) -> list[Any] | None:
    """Mean, low, high, number of pairs and method, as the page reads them."""
    if found is None or math.isnan(found.mean):
        return None
    return [rounded(found.mean), rounded(found.low), rounded(found.high), found.n, found.method]


def rounded(value: float | None, digits: int = 5) -> float | None:
    """A number short enough for a page, None for what JSON cannot say."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _rows(cells: Sequence[CellFolder]) -> dict[str, list[CellFolder]]:
    by_row: dict[str, list[CellFolder]] = defaultdict(list)
    for cell in cells:
        what = {key: cell.identity.get(key) for key in EXPLAINER_KEYS}
        by_row[json.dumps([cell.label, what], sort_keys=True)].append(cell)
    rows = [sorted(each, key=lambda cell: str(cell.identity.get("seed")).zfill(12)) for each in by_row.values()]
    if len({tuple(str(cell.identity.get("seed")) for cell in each) for each in rows}) > 1:
        rows = [[cell] for each in rows for cell in each]
    labels = [each[0].label for each in rows]
    named = {}
    for each, label in zip(rows, labels, strict=True):
        if labels.count(label) > 1:
            own = {key: value for key, value in each[0].axes.items() if key.split(".")[0] in (*EXPLAINER_KEYS, "seed")}
            told = ", ".join(
                f"{key.rsplit('.', 1)[-1]}={_short(value)}" for key, value in own.items() if value != label
            )
            label = f"{label} ({told})" if told else f"{label} ({each[0].name[-10:]})"
        named[label if label not in named else f"{label} ({each[0].name[-10:]})"] = each
    return named


def _group_names(groups: Sequence[Sequence[CellFolder]]) -> list[str]:
    """Model and data set, and what else tells groups apart."""
    flat = [settings_of(members[0]) for members in groups]
    plain = [f"{each.get('model.name', 'model')} on {each.get('data.name', 'data')}" for each in flat]
    keys = dict.fromkeys(key for each in flat for key in each)
    skipped = ("model.", "data.", "seed", "views._target_", *EXPLAINER_KEYS)
    varying = [
        key
        for key in keys
        if not key.startswith(skipped) and key != "model" and len({json.dumps(each.get(key)) for each in flat}) > 1
    ]
    names = []
    for members, each, name in zip(groups, flat, plain, strict=True):
        told = [f"{key}={_short(each.get(key))}" for key in varying if plain.count(name) > 1]
        name = ", ".join([name, *told])
        names.append(name if name not in names else f"{name} ({members[0].name[-10:]})")
    return names


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("name") or "…")
    if isinstance(value, list):
        return "[" + ",".join(map(_short, value)) + "]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
