"""Which loggers a configuration chooses, and what each needs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
from omegaconf import DictConfig
from PIL import Image
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from twinsight.errors import UserError, require_extra
from twinsight.exits import silence_telemetry
from twinsight.tracking.runs import MODES, check_mode

_NEEDS = {"MLFlowLogger": "mlflow", "TensorBoardLogger": "tensorboard"}
"""Lightning's loggers that need a package of their own; the extra is called like the package."""
_SQLITE = "sqlite:///"


def chosen_loggers(config: DictConfig) -> dict[str, DictConfig]:
    """The loggers of ``config.logger`` by name; none where it holds none.

    Raises:
        UserError: it holds something that is no logger.
    """
    found = config.get("logger") or {}
    for name, node in found.items():
        if not isinstance(node, DictConfig) or node.get("_target_") is None:
            raise UserError(f"`logger.{name}` is no logger: loggers have names, such as logger.{name}._target_=CLASS")
    return {str(name): node for name, node in found.items()}


def check_loggers(config: DictConfig) -> None:
    """Refuse what would fail only when everything has been computed.

    Raises:
        UserError: a package is missing, or W&B is wanted online and nobody is logged in.
    """
    for name, node in chosen_loggers(config).items():
        package = _NEEDS.get(node._target_.rpartition(".")[2])
        if package is not None:
            require_extra(f"`logger={name}`", package, package)
        if is_wandb(node):
            check_mode(node.get("mode", MODES[0]))


def is_wandb(node: DictConfig) -> bool:
    """Whether a logger is ours for W&B."""
    return node._target_.endswith(".wandb_logger")


def build(node: DictConfig, **options: Any) -> Logger:
    """The logger that a node describes, with ``options`` beside or over its own."""
    if node._target_.endswith(".MLFlowLogger"):
        options = {**_prepare_mlflow(node), **options}
    return hydra.utils.instantiate(node, **options)


def _prepare_mlflow(node: DictConfig) -> dict[str, Any]:
    """Make the folders that MLflow expects; options by which it finds them from wherever it runs."""
    silence_telemetry()  # for whoever comes from Python, not from the command line
    # MLflow waits for minutes where its server does not answer.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    database, place = node.get("tracking_uri") or "", node.get("artifact_location")
    if database.startswith(_SQLITE):
        Path(database.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    if place is None or "://" in place:  # somewhere on a server
        return {}
    return {"artifact_location": Path(place).resolve().as_uri()}


def log_pictures(logger: Logger, name: str, paths: Sequence[Path], step: int | None = None) -> None:
    """Give a logger pictures, if it takes any.

    Args:
        name: of the pictures together, with ``/`` for groups.
        paths: files that Pillow reads.
        step: of a training; None is outside of one.
    """
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [str(path) for path in paths], step=step)
        return
    for number, path in enumerate(paths):
        one = name if len(paths) == 1 else f"{name}/{number}"
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as image:
                logger.experiment.add_image(one, np.asarray(image.convert("RGB")), step or 0, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path), one)
