"""What a report is made from: folders of cells, alone or as the plan of a study lists them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from twinsight.errors import UserError
from twinsight.explainers import EXPLAINERS
from twinsight.report.results import Run
from twinsight.sealed import Damaged

_DONE = {"finished": "done"}


@dataclass
class CellFolder:
    """One cell on disk, finished or not.

    Attributes:
        name: of the cell and of its folder.
        folder: where its records are.
        label: what the explainer is called in tables.
        axes: configuration keys that vary over the study, with their values.
        frozen: its planned configuration, for cells that have not been started.
        planned: what the plan says of the explainer.
        reason: why it was never meant to run, or None.
    """

    name: str
    folder: Path
    label: str
    axes: dict[str, Any] = field(default_factory=dict)
    frozen: Path | None = None
    planned: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    @cached_property
    def status(self) -> dict[str, Any]:
        """What ``status.json`` says; state ``planned`` where there is none."""
        if self.reason is not None:
            return {"state": "skipped", "reason": self.reason}
        found = _json(self.folder / "status.json") or {"state": "planned"}
        return {**found, "state": _DONE.get(found["state"], found["state"])}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """``identity`` and ``config``; empty where neither was written."""
        for path in (self.folder / "config.yaml", self.frozen):
            if path is not None and path.exists():
                # The C parser where there is one: a study has many of these.
                loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
                return yaml.load(path.read_text(encoding="utf-8"), loader) or {}
        return {}

    @property
    def identity(self) -> dict[str, Any]:
        return self.settings.get("identity") or {}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What ``metrics.json`` says; empty for a cell that is not finished."""
        return _json(self.folder / "metrics.json") or {}

    @cached_property
    def run(self) -> Run | None:
        """Records and timings; None where there are none yet.

        Raises:
            Damaged: there are, and they are not what was written.
        """
        try:
            return Run.read(self.folder)
        except Damaged:
            raise  # which is not to have none
        except UserError:
            return None

    @cached_property
    def explainer(self) -> dict[str, Any]:
        """How to show the explainer: ``title``, ``family``, ``is_control``, ``is_matched``, ``maps``, ``geometry``.

        Finished cells say it themselves, the plan of a study knows it of others; without either it is looked up by the
        class's name.
        """
        if "explainer" in self.summary:
            return self.summary["explainer"]
        if self.planned:
            return {"geometry": None, **self.planned}
        known = EXPLAINERS.get(str(self.identity.get("explainer", {}).get("name")))
        return {
            "title": known.title if known else self.label,
            "family": known.family if known else "",
            "is_control": known is not None and known.source.startswith("control"),
            "is_matched": known is not None and known.name == "matched_random",
            "maps": known.maps if known else 2,
            "geometry": None,
        }


@dataclass
class Collection:
    """The cells of one report.

    Attributes:
        name: of the study, or of what was asked for.
        cells: in the order of the plan.
        about: what ``study.json`` says; empty without a study.
    """

    name: str
    cells: list[CellFolder]
    about: dict[str, Any] = field(default_factory=dict)


def collect(wanted: Sequence[str], root: Path) -> Collection:
    """Find a study by its name or folder, or cells by their folders.

    Args:
        wanted: a study below ``root``, the folder of one, or folders of cells, or of a folder that holds cells.
        root: where runs write.

    Raises:
        UserError: there is no such study or cell, or studies and cells are mixed.
    """
    if len(wanted) == 1 and (study := _study(wanted[0], root)) is not None:
        return study
    cells = []
    for each in wanted:
        found = _cells(Path(each)) or _cells(root / "cells" / each)
        if not found:
            studies = sorted(path.parent.name for path in root.glob("*/plan.jsonl"))
            known = f"; studies there: {', '.join(studies)}" if studies else ""
            raise UserError(
                f"{each!r} is neither a study in {root} nor the folder of a cell (one with records or a status): give "
                f"the name of a study, or folders like {root}/cells/*, or --root where runs were written{known}"
            )
        cells += found
    unique = {cell.folder.resolve(): cell for cell in cells}
    name = cells[0].name if len(unique) == 1 else f"{len(unique)} cells"
    return Collection(name, list(unique.values()))


def _study(name: str, root: Path) -> Collection | None:
    for folder in (root / name, Path(name)):
        plan = folder / "plan.jsonl"
        if not plan.exists():
            continue
        cells = []
        try:
            entries = [json.loads(line) for line in plan.read_text(encoding="utf-8").splitlines() if line]
        except ValueError as error:
            raise UserError(f"{plan} cannot be read ({error}): plan the study again; finished cells are kept") from None
        for entry in entries:
            place = folder.parent / "cells" / entry["cell"]
            frozen = folder / "configs" / f"{entry['cell']}.yaml"
            cell = CellFolder(entry["cell"], place, entry["label"], entry.get("axes") or {}, frozen)
            cell.planned = {"title": cell.label, **(entry.get("table") or {}), "maps": entry.get("maps", 2)}
            cell.reason = entry.get("reason")
            cells.append(cell)
        if not cells:
            raise UserError(f"the plan of study {folder.name!r} ({plan}) has no cell")
        return Collection(folder.name, cells, _json(folder / "study.json") or {})
    return None


def _cells(folder: Path) -> list[CellFolder]:
    if not folder.is_dir():
        return []
    marks = ("records.parquet", "status.json", "config.yaml")
    if any((folder / mark).exists() for mark in marks):
        return [_labelled(folder)]
    return [_labelled(each) for each in sorted(folder.iterdir()) if any((each / mark).exists() for mark in marks)]


def _labelled(folder: Path) -> CellFolder:
    cell = CellFolder(folder.resolve().name, folder, folder.name)
    cell.label = cell.explainer.get("label") or cell.identity.get("explainer", {}).get("name") or folder.name
    return cell


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there yet, or never finished
