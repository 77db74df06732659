"""What people look at, made from the records alone: metrics.json, pictures, logger runs, the table in the terminal."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from twinsight.data import PairDataset
from twinsight.files import write_json
from twinsight.metrics import METRICS
from twinsight.plotting import draw_pair
from twinsight.study.cell import Cell, Plan
from twinsight.study.loggers import log_cell
from twinsight.study.records import read, unpacked_map

Row = dict[str, Any]


def publish(cell: Cell, planned: Plan, config: DictConfig) -> None:
    """Write ``metrics.json`` and the pictures of a finished cell."""
    rows = read(cell.folder)
    write_json(cell.folder / "metrics.json", summarize(rows))
    explained = [row for row in rows if row["skipped"] is None]
    _draw(cell, planned, explained[: config.pictures.limit], config.seed, config.pictures.side)


def log(cell: Cell, config: DictConfig) -> None:
    """Log a published cell to the chosen logger, unless it has been; ``logged.json`` keeps count."""
    if not (config.logger and config.logger._target_):
        return
    marker = cell.folder / "logged.json"
    logged = json.loads(marker.read_text()) if marker.exists() else []
    if config.logger._target_ in logged:
        return
    rows = [row for row in read(cell.folder) if row["skipped"] is None]
    drawn = {row["index"]: path for row in rows if (path := _picture(cell, row)).exists()}
    log_cell(config.logger, cell, json.loads((cell.folder / "metrics.json").read_text()), rows, _arrays(cell), drawn)
    write_json(marker, [*logged, config.logger._target_])


def summarize(rows: list[Row]) -> dict[str, Any]:
    """Means over the pairs of a cell, with what must be known beside them.

    Returns:
        ``pairs`` and ``skipped`` (id: reason); ``metrics``: for each numeric column its mean, its standard deviation
        over pairs (null for fewer than two), and the number of ``pairs`` that have it (not those where it is NaN, for
        want of a second map, or infinite, relative to a similarity of zero); ``flags``: how many pairs had a degenerate
        map or a similarity not above zero.

    >>> summary = summarize([{"pair_id": "a", "skipped": None, "score": 0.5}, {"pair_id": "b", "skipped": "broken"}])
    >>> summary["metrics"]["score"], summary["skipped"]
    ({'mean': 0.5, 'std': None, 'pairs': 1}, {'b': 'broken'})
    """
    explained = [row for row in rows if row["skipped"] is None]
    metrics, flags = {}, {}
    for name in _score_columns(explained):
        present = [row[name] for row in explained if row[name] is not None and math.isfinite(row[name])]
        metrics[name] = {
            "mean": statistics.fmean(present) if present else None,
            "std": statistics.stdev(present) if len(present) > 1 else None,
            "pairs": len(present),
        }
    for name in ("degenerate1", "degenerate2", "nonpositive"):
        if explained and name in explained[0]:
            flags[name] = sum(bool(row[name]) for row in explained)
    return {
        "pairs": len(explained),
        "skipped": {row["pair_id"]: row["skipped"] for row in rows if row["skipped"] is not None},
        "metrics": metrics,
        "flags": flags,
    }


def present(cells: list[Cell], computed: list[Cell]) -> None:
    """Print one table over the cells, and where everything is; those not ``computed`` just now say so."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a pipe has no width: logs should not be folded
    summaries = [summarize(read(cell.folder)) for cell in cells]
    columns = [name for name in METRICS if any(name in summary["metrics"] for summary in summaries)]
    head = ["explainer", "pairs", "s", *(f"{name.upper()}{_arrow(name)}" for name in columns)]
    lines = [head]
    for cell, summary in zip(cells, summaries, strict=True):
        shown = [summary["metrics"].get(name, {}).get("mean") for name in ("score", *columns)]
        numbers = ["-" if value is None else f"{value:.3f}" for value in shown]
        lines.append([cell.explainer.name, str(summary["pairs"]), *numbers])
    if sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) > console.width:
        lines = [list(column) for column in zip(*lines, strict=True)]  # a narrow terminal: a line per metric
    console.print(_table(lines))
    for cell, summary in zip(cells, summaries, strict=True):
        if cell not in computed:
            console.print(f"{cell.explainer.name}: computed before, nothing was run (delete the folder to run again)")
        for pair_id, reason in summary["skipped"].items():
            console.print(f"[yellow]skipped[/] {pair_id}: {reason}", highlight=False, soft_wrap=True)
        for name, count in summary["flags"].items():
            if count:
                console.print(f"[yellow]{_FLAGS[name].format(count=count)}[/]", highlight=False)
        _print_places(console, cell.folder)


def _table(lines: list[list[str]]) -> Table:
    table = Table(title="Two-image metrics, mean over pairs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _arrow(name: str) -> str:
    return "↑" if METRICS[name].higher_is_better else "↓"


def _print_places(console: Console, folder: Path) -> None:
    drawn = sorted((folder / "pictures").glob("*.png"))
    places = [
        (f"{len(drawn)} pictures", folder / "pictures"),
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
}
_NO_SCORES = {"index", "seed", "chunk_size", *_FLAGS}


def _score_columns(rows: list[Row]) -> list[str]:
    numeric = {
        name: None
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NO_SCORES
    }
    return list(numeric)


def _draw(cell: Cell, planned: Plan, rows: list[Row], seed: int, side: int) -> None:
    """One picture per pair at the photo's own resolution; those that exist are kept."""
    pairs = PairDataset(planned.photos, planned.views, planned.model.normalization, seed)
    missing = [row for row in rows if not _picture(cell, row).exists()]
    if not missing:
        return  # before the maps of the whole cell are read for nothing
    arrays = _arrays(cell)
    for row in track(missing, description="Drawing pictures", transient=True):
        _draw_pair(cell, pairs, row, arrays[row["index"]], side, _picture(cell, row))


def _arrays(cell: Cell) -> dict[int, Row]:
    """Maps and curves of every pair, by its index."""
    return {row["index"]: row for row in read(cell.folder, "arrays")}


def _picture(cell: Cell, row: Row) -> Path:
    return cell.folder / "pictures" / f"{_file_name(row)}.png"


def _draw_pair(cell: Cell, pairs: PairDataset, row: Row, arrays: Row, side: int, path: Path) -> None:
    photo = pairs.photos.load(row["index"])
    views = [
        recipe.render(photo, min(side, max(*recipe.geometry.box[2:], pairs.views.size)), pairs.views.antialias)
        for recipe in pairs.recipes(row["index"], photo)
    ]
    size = (pairs.views.size, pairs.views.size)
    geometry = cell.explainer.geometry(size)
    maps = [
        None if heatmap is None else geometry.resize(torch.from_numpy(heatmap).unsqueeze(0), size)[0].numpy()
        for heatmap in (unpacked_map(arrays, "map1"), unpacked_map(arrays, "map2"))
    ]
    assert maps[0] is not None
    draw_pair(
        views[0].movedim(0, -1).numpy(),
        views[1].movedim(0, -1).numpy(),
        np.asarray(maps[0]),
        maps[1],
        similarity=row["score"],
        title=cell.explainer.title,
        subtitle=f"{row['pair_id']}, {cell.identity['model']['name']}",
        scores={name.upper(): row[name] for name in METRICS if row.get(name) is not None},
        path=path,
    )


def _file_name(row: Row) -> str:
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(row["pair_id"]).stem)
    return f"{row['index']:05d}-{stem[:60]}"
