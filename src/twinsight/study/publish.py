"""What people look at, made from the records alone: metrics.json, pictures, logger runs, the table in the terminal."""

import logging
import math
import statistics
from collections.abc import Iterable
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
from twinsight.metrics import METRICS
from twinsight.plotting import draw_pair
from twinsight.study.cell import Cell, Plan
from twinsight.study.loggers import log_cell
from twinsight.study.records import read, unpacked_map, write_json

log = logging.getLogger(__name__)

Row = dict[str, Any]


def publish(cell: Cell, planned: Plan, config: DictConfig, computed: bool) -> None:
    """Write ``metrics.json`` and the pictures of a finished cell and, where it was computed just now, log it."""
    rows = read(cell.folder)
    arrays = {row["index"]: row for row in read(cell.folder, "arrays")}
    summary = summarize(rows)
    write_json(cell.folder / "metrics.json", summary)
    explained = [row for row in rows if row["skipped"] is None]
    pictures = _draw(cell, planned, explained[: config.pictures.limit], arrays, config.seed, config.pictures.side)
    if computed and config.logger and config.logger._target_:
        log_cell(config.logger, cell, summary, explained, arrays, pictures)


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


def present(cells: list[Cell], computed: bool) -> None:
    """Print one table over the cells, and where everything is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a pipe has no width: logs should not be folded
    summaries = [summarize(read(cell.folder)) for cell in cells]
    columns = [name for name in METRICS if any(name in summary["metrics"] for summary in summaries)]
    table = Table(title="Two-image metrics, mean over pairs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("explainer", no_wrap=True)
    table.add_column("pairs", justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    for name in columns:
        arrow = "↑" if METRICS[name].higher_is_better else "↓"
        table.add_column(f"{name.upper()}{arrow}", justify="right", no_wrap=True)
    for cell, summary in zip(cells, summaries, strict=True):
        shown = [summary["metrics"].get(name, {}).get("mean") for name in ("score", *columns)]
        numbers = ["-" if value is None else f"{value:.3f}" for value in shown]
        table.add_row(cell.explainer.name, str(summary["pairs"]), *numbers)
    console.print(table)
    for cell, summary in zip(cells, summaries, strict=True):
        if not computed:
            console.print(f"{cell.explainer.name}: computed before, nothing was run (delete the folder to run again)")
        for pair_id, reason in summary["skipped"].items():
            console.print(f"[yellow]skipped[/] {pair_id}: {reason}", highlight=False, soft_wrap=True)
        for name, count in summary["flags"].items():
            if count:
                console.print(f"[yellow]{_FLAGS[name].format(count=count)}[/]", highlight=False)
        _print_places(console, cell.folder)


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


def _draw(cell: Cell, planned: Plan, rows: list[Row], arrays: dict[int, Row], seed: int, side: int) -> dict[int, Path]:
    """One picture per pair at the photo's own resolution; those that exist are kept."""
    pairs = PairDataset(planned.photos, planned.views, planned.model.normalization, seed)
    paths = {row["index"]: cell.folder / "pictures" / f"{_file_name(row)}.png" for row in rows}
    missing = [row for row in rows if not paths[row["index"]].exists()]
    for row in _progress(missing):
        _draw_pair(cell, pairs, row, arrays[row["index"]], side, paths[row["index"]])
    return paths


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


def _progress(rows: list[Row]) -> Iterable[Row]:
    return track(rows, description="Drawing pictures", transient=True) if rows else []
