"""Cells of one set together: where their shared files are, and their tables."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

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
    write_tables(Results([_row(cell, cells) for cell in cells]), folder / "tables", cells[0].identity["model"]["name"])
    return folder / "tables"


def _row(cell: Cell, cells: Sequence[Cell]) -> Row:
    explainer = cell.explainer
    original = getattr(explainer, "of", explainer)
    # What a control controls is part of its identity, in the words of the identity of the one it controls.
    of = cell.identity["explainer"]["options"].get("of")
    controlled = [other.label for other in cells if other.identity["explainer"] == of]
    return Row(
        label=cell.label,
        title=explainer.label,
        runs=[Run.read(cell.folder)],
        family=original.family,
        is_control=explainer.source.startswith("control"),
        controls=controlled[0] if controlled else None,
        is_matched=isinstance(explainer, MatchedRandom),
        not_applicable=cell.not_applicable,
    )
