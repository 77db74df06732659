"""What dashboards get of a run or a study, when: its cells as they end, then one run with the results side by side."""

import hashlib
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import wandb
from omegaconf import DictConfig, OmegaConf

from twinsight.config import refuse_dangerous
from twinsight.errors import UserError
from twinsight.files import write_json
from twinsight.metrics import ALL_METRICS
from twinsight.plotting import draw_parallel, write_figure
from twinsight.study.aggregate import tabulate_study
from twinsight.study.cell import Cell
from twinsight.study.locks import STALE_SECONDS
from twinsight.study.loggers import agent_run, log_cell, owed, own_run
from twinsight.study.study import Study, StudyCell
from twinsight.tracking import Uploads, chosen_loggers, goes_online, is_wandb, settle_runs

log = logging.getLogger(__name__)

Row = dict[str, Any]
_POLL_SECONDS = 1.0


def log_run(cells: Sequence[Cell], config: DictConfig) -> None:
    """Log the cells of a single run; under an agent of a W&B sweep the first one is the agent's run."""
    loggers = chosen_loggers(config)
    agents = [agent_run(), *[None] * len(cells)]
    with _uploading(loggers.values()):
        for cell, agent in zip(cells, agents, strict=False):
            log_cell(cell, loggers, agent=agent)
        settle_runs()


def log_cells(cells: Sequence[StudyCell], study: str) -> list[StudyCell]:
    """Log those cells of a study that are settled; those that another process logs right now."""
    busy = []
    for cell in cells:
        if owed(cell, cell.line.loggers, study):
            loggers = _frozen_loggers(cell)
            if not log_cell(cell, loggers, study):
                busy.append(cell)
    settle_runs()
    return busy


def _frozen_loggers(cell: StudyCell) -> dict[str, DictConfig]:
    return chosen_loggers(OmegaConf.create({"logger": refuse_dangerous(cell.config.get("logger"), "logger")}))


@contextmanager
def dashboards(study: Study, loggers: Mapping[str, DictConfig] | None = None) -> Iterator[None]:
    """While the block lasts, upload what its jobs log; at its end log what none of them could, and the study itself.

    A job that was killed says nothing; a cell that was computed elsewhere, or before, was logged for others.

    Args:
        study: planned, or about to be.
        loggers: by name; None takes those that its last cell was planned with.
    """
    if loggers is None:
        planned = [cell for cell in study.cells if cell.line.loggers]
        loggers = _frozen_loggers(planned[-1]) if planned else {}
    with _uploading(loggers.values()):
        yield
        busy = log_cells(study.cells, study.name)
        until = time.monotonic() + STALE_SECONDS + 2 * _POLL_SECONDS  # by then one that is silent counts as dead
        while busy and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            busy = log_cells(busy, study.name)
        for node in loggers.values():
            if is_wandb(node):
                try:
                    log_study(study, node)
                except Exception as error:
                    log.warning("study %s could not be logged: %s: %s", study.name, type(error).__name__, error)


def log_study(study: Study, node: DictConfig) -> None:
    """Give W&B a run of the whole study, unless it has it as it is: results of cells, intervals, charts.

    Under an agent of a W&B sweep it is the agent's run, with means over cells.
    """
    rows = _rows(study)
    agent = agent_run()
    run = f"{study.name}-study"
    marker = study.folder / "logged.json"
    logged = json.loads(marker.read_text()) if marker.exists() else {}
    state = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    if not rows or logged.get(agent or run) == state:
        return
    failed = sum(row["state"] == "failed" for row in rows)
    metrics = [name for name in ALL_METRICS if any(name in row for row in rows)]
    options = {"name": study.name, "group": node.get("group") or study.name, "job_type": "study"}
    with own_run(node, run, agent, tags=node.get("tags"), exit_code=int(failed > 0), **options) as logger:
        facts = study.facts()
        logger.log_hyperparams({"study": study.name, **{key: facts.get(key) for key in ("commands", "commit")}})
        means = {name: _mean(row.get(name) for row in rows) for name in metrics}
        counts = {"cells": len(rows), "done": sum(row["state"] == "done" for row in rows), "failed": failed}
        logger.log_metrics({**counts, **{name: mean for name, mean in means.items() if mean is not None}})
        logger.experiment.log({"results": _table(rows)})
        _log_groups(logger.experiment, study)
        axes = dict.fromkeys(axis for cell in study.cells if cell.line.reason is None for axis in cell.axes)
        _log_parallel(logger.experiment, rows, list(axes), metrics)
    settle_runs()
    write_json(marker, {**logged, agent or run: state})


