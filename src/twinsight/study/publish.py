"""What people look at, made from the records alone: metrics.json, pictures, the table in the terminal."""

import dataclasses
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from twinsight import report
from twinsight.files import write_json
from twinsight.metrics import ALL_METRICS
from twinsight.study.cell import Cell
from twinsight.study.pictures import draw_cell
from twinsight.study.planner import Plan
from twinsight.study.records import read
from twinsight.study.sets import table_facts
from twinsight.study.shards import alone
from twinsight.study.status import read_status

Row = dict[str, Any]


def publish(cell: Cell, planned: Plan, config: DictConfig) -> None:
    """Draw the pictures of a finished cell and write ``metrics.json``, which comes last: where it is, all is."""
    rows = read(cell.folder)
    explained = [row for row in rows if row["skipped"] is None]
    draw_cell(cell, planned, explained[: config.pictures.limit], config)
    explainer = describe(cell, planned.views.size)
    summary = {**summarize(rows, intervals=True), "not_applicable": cell.not_applicable, "explainer": explainer}
    write_json(cell.folder / "metrics.json", summary)


@contextmanager
def publishing(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Those of ``cells`` that no other process is publishing, none of which will while the block lasts."""
    with ExitStack() as stack:
        mine = [cell for cell in cells if stack.enter_context(alone(cell.folder, "publish"))]
        yield mine
    for cell in mine:
        if is_published(cell.folder):
            shutil.rmtree(cell.folder / "locks", ignore_errors=True)  # whoever comes now looks at the files first


def is_published(folder: Path) -> bool:
    """Whether pictures and means of a finished cell have been made."""
    return read_status(folder)["state"] == "done" and (folder / "metrics.json").exists()


def describe(cell: Cell, side: int) -> dict[str, Any]:
    """What reports say of the explainer without building it, for views of ``side`` pixels: how it is called, whether it
    is a control, and how its maps lie on a view."""
    explainer, facts = cell.explainer, table_facts(cell)
    return {
        "label": cell.label,
        **{name: facts[name] for name in ("title", "family", "is_control", "is_matched")},
        "maps": explainer.maps,
        "geometry": dataclasses.asdict(explainer.geometry((side, side))),
    }


def summarize(rows: list[Row], intervals: bool = False) -> dict[str, Any]:
    """Means over the pairs of a cell, with what must be known beside them.

    Args:
        rows: records of the cell.
        intervals: whether each metric also gets ``low`` and ``high``, the ends of its 95 % confidence interval as in
            the tables of sets (null for fewer than two pairs); takes a second for thousands of pairs.

    Returns:
        ``pairs`` and ``skipped`` (id: reason); ``metrics``: for each numeric column its mean, its standard deviation
        over pairs (null for fewer than two), and the number of ``pairs`` that have it (not those where it is NaN, for
        want of a second map, or infinite, relative to a similarity of zero); ``flags``: how many pairs had a degenerate
        map or a similarity not above zero; ``labels``: ``pairs`` and ``metrics`` of those of each label, where there
        are labels.

    >>> summary = summarize([{"pair_id": "a", "skipped": None, "score": 0.5}, {"pair_id": "b", "skipped": "broken"}])
    >>> summary["metrics"]["score"], summary["skipped"]
    ({'mean': 0.5, 'std': None, 'pairs': 1}, {'b': 'broken'})
    """
    explained = [row for row in rows if row["skipped"] is None]
    metrics: dict[str, dict[str, Any]] = {}
    flags = {}
    for name in _score_columns(explained):
        present = [row[name] for row in explained if row[name] is not None and math.isfinite(row[name])]
        metrics[name] = {
            "mean": statistics.fmean(present) if present else None,
            "std": statistics.stdev(present) if len(present) > 1 else None,
            "pairs": len(present),
        }
    if intervals:
        _add_intervals(metrics, explained)
    for name in _FLAGS:
        if explained and name in explained[0]:
            flags[name] = sum(bool(row[name]) for row in explained)
    summary = {
        "pairs": len(explained),
        "skipped": {row["pair_id"]: row["skipped"] for row in rows if row["skipped"] is not None},
        "metrics": metrics,
        "flags": flags,
    }
    labels = report.labels_of(rows)
    if labels:
        parts = {label: [{**row, "label": None} for row in rows if row.get("label") == label] for label in labels}
        wholes = {label: summarize(part, intervals) for label, part in parts.items()}
        summary["labels"] = {label: {key: each[key] for key in ("pairs", "metrics")} for label, each in wholes.items()}
    return summary


def present(
    cells: list[Cell],
    computed: list[Cell],
    left_out: Mapping[str, str],
    failed: Mapping[str, str],
    together: Path | None = None,
    tables: Path | None = None,
) -> None:
    """Print one table over the cells, and where everything is; those not ``computed`` just now say so.

    ``left_out`` are members of the set that do not fit, ``failed`` cells that failed, and why; ``together`` is the
    folder of pictures that show all cells side by side, ``tables`` that of their tables.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a pipe has no width: logs should not be folded
    summaries = [summarize(read(cell.folder)) for cell in cells]
    columns = [name for name in ALL_METRICS if any(name in summary["metrics"] for summary in summaries)]
    head = ["explainer", "pairs", "s", *(f"{name.upper()}{_arrow(name)}" for name in columns)]
    lines = [head]
    for cell, summary in zip(cells, summaries, strict=True):
        for label, part in {cell.label: summary, **_labelled(summary)}.items():
            shown = [part["metrics"].get(name, {}).get("mean") for name in ("score", *columns)]
            numbers = ["-" if value is None else f"{value:.3f}" for value in shown]
            lines.append([label, str(part["pairs"]), *numbers])
    if sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) > console.width:
        lines = [list(column) for column in zip(*lines, strict=True)]  # a narrow terminal: a line per metric
    console.print(_table(lines))
    width = max(len(cell.label) for cell in cells)
    for cell, summary in zip(cells, summaries, strict=True):
        if cell not in computed:
            console.print(f"{cell.label}: computed before, nothing was run (delete the folder to run again)")
        for pair_id, reason in summary["skipped"].items():
            console.print(f"[yellow]skipped[/] {pair_id}: {reason}", highlight=False, soft_wrap=True)
        for name, count in summary["flags"].items():
            if count:
                console.print(f"[yellow]{_FLAGS[name].format(count=count)}[/]", highlight=False)
        for reason in dict.fromkeys(cell.not_applicable.values()):
            without = ", ".join(name.upper() for name, why in cell.not_applicable.items() if why == reason)
            console.print(f"{cell.label}: {without} left out: {reason}", highlight=False, soft_wrap=True)
        if len(cells) == 1:
            _print_places(console, cell.folder)
        else:
            console.print(f"  {cell.label:<{width}} {cell.folder}", highlight=False, soft_wrap=True, markup=False)
    for name, reason in left_out.items():
        console.print(f"[yellow]left out[/] {name}: {reason}", highlight=False, soft_wrap=True)
    for name, error in failed.items():
        console.print(f"[red]failed[/] {name}: {error}", highlight=False, soft_wrap=True)
    for what, place in (("side by side", together), ("tables", tables)):
        if place is not None:
            console.print(f"  {what:<{width}} {place}", highlight=False, soft_wrap=True, markup=False)


