"""Cells of one set together: where their shared files are, and their tables."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinsight.explainers.controls import MatchedRandom
from twinsight.report import Results, Row, Run, write_tables
from twinsight.study.cell import Cell


def with_maps(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that can be held side by side: those whose explainers make maps."""
    return [cell for cell in cells if cell.explainer.maps]


def set_folder(cells: Sequence[Cell]) -> Path | None:
    """Where pictures and tables of a set are, named by its cells with maps; None for fewer than two of them."""
    cells = with_maps(cells)
    if len(cells) < 2:
        return None
    digest = hashlib.sha256("".join(cell.digest for cell in cells).encode()).hexdigest()[:10]
    names = (cells[0].identity[part]["name"] for part in ("data", "model"))
    return cells[0].root / "sets" / "-".join((*names, f"{len(cells)}-explainers", digest))


def tabulate(cells: Sequence[Cell]) -> Path | None:
    """Write the tables of a set, made from the records of its cells with maps; their folder.

    None where the set has none, or no metric was computed.
    """
    folder = set_folder(cells)
    if folder is None or not any(cell.metrics for cell in cells):
        return None
    cells = with_maps(cells)
    facts = {cell.label: table_facts(cell) for cell in cells}
    rows = [table_row(cell.label, facts[cell.label], facts, [Run.read(cell.folder)]) for cell in cells]
    write_tables(Results(rows), folder / "tables", cells[0].identity["model"]["name"])
    return folder / "tables"


def table_facts(cell: Cell) -> dict[str, Any]:
    """What a table must know of a cell beside its records, as plain containers."""
    explainer = cell.explainer
    original = getattr(explainer, "of", explainer)
    return {
        "title": explainer.label,
        "family": original.family,
        "is_control": explainer.source.startswith("control"),
        "is_matched": isinstance(explainer, MatchedRandom),
        # What a control controls is part of its identity, in the words of the identity of the one it controls.
        "explains": cell.identity["explainer"],
        "of": cell.identity["explainer"]["options"].get("of"),
        "not_applicable": dict(cell.not_applicable),
    }


def table_row(label: str, facts: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]], runs: list[Run]) -> Row:
    """A row of a table.

    Args:
        label: of the row.
        facts: as :func:`table_facts` gives them.
        beside: the facts of every row of the table, by label.
        runs: what was recorded.
    """
    controlled = [other for other, theirs in beside.items() if facts["of"] and theirs["explains"] == facts["of"]]
    return Row(
        label=label,
        title=facts["title"],
        runs=runs,
        family=facts["family"],
        is_control=facts["is_control"],
        controls=controlled[0] if controlled else None,
        is_matched=facts["is_matched"],
        not_applicable=facts["not_applicable"],
    )
