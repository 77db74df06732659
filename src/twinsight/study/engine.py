"""What a configuration says about the engine."""

import json
import platform
from dataclasses import fields
from pathlib import Path

import torch
from omegaconf import DictConfig

from twinsight.engine import CHUNK_SIZE, Execution, measured_chunk_size
from twinsight.errors import UserError
from twinsight.files import write_json
from twinsight.models import TwoViewModel, weights_digest


def execution_of(config: DictConfig) -> Execution:
    """How passes are run, from ``config.engine``; what it does not say is the default.

    Raises:
        UserError: an unknown precision.
    """
    return Execution(**{key.name: config.engine[key.name] for key in fields(Execution) if key.name in config.engine})


def check_engine(config: DictConfig) -> None:
    """Refuse what ``config.engine`` cannot say.

    Raises:
        UserError: chunk size or precision out of range.
    """
    execution_of(config)
    size = config.engine.chunk_size
    if size == "auto":
        return
    if not isinstance(size, int) or isinstance(size, bool):
        raise UserError(f"`engine.chunk_size` must be a positive integer or auto, got {size!r}")
    if size < 1:
        raise UserError(f"`engine.chunk_size` must be at least 1, got {size}")


def fix_chunk_size(config: DictConfig, model: TwoViewModel, measure: bool = True) -> None:
    """Put a number in the place of ``engine.chunk_size=auto``.

    It is measured the first time for this model and machine; ``chunk_sizes.json`` below the output folder keeps it, so
    that cells are found again. Without ``measure`` nothing is written, and the default stands in for it.
    """
    if config.engine.chunk_size != "auto":
        return
    execution = execution_of(config)
    on_gpu = torch.cuda.is_available() and config.trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if on_gpu else "cpu")
    machine = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    key = f"{machine} / {execution} / {model.input_size} pixels / {weights_digest(model)[:16]}"
    path = Path(config.paths.output_root) / "chunk_sizes.json"
    measured: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    if key not in measured and not measure:
        measured[key] = CHUNK_SIZE
    elif key not in measured:
        measured[key] = measured_chunk_size(model, device, execution)
        write_json(path, measured)
    config.engine.chunk_size = measured[key]
