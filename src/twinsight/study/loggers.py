"""A finished cell as a logger's run: scalars and configuration for all, tables, pictures and curves for W&B."""

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import hydra.utils
import numpy as np
import wandb
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from twinsight.errors import UserError, unknown
from twinsight.study.cell import Cell
from twinsight.study.records import unpacked_array
from twinsight.study.study import commit
from twinsight.tracking import finish

log = logging.getLogger(__name__)

Row = dict[str, Any]
_MODES = ("auto", "online", "offline")


def wandb_logger(
    project: str = "twinsight",
    mode: Literal["auto", "online", "offline"] = "auto",
    save_dir: str | Path = "outputs",
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    run_id: str | None = None,
    name: str | None = None,
) -> WandbLogger:
    """Lightning's W&B logger with a mode that needs no thought.

    Args:
        project, entity, group, tags: as W&B has them.
        mode: ``"auto"`` is online when this machine is logged in to W&B, else offline; ``"online"``, ``"offline"``.
        save_dir: W&B's local files go to ``wandb`` below.
        run_id: the same id resumes the same run.
        name: of the run.

    Raises:
        UserError: unknown mode; with ``"online"``, W&B cannot be reached (``"auto"`` then goes on offline).
    """
    if mode not in _MODES:
        raise unknown("`logger.mode`", mode, _MODES)
    offline = mode == "offline" or (mode == "auto" and not logged_in())
    folder = Path(save_dir).resolve() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    # Pictures of tables wait there for their upload; W&B would put them below the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    os.environ.setdefault("WANDB_SILENT", "true")  # what matters is said once, by us
    if getattr(rank_zero_only, "rank", 0):
        return WandbLogger(offline=True, save_dir=str(save_dir))  # never starts a run: rank 0 has the one there is

    def start(offline: bool) -> WandbLogger:
        run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            tags=tags,
            id=run_id,
            name=name,
            dir=str(save_dir),
            mode="offline" if offline else "online",
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
        )
        return WandbLogger(experiment=run)

    try:
        return start(offline)
    except wandb.errors.Error as error:
        if mode != "auto" or offline:
            raise UserError(f"W&B cannot start a run ({error}): log in, or set logger.mode=offline") from error
        log.warning("W&B cannot be reached (%s): the run is kept offline", error)
        return start(offline=True)


def logged_in() -> bool:
    """Whether W&B would find a key: in the environment or in the netrc file, where ``wandb login`` puts it."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_cell(
    node: DictConfig,
    cell: Cell,
    summary: Mapping[str, Any],
    rows: list[Row],
    arrays: Mapping[int, Row],
    pictures: Mapping[int, Path],
    films: Mapping[str, Path],
) -> None:
    """Log a finished cell to the logger that ``node`` describes, and close the logger."""
    options: dict[str, Any] = {}
    wants_wandb = node._target_.endswith("wandb_logger")
    if wants_wandb:
        # The hash as id: running the cell again lands in the same run.
        options = {"run_id": cell.digest[:16], "name": cell.name}
    logger: Logger = hydra.utils.instantiate(node, **options)
    scalars = {name: facts["mean"] for name, facts in summary["metrics"].items() if facts["mean"] is not None}
    logger.log_hyperparams({"cell": cell.digest, "commit": commit(), **cell.identity})
    logger.log_metrics({"pairs": summary["pairs"], "skipped": len(summary["skipped"]), **scalars})
    if isinstance(logger, WandbLogger):
        _log_tables(logger, rows, arrays, pictures)
        for name, path in films.items():
            logger.experiment.log({f"animations/{name}": wandb.Video(str(path), format="gif")})
    logger.save()
    logger.finalize("success")
    if isinstance(logger, WandbLogger):
        finish(logger)


def _log_tables(logger: WandbLogger, rows: list[Row], arrays: Mapping[int, Row], pictures: Mapping[int, Path]) -> None:
    scores = [name for name, value in rows[0].items() if isinstance(value, float)] if rows else []
    table = wandb.Table(columns=["pair_id", "picture", *scores])
    for row in rows:
        picture = pictures.get(row["index"])
        drawn = wandb.Image(str(picture)) if picture else None
        table.add_data(row["pair_id"], drawn, *(row[name] for name in scores))
    run = logger.experiment
    run.log({"pairs_table": table})
    curves = _mean_curves(rows, arrays)
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


def _mean_curves(rows: list[Row], arrays: Mapping[int, Row]) -> dict[str, np.ndarray]:
    """Mean over pairs of each curve that some pair has."""
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