def _labelled(summary: Row) -> dict[str, Row]:
    return {f"  {label}": part for label, part in summary.get("labels", {}).items()}


def _table(lines: list[list[str]]) -> Table:
    title = "Two-image metrics, mean over pairs" if len(lines[0]) > 3 else "Mean over pairs"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _arrow(name: str) -> str:
    return "↑" if ALL_METRICS[name].higher_is_better else "↓"


def _print_places(console: Console, folder: Path) -> None:
    drawn = sorted((folder / "pictures").glob("*.png"))
    films = sorted((folder / "animations").glob("*.gif"))
    places = [
        (f"{len(drawn)} picture{'s' * (len(drawn) != 1)}", folder / "pictures"),
        *([(f"{len(films)} animation{'s' * (len(films) != 1)}", folder / "animations")] if films else []),
        ("records per pair", folder / "records.parquet"),
        ("maps and curves", folder / "arrays.parquet"),
        ("means", folder / "metrics.json"),
        ("configuration", folder / "config.yaml"),
    ]
    for what, path in places:
        console.print(f"  {what:<17} {path}", highlight=False, soft_wrap=True, markup=False)


_FLAGS = {
    "degenerate1": "{count} pairs have a constant or non-finite map of view 1: their ranking is chance",
    "degenerate2": "{count} pairs have a constant or non-finite map of view 2: their ranking is chance",
    "nonpositive": "{count} pairs have a similarity of zero or less: their relative drops mean little",
    "approximate": "{count} pairs have approximate areas: of their curves only points where they bend were computed",
}
_NO_SCORES = {"index", "seed", "chunk_size", *_FLAGS}


def _add_intervals(metrics: dict[str, dict[str, Any]], rows: list[Row]) -> None:
    columns = [[math.nan if row.get(name) is None else row[name] for row in rows] for name in metrics]
    found = report.intervals(columns, [report.kind_of(name) for name in metrics])
    for facts, one in zip(metrics.values(), found, strict=True):
        facts["low"], facts["high"] = (None if math.isnan(end) else end for end in (one.low, one.high))


def _score_columns(rows: list[Row]) -> list[str]:
    numeric = {
        name: None
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NO_SCORES
    }
    return list(numeric)
