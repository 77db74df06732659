"""A study on disk: a named, planned set of cells, and how far each is. Knows no network and no data."""

import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from twinsight.errors import UserError, unknown
from twinsight.files import write_atomically, write_json
from twinsight.study.locks import Lock
from twinsight.study.status import read_status

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class PlannedCell:
    """A line of ``plan.jsonl``.

    Attributes:
        cell: its name, and that of its folder.
        digest: SHA-256 of its identity; None for a combination that makes no sense, which has a ``reason``.
        job: cells of one number are computed in one process and share what they encode.
        label: of the explainer in tables.
        axes: configuration keys that vary over the study, and this cell's values.
        pairs: how many it has.
        forwards: image forwards that it takes by estimate, all pairs together; None where nobody knows.
        maps: how many maps its explainer makes of a pair.
        loggers: names of those that get it.
        table: what a table must know beside the records: title, family, controls, columns that do not apply.
        reason: why it is skipped.
    """

    cell: str
    digest: str | None
    job: int
    label: str
    axes: Mapping[str, Any]
    pairs: int
    forwards: int | None
    maps: int
    table: Mapping[str, Any]
    loggers: Sequence[str] = ()
    reason: str | None = None


class StudyCell:
    """A planned cell and where its files are.

    Args:
        study: folder of the study.
        root: folder that cells are below.
        line: of the plan.
    """

    def __init__(self, study: Path, root: Path, line: PlannedCell) -> None:
        self.line = line
        self.name = line.cell
        self.job = line.job
        self.label = line.label
        self.axes = line.axes
        self.pairs = line.pairs
        self.folder = root / "cells" / line.cell
        self.frozen = study / "configs" / f"{line.cell}.yaml"

    def status(self) -> dict[str, Any]:
        """How far it is; see :mod:`twinsight.study.status`."""
        if self.line.reason is not None:
            return {"state": "skipped", "reason": self.line.reason}
        return read_status(self.folder)

    @cached_property
    def _read(self) -> Mapping[str, Any]:
        return yaml.load(self.frozen.read_text(), _Loader)

    @property
    def digest(self) -> str:
        """SHA-256 of its identity."""
        assert self.line.digest is not None  # what makes no sense has no identity
        return self.line.digest

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides its result."""
        return self._read["identity"]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that it was planned with, resolved."""
        return dict(self._read["config"])


class Study:
    """A study's folder: ``plan.jsonl``, ``study.json``, and a frozen configuration per cell.

    Args:
        root: output folder.
        name: of the study, and of its folder below ``root``.
    """

    def __init__(self, root: str | Path, name: str) -> None:
        check_name(name)
        self.root = Path(root)
        self.name = name
        self.folder = self.root / name

    @classmethod
    def open(cls, root: str | Path, name: str) -> "Study":
        """A study that has been planned.

        Raises:
            UserError: there is none of that name; the message lists those that are there.
        """
        study = cls(root, name)
        if not study.exists():
            found = sorted(path.parent.name for path in Path(root).glob("*/plan.jsonl"))
            if not found:
                raise UserError(
                    f"no study has been planned below {root}: plan one, python run.py -m study={name} ..., or say "
                    "where it is, --root DIR"
                )
            raise unknown(f"study below {root}", name, found)
        return study

    def exists(self) -> bool:
        return (self.folder / "plan.jsonl").is_file()

    @cached_property
    def cells(self) -> list[StudyCell]:
        """Every planned cell, in the order of the plan."""
        try:
            lines = (self.folder / "plan.jsonl").read_text().splitlines()
            return [StudyCell(self.folder, self.root, PlannedCell(**json.loads(line))) for line in lines]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.folder / 'plan.jsonl'} cannot be read ({error}): remove the folder and plan again; "
                "finished cells are kept"
            ) from error

    @property
    def jobs(self) -> dict[int, list[StudyCell]]:
        """Cells that are computed together, by the number of their job."""
        found: dict[int, list[StudyCell]] = {}
        for cell in self.cells:
            found.setdefault(cell.job, []).append(cell)
        return found

    def facts(self) -> dict[str, Any]:
        """What ``study.json`` says: name, created, commands (each a list of overrides), versions, commit."""
        try:
            return json.loads((self.folder / "study.json").read_text())
        except FileNotFoundError:  # killed between the plan, which counts, and this
            return {"name": self.name, "created": "an unknown day", "commands": []}

    def has_planned(self, command: Sequence[str]) -> bool:
        """Whether these overrides, in any order, have been planned."""
        return self.exists() and sorted(command) in [sorted(known) for known in self.facts()["commands"]]

    def write(self, lines: Iterable[PlannedCell], configs: Mapping[str, Any], command: Sequence[str]) -> None:
        """Write the plan: frozen configurations of new cells first, so that no line lacks its own.

        Args:
            lines: the whole plan.
            configs: ``{"identity": ..., "config": ...}`` of new cells, by name.
            command: the overrides that were planned.
        """
        for name, content in configs.items():
            text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
            write_atomically(self.folder / "configs" / f"{name}.yaml", partial(Path.write_text, data=text))
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        write_atomically(self.folder / "plan.jsonl", partial(Path.write_text, data=text))
        before = self.facts() if (self.folder / "study.json").exists() else {}
        known = before.get("commands", [])
        facts = {
            "name": self.name,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": _versions(),
            "commit": commit(),
            **before,
            "commands": [*known, *([] if list(command) in known else [list(command)])],
        }
        write_json(self.folder / "study.json", facts)
        self.__dict__.pop("cells", None)

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Only one process plans a study at a time.

        Raises:
            UserError: another is at it.
        """
        lock = Lock(self.folder / "locks" / "plan")
        if not lock.take():
            raise UserError(f"study {self.name} is being planned by {lock.holder()}: wait a moment")
        try:
            yield
        finally:
            lock.release()


def check_name(name: str) -> None:
    """Refuse names that are no good for a folder, or that mean one of the folders beside studies.

    Raises:
        UserError: as said.

    >>> check_name("paper-2026")
    """
    taken = ("cells", "sets", "logs", "wandb", "csv", "tensorboard", "mlflow", "pretrain")
    fits = isinstance(name, str) and 0 < len(name) <= 100 and not name.startswith(".") and name not in taken
    if not fits or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise UserError(
            f"`study={name}` cannot name a study: use at most 100 letters, digits, '-', '_' and '.', and none of "
            f"{', '.join(taken)}"
        )


def commit() -> str | None:
    """The git commit of the checkout this code lies in, None without one (or without git)."""
    root = Path(__file__).resolve().parents[3]
    try:
        command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
        top, head, *_ = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    # Installed into a virtual environment, the code may lie inside somebody else's checkout.
    return head if Path(top) == root else None


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from twinsight import __version__

    return {"twinsight": __version__, "torch": version("torch"), "pytorch-lightning": version("pytorch-lightning")}
