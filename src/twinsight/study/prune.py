"""Make room: remove results of a study that nobody else has planned."""

import json
import shutil
import uuid
from contextlib import suppress

from twinsight.study.locks import Lock
from twinsight.study.progress import folder_bytes
from twinsight.study.shards import WHOLE, other_workers, shard_lock
from twinsight.study.study import Study, StudyCell


def prune(study: Study, only_failed: bool = False, remove: bool = False) -> list[str]:
    """Remove the folders of a study's cells; what was, or would be, removed, for people.

    Cells that another study has planned too, and cells that a living process works on, are kept.

    Args:
        only_failed: only cells that failed or were interrupted.
        remove: really do it.
    """
    elsewhere = _planned_elsewhere(study)
    chosen: list[tuple[StudyCell, str | None]] = []
    kept: list[tuple[StudyCell, str | None]] = []
    for cell in study.cells:
        if not cell.folder.exists():
            continue
        if only_failed and cell.status()["state"] not in ("failed", "interrupted"):
            continue
        why = _why_kept(cell, elsewhere)
        (kept if why else chosen).append((cell, why))
    size = folder_bytes(cell.folder for cell, _ in chosen)
    lines = [f"  kept {cell.name}: {why}" for cell, why in kept]
    if remove:
        for cell, _ in chosen:
            _remove(cell)
    done = "removed" if remove else "would remove (add --yes)"
    lines += [f"  {cell.name}" for cell, _ in chosen]
    return [f"{done}: results of {len(chosen)} cells, {size / 1e6:.1f} MB", *lines]


def _remove(cell: StudyCell) -> None:
    """Remove a cell's folder, unless somebody has begun with it; whoever begins from now on finds none."""
    lock = Lock(shard_lock(cell.folder, WHOLE))
    if not lock.take():
        return
    if other_workers(cell.folder, WHOLE):
        lock.release()
        return
    waste = cell.folder.with_name(f".{cell.name}-{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):  # another process was at it first
        cell.folder.rename(waste)
    lock.release()
    shutil.rmtree(waste, ignore_errors=True)


def _planned_elsewhere(study: Study) -> set[str]:
    found = set()
    for plan in study.root.glob("*/plan.jsonl"):
        if plan.parent.name != study.name:
            found |= {json.loads(line)["cell"] for line in plan.read_text().splitlines()}
    return found


def _why_kept(cell: StudyCell, elsewhere: set[str]) -> str | None:
    if cell.name in elsewhere:
        return "another study has planned it"
    workers = other_workers(cell.folder, WHOLE, itself=True)
    return f"{workers[0]} works on it" if workers else None