def _rows(study: Study) -> list[Row]:
    """A row for each cell: what varies, how it ended, means over its pairs."""
    rows = []
    for cell in study.cells:
        status = cell.status()
        row = {"cell": cell.name, "explainer": cell.label, **cell.axes, "state": status["state"]}
        row["error"] = str(status.get("error") or status.get("reason") or "").partition("\n")[0]
        published = cell.folder / "metrics.json"
        if status["state"] == "done" and published.exists():
            summary = json.loads(published.read_text())
            row["pairs"] = summary["pairs"]
            row |= {name: facts["mean"] for name, facts in summary["metrics"].items()}
        rows.append(row)
    return rows


def _table(rows: Sequence[Row]) -> wandb.Table:
    columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
    texts = {name for name in columns if any(isinstance(row.get(str(name)), str | bool | list | dict) for row in rows)}
    table = wandb.Table(columns=columns, allow_mixed_types=True)
    for row in rows:
        values = (row.get(str(name)) for name in columns)
        shown = (_text(value) if name in texts else value for name, value in zip(columns, values, strict=True))
        table.add_data(*shown)
    return table


def _log_groups(run: wandb.Run, study: Study) -> None:
    """The study's table with intervals, and a bar chart for each metric."""
    try:
        table = tabulate_study(study)
    except UserError:  # no cell is done yet
        return
    rows = table.long()
    if not rows:
        return
    run.log({"table": _table(rows)})
    for name in table.metrics:
        bars = [
            [", ".join(_text(row[axis]) for axis in table.by) or study.name, row["mean"]]
            for row in rows
            if row["metric"] == name
        ]
        values = wandb.Table(columns=["row", name], data=bars)
        run.log({f"bars/{name}": wandb.plot.bar(values, "row", name, title=f"{name.upper()}, mean over pairs")})


def _log_parallel(run: wandb.Run, rows: Sequence[Row], axes: Sequence[str], metrics: Sequence[str]) -> None:
    """Parallel coordinates of what varies and the metrics, a line for each cell that is done."""
    done = [row for row in rows if row["state"] == "done"]
    varying = [axis for axis in axes if len({_text(row.get(axis)) for row in done}) > 1]
    columns = [*varying, *metrics]
    if len(done) < 2 or len(columns) < 2:
        return
    numeric = {name for name in columns if all(_is_number(row.get(name)) for row in done)}
    lines = [{name: row.get(name) if name in numeric else _text(row.get(name)) for name in columns} for row in done]
    better: dict[str, Literal["high", "low"]] = {
        name: "high" if ALL_METRICS[name].higher_is_better else "low" for name in metrics
    }
    drawn = draw_parallel(lines, columns, better=better, inches=max(6.4, 0.8 * len(columns))).get_figure(root=True)
    assert drawn is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parallel.png"
        write_figure(drawn, path)
        run.log({"parallel_coordinates": wandb.Image(str(path))})


def _mean(values: Any) -> float | None:
    present = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(present) if present else None


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _uploading(nodes: Any) -> Iterator[None]:
    """Uploads of the W&B logger among ``nodes``, if there is one."""
    for node in nodes:
        if is_wandb(node):
            folder = Path(node.save_dir).resolve() / "wandb"
            folder.mkdir(parents=True, exist_ok=True)
            with Uploads(folder, goes_online(node.mode), node.upload_seconds):
                yield
            return
    yield
