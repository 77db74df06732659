"""Settled cells as runs of loggers: scalars and configuration for all, pictures and curves where they are shown."""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from twinsight.files import write_json
from twinsight.signatures import locate
from twinsight.study.cell import Cell
from twinsight.study.locks import Lock, Observer
from twinsight.study.pictures import animations, arrays_of, picture
from twinsight.study.records import read, unpacked_array
from twinsight.study.status import first_line, read_status
from twinsight.study.study import StudyCell, commit
from twinsight.tracking import build, finish, is_wandb, log_pictures

log = logging.getLogger(__name__)

Row = dict[str, Any]
_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""What an agent of a W&B sweep tells the run that it starts."""
_observer = Observer()


@dataclass
class _Facts:
    """What loggers get of a cell: its files, read once for all of them.

    Attributes:
        state: ``done`` or ``failed``.
        error: first line of what went wrong; empty when done.
        scalars: means over pairs, and how many there are.
        rows: records of the pairs that were explained.
        arrays: their maps and curves, by index.
        pictures: by index, those that were drawn.
        films: animations by name.
    """

    state: str
    error: str
    scalars: dict[str, float]
    rows: list[Row]
    arrays: Mapping[int, Row]
    pictures: Mapping[int, Path]
    films: Mapping[str, Path]

    @classmethod
    def of(cls, cell: Cell | StudyCell) -> "_Facts | None":
        """None for a cell that is not settled, or has not been published."""
        status = read_status(cell.folder)
        if status["state"] == "failed":
            error = first_line(status)
            return cls("failed", error, {"pairs": status.get("done", 0)}, [], {}, {}, {})
        published = cell.folder / "metrics.json"
        if status["state"] != "done" or not published.exists():
            return None
        summary = json.loads(published.read_text())
        rows = [row for row in read(cell.folder) if row["skipped"] is None]
        means = {name: facts["mean"] for name, facts in summary["metrics"].items() if facts["mean"] is not None}
        return cls(
            "done",
            "",
            {"pairs": summary["pairs"], "skipped": len(summary["skipped"]), **means},
            rows,
            arrays_of(cell),
            {row["index"]: path for row in rows if (path := picture(cell, row)).exists()},
            {f"{row['pair_id']}/{name}": path for row in rows for name, path in animations(cell, row).items()},
        )


def log_cell(
    cell: Cell | StudyCell,
    loggers: Mapping[str, DictConfig],
    study: str | None = None,
    agent: str | None = None,
) -> bool:
    """Give a settled cell to loggers, each unless it has been; ``logged.json`` keeps count.

    What a logger does wrong is said, and costs nothing else.

    Args:
        cell: done and published, or failed; of any other nothing is logged.
        loggers: by name.
        study: that it is logged for; the same cell is a run of its own in each study.
        agent: id of the run that an agent of a W&B sweep wants, None without one.

    Returns:
        False where another living process logs it right now.
    """
    if getattr(rank_zero_only, "rank", 0) or not owed(cell, loggers, study, agent):
        return True  # one process speaks for all of a run
    lock = Lock(cell.folder / "logging")
    if not lock.take(_observer):
        return False
    try:
        logged = _logged(cell)
        facts = None
        for name in owed(cell, loggers, study, agent):
            facts = facts or _Facts.of(cell)
            if facts is None:
                break
            try:
                _log(loggers[name], cell, facts, study, agent)
            except Exception as error:
                log.warning("%s could not be logged to %s: %s: %s", cell.name, name, type(error).__name__, error)
                continue
            logged[_key(name, study, agent)] = facts.state + facts.error
            write_json(cell.folder / "logged.json", logged)
    finally:
        lock.release()
        shutil.rmtree(lock.folder, ignore_errors=True)  # whoever comes now looks at the marker first
    return True


def owed(
    cell: Cell | StudyCell, loggers: Iterable[str], study: str | None = None, agent: str | None = None
) -> list[str]:
    """Those of the loggers, by name, that do not know yet how a cell ended."""
    status = read_status(cell.folder)
    if status["state"] not in ("done", "failed"):
        return []
    state = status["state"] + first_line(status)
    logged = _logged(cell)
    return [name for name in loggers if logged.get(_key(name, study, agent)) != state]


def agent_run() -> str | None:
    """Id of the run that an agent of a W&B sweep wants from this process."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def run_id(digest: str, study: str | None) -> str:
    """Of the run of a cell; the same cell lands in the same run, whoever logs it.

    >>> run_id("0123456789abcdef0123", "paper"), run_id("0123456789abcdef0123", None)
    ('paper-0123456789abcdef', '0123456789abcdef')
    """
    return "-".join([*([study] if study else []), digest[:16]])


@contextmanager
def own_run(node: DictConfig, run: str, agent: str | None, **options: Any) -> Iterator[WandbLogger]:
    """A W&B run that is written to disk, whole or not at all, and finished whatever happens.

    Args:
        node: the logger.
        run: id; local files of it that are there already are replaced.
        agent: id of the agent's run, which then is this one; None keeps out of a sweep.
        options: of :func:`twinsight.tracking.wandb_logger`; ``exit_code``: of the run.
    """
    exit_code = options.pop("exit_code", 0)
    held = {} if agent else {name: os.environ.pop(name) for name in _AGENT if name in os.environ}
    if held:
        wandb.teardown()  # its service remembers the sweep
    try:
        for old in (Path(node.save_dir) / "wandb").glob(f"offline-run-*/run-{agent or run}.wandb"):
            shutil.rmtree(old.parent, ignore_errors=True)  # by a process that died before it noted so, or of before
        logger = build(node, mode="offline", run_id=agent or run, **options)
        assert isinstance(logger, WandbLogger)
        try:
            yield logger
        except BaseException:
            finish(logger, 1)
            raise
        finish(logger, exit_code)
    finally:
        if held:
            os.environ.update(held)
            wandb.teardown()


