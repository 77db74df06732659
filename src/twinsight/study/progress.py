"""How far a study is and what is left, from its plan and the status of its cells; and what a plan will cost."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinsight.study.shards import WHOLE, other_workers
from twinsight.study.status import STATES, first_line
from twinsight.study.study import PlannedCell, Study, StudyCell

_FAILURES_SHOWN = 20
_PICTURE_BYTES = 300_000
"""Of a drawn pair: measured on the demo photos, 150 to 350 kB."""
_CURVES, _POINTS = 6, 225


@dataclass
class Progress:
    """A study at one moment.

    Attributes:
        study: its name.
        counts: cells by state.
        pairs, recorded: of all cells that are not skipped.
        rate: pairs a second of the cells that run now; None where none does.
        seconds_left: at the pace of what runs now, weighed by forwards; None where nobody can tell.
        failures: name and first line of the error.
        silent: cells that call themselves running though their process is gone.
    """

    study: str
    counts: Counter[str]
    pairs: int
    recorded: int
    rate: float | None
    seconds_left: float | None
    failures: list[tuple[str, str]]
    silent: list[str]

    @classmethod
    def of(cls, study: Study) -> "Progress":
        """Read it; safe while jobs write, since files appear whole."""
        statuses = [(cell, cell.status()) for cell in study.cells]
        silent = [cell.name for cell, status in statuses if status["state"] == "running" and not living(cell)]
        states = ["interrupted" if cell.name in silent else status["state"] for cell, status in statuses]
        running = [one for one, state in zip(statuses, states, strict=True) if state == "running"]
        seconds = max((status.get("seconds", 0) for _, status in running), default=0)
        gained = [(cell, status.get("done", 0) - status.get("before", 0)) for cell, status in running]
        forwards = sum(count * _weight(cell) for cell, count in gained)
        left = sum((cell.pairs - _recorded(cell, status)) * _weight(cell) for cell, status in statuses)
        return cls(
            study=study.name,
            counts=Counter(states),
            pairs=sum(cell.pairs for cell, _ in statuses),
            recorded=sum(_recorded(cell, status) for cell, status in statuses),
            rate=sum(count for _, count in gained) / seconds if seconds else None,
            seconds_left=left * seconds / forwards if seconds and forwards else None,
            failures=[(cell.name, first_line(status)) for cell, status in statuses if status["state"] == "failed"],
            silent=silent,
        )


def status_lines(progress: Progress) -> list[str]:
    """A study's progress for people."""
    total = sum(progress.counts.values())
    counts = ", ".join(f"{progress.counts[state]} {state}" for state in STATES if progress.counts[state])
    share = progress.recorded / progress.pairs if progress.pairs else 1.0
    lines = [f"study {progress.study}: {total} cells: {counts}"]
    pace = f", {progress.rate:.2g} pairs a second" if progress.rate is not None else ""
    left = f", about {_duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    lines.append(f"  {progress.recorded} of {progress.pairs} pairs ({share:.0%}){pace}{left}")
    lines += [f"  failed {name}: {error}" for name, error in progress.failures[:_FAILURES_SHOWN]]
    if len(progress.failures) > _FAILURES_SHOWN:
        lines.append(f"  ... and {len(progress.failures) - _FAILURES_SHOWN} more that failed")
    lines += [f"  interrupted {name}: its process is gone; run the study again" for name in progress.silent]
    return lines


def plan_lines(study: Study, measure: Callable[[dict[str, Any]], dict[str, float]] = lambda configs: {}) -> list[str]:
    """A planned study for people: what is left of it and what that costs.

    Args:
        study: planned.
        measure: frozen configurations, by the cell's name, to image forwards a second.
    """
    states = {cell: cell.status()["state"] for cell in study.cells}
    left = [cell for cell, state in states.items() if state not in ("done", "skipped")]
    configs = {cell.name: cell.config for cell in left}
    lines = cost_lines([cell.line for cell in left], list(configs.values()), measure(configs))
    done = sum(state == "done" for state in states.values())
    return [f"study {study.name}: {len(study.cells)} cells, {done} of them done", *lines]


def cost_lines(cells: Sequence[PlannedCell], configs: Sequence[dict[str, Any]], speeds: dict[str, float]) -> list[str]:
    """What cells cost: pairs, image forwards, hours, disk.

    Args:
        cells: lines of a plan.
        configs: their frozen configurations.
        speeds: image forwards a second that were measured, by the cell's name; without, no hours are given.
    """
    lines = []
    for cell in cells:
        axes = ", ".join(f"{axis}={value}" for axis, value in cell.axes.items()) or cell.label
        each = "?" if cell.forwards is None else f"{cell.forwards:,}"
        lines.append(f"  {axes}: {cell.pairs} pairs, {each} forwards" + (f": {cell.reason}" if cell.reason else ""))
    known = [cell.forwards for cell in cells if cell.forwards is not None]
    unknown = len(cells) - len(known)
    beside = f" and those of {unknown} cells that declare none" if unknown else ""
    lines.append(f"forwards: {sum(known):,}{beside}")
    if speeds:
        hours = sum((cell.forwards or 0) / speeds[cell.cell] for cell in cells if cell.cell in speeds) / 3600
        rates = sorted({round(speed, 1) for speed in speeds.values()})
        measured = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
        lines.append(
            f"time: about {_duration(hours * 3600)} on one process like this, at {measured} forwards a second "
            "(measured now; backward passes, drawing and reading come on top)"
        )
    disk = sum(_bytes(cell, config) for cell, config in zip(cells, configs, strict=True))
    lines.append(f"disk: at most {disk / 1e6:,.0f} MB")
    return lines


def _bytes(cell: PlannedCell, config: dict[str, Any]) -> int:
    """Room that a cell takes at most: maps as large as the views, every curve, every picture that may be drawn."""
    if cell.reason is not None:
        return 0
    side = int(config["views"]["size"])
    each = 2 * 2 * side * side + 2 * _CURVES * _POINTS + 2000
    return cell.pairs * each + min(cell.pairs, int(config["pictures"]["limit"])) * _PICTURE_BYTES


def living(cell: StudyCell) -> bool:
    """Whether a process works on a cell that is not known to be dead."""
    return bool(other_workers(cell.folder, WHOLE, itself=True))


def _recorded(cell: StudyCell, status: dict[str, Any]) -> int:
    return cell.pairs if status["state"] == "done" else min(int(status.get("done", 0)), cell.pairs)


def _weight(cell: StudyCell) -> float:
    """Forwards of a pair, by estimate; alike for all cells where some declare none."""
    return (cell.line.forwards or 0) / max(cell.pairs, 1) or 1.0


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(40), _duration(600), _duration(9000), _duration(400000)
    ('40 s', '10 min', '2.5 h', '4.6 days')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "h" and seconds >= 1.5 * size):
            return f"{seconds / size:.1f} {unit}" if unit != "min" else f"{seconds / size:.0f} min"
    return f"{seconds:.0f} s"


def folder_bytes(paths: Iterable[Path]) -> int:
    """Size of everything below folders."""
    return sum(path.stat().st_size for folder in paths for path in folder.rglob("*") if path.is_file())
