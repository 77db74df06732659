"""How far a cell is, as its ``status.json`` says."""

import json
from pathlib import Path
from typing import Any, Literal

from twinsight.files import write_json

State = Literal["planned", "running", "done", "failed", "interrupted", "skipped"]
STATES: tuple[State, ...] = ("planned", "running", "done", "failed", "interrupted", "skipped")
"""``failed`` has an ``error``, ``skipped`` a ``reason``; ``running`` host, pid and a ``beat`` that keeps growing."""


def read_status(folder: Path) -> dict[str, Any]:
    """What ``status.json`` of a cell's folder says; state ``"planned"`` where there is none, or none that can be read.

    >>> read_status(Path("no such folder"))
    {'state': 'planned'}
    """
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {"state": "planned"}
    return status if isinstance(status, dict) and status.get("state") in STATES else {"state": "planned"}


def write_status(folder: Path, state: State, **facts: Any) -> None:
    """Write ``status.json``, whole or not at all."""
    write_json(folder / "status.json", {"state": state, "cell": folder.name, **facts})


def first_line(status: dict[str, Any]) -> str:
    """The first line of what went wrong; empty where nothing did.

    >>> first_line({"state": "failed", "error": "ValueError: no\\nmore"})
    'ValueError: no'
    """
    return str(status.get("error", "")).partition("\n")[0]


def settled(status: dict[str, Any], retry_failed: bool = False) -> bool:
    """Whether a study has nothing more to do for a cell.

    A cell that a signal killed failed through no fault of its own: it is not settled.
    """
    if status["state"] == "failed":
        return not retry_failed and "signal" not in status
    return status["state"] in ("done", "skipped")