def _logged(cell: Cell | StudyCell) -> dict[str, str]:
    """State in which each logger got it; a list, as earlier versions wrote it, does not say of which study."""
    marker = cell.folder / "logged.json"
    found = json.loads(marker.read_text()) if marker.exists() else {}
    return found if isinstance(found, dict) else {}


def _key(logger: str, study: str | None, agent: str | None) -> str:
    return f"{logger}/{agent or study or ''}"


def _log(node: DictConfig, cell: Cell | StudyCell, facts: _Facts, study: str | None, agent: str | None) -> None:
    parameters = {
        "cell": cell.digest,
        "study": study,
        "commit": commit(),
        "state": facts.state,
        "error": facts.error,
        **cell.identity,
        **({"axes": dict(cell.axes)} if isinstance(cell, StudyCell) else {}),
    }
    if is_wandb(node):
        _log_wandb(node, cell, facts, parameters, study, agent)
        return
    target: Any = locate("logger._target_", node._target_)
    options: dict[str, Any] = {}
    if issubclass(target, CSVLogger | TensorBoardLogger):
        options = {"name": node.get("name") or study or "cells", "version": cell.name}
        shutil.rmtree(Path(node.save_dir, options["name"], cell.name), ignore_errors=True)
    elif issubclass(target, MLFlowLogger):
        options = {"run_name": cell.name, "tags": {"study": study or "", "cell": run_id(cell.digest, study)}}
    logger = build(node, **options)
    if isinstance(logger, MLFlowLogger):
        _forget(logger, options["tags"]["cell"])
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(parameters, facts.scalars)  # its table of hyperparameters wants both at once
    else:
        logger.log_hyperparams(parameters)
    logger.log_metrics(facts.scalars, step=0)
    for row in facts.rows:
        if row["index"] in facts.pictures:
            log_pictures(logger, f"pairs/{row['pair_id']}", [facts.pictures[row["index"]]])
    if isinstance(logger, TensorBoardLogger):
        for name, curve in _mean_curves(facts).items():
            for place, value in zip(np.linspace(0, 100, len(curve)), curve, strict=True):
                logger.experiment.add_scalar(f"curves/{name}", value, round(place))  # per cent of the pixels
    logger.save()
    logger.finalize("success" if facts.state == "done" else "failed")


def _forget(logger: MLFlowLogger, tag: str) -> None:
    """Remove runs of a cell that were logged before: what MLflow knows of a run it does not change."""
    client = logger.experiment
    mine = logger.run_id
    for run in client.search_runs([logger.experiment_id], f"tags.cell = '{tag}'"):
        if run.info.run_id != mine:
            client.delete_run(run.info.run_id)


def _log_wandb(
    node: DictConfig,
    cell: Cell | StudyCell,
    facts: _Facts,
    parameters: dict[str, Any],
    study: str | None,
    agent: str | None,
) -> None:
    names = [cell.identity[part]["name"][:64] for part in ("model", "data", "explainer")]  # W&B takes no longer tags
    with own_run(
        node,
        run_id(cell.digest, study),
        agent,
        name=cell.name,
        group=node.get("group") or study,
        job_type="cell",
        tags=list(dict.fromkeys([*(node.get("tags") or []), *names])),
        exit_code=int(facts.state != "done"),
    ) as logger:
        logger.log_hyperparams(parameters)
        logger.log_metrics(facts.scalars)
        if facts.state != "done":
            return
        _log_tables(logger, facts)
        for name, path in facts.films.items():
            logger.experiment.log({f"animations/{name}": wandb.Video(str(path), format="gif")})


def _log_tables(logger: WandbLogger, facts: _Facts) -> None:
    rows = facts.rows
    scores = [name for name, value in rows[0].items() if isinstance(value, float)] if rows else []
    table = wandb.Table(columns=["pair_id", "picture", *scores])
    for row in rows:
        drawn = facts.pictures.get(row["index"])
        table.add_data(row["pair_id"], wandb.Image(str(drawn)) if drawn else None, *(row[name] for name in scores))
    run = logger.experiment
    run.log({"pairs_table": table})
    curves = _mean_curves(facts)
    if curves:
        fractions = np.linspace(0, 1, len(next(iter(curves.values())))).tolist()
        chart = wandb.plot.line_series(
            xs=fractions,
            ys=[curve.tolist() for curve in curves.values()],
            keys=list(curves),
            title="Insertion and deletion, mean over pairs",
            xname="fraction of pixels",
        )
        run.log({"insertion_deletion": chart})


def _mean_curves(facts: _Facts) -> dict[str, np.ndarray]:
    """Mean over pairs of each curve that some pair has."""
    rows, arrays = facts.rows, facts.arrays
    columns = arrays[rows[0]["index"]] if rows else {}
    names = [name for name in columns if name.startswith("curve_") and f"{name}_scale" in columns]
    stacked = {
        name.removeprefix("curve_").upper(): np.stack([_curve(arrays[row["index"]], name) for row in rows])
        for name in names
    }
    return {name: curves.mean(axis=0) for name, curves in stacked.items() if not np.isnan(curves).all()}


def _curve(row: Row, name: str) -> np.ndarray:
    curve = unpacked_array(row, name)
    assert curve is not None  # every explained pair has its curves
    return curve
