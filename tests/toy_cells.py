"""Cells that take a fraction of a second, and models and explainers for them (`_target_: toy_cells.NAME`).

An untrained network on 32 pixels, small photos, short curves.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image
from torch import Tensor

from twinsight.config import conf_folder, register_schema
from twinsight.explainers import Explainer, LaFAM
from twinsight.explainers.base import Pair
from twinsight.metrics.functional import average_drop, insertion_deletion
from twinsight.models import TwoViewModel, small_two_view

ROOT = Path(__file__).parents[1]

TINY = (
    "model=small_two_view",
    "model.widths=[8,16,16]",
    "model.blocks=1",
    "model.input_size=32",
    "metrics.insertion_deletion.points=8",
    "data=image_folder",
    "trainer=cpu",
    "logger=none",
    "pictures.limit=0",
)

COLUMNS = (*insertion_deletion.columns, *average_drop.columns)
"""Metrics of `metrics=default`."""


def composed(*overrides: str, **replaced: Any) -> DictConfig:
    """The configuration that the command line would compose; ``replaced`` are whole nodes put in afterwards."""
    register_schema()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = hydra.compose("config", [*TINY, *overrides])
    with open_dict(config):
        for name, node in replaced.items():
            config[name] = OmegaConf.create(node)
    return config


def write_photo(path: Path, seed: int) -> None:
    """A smooth coloured photo of 40 x 48 pixels."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    coarse.resize((48, 40), Image.Resampling.BICUBIC).save(path)


def cells(root: str | Path) -> dict[str, Path]:
    """Folders of all cells below an output folder, by the name of the explainer."""
    return {folder.name.split("-")[-2]: folder for folder in sorted(Path(root, "cells").iterdir())}


def only_cell(config: DictConfig) -> Path:
    """The folder of the one cell of a run."""
    (folder,) = cells(config.paths.output_root).values()
    return folder


def rows(folder: Path, table: str = "records") -> list[dict[str, Any]]:
    """Rows of a cell's table."""
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def assert_same_results(found: Path, expected: Path) -> None:
    """Records and arrays of two cells are equal bit for bit."""
    for name in ("records", "arrays"):
        one, other = (pq.read_table(folder / f"{name}.parquet") for folder in (found, expected))
        assert one.column_names == other.column_names, set(one.column_names) ^ set(other.column_names)
        texts = ({column: repr(table[column].to_pylist()) for column in table.column_names} for table in (one, other))
        assert dict(next(texts)) == dict(next(texts))
        assert (found / f"{name}.parquet").read_bytes() == (expected / f"{name}.parquet").read_bytes()


def by_command_line(root: Path, photos: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start ``python run.py`` as a process of its own, on one thread."""
    arguments = [*TINY, f"data.root={photos}", f"paths.output_root={root}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, ROOT / "run.py", *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """Wait for a process, which must not fail; what it printed."""
    try:
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def stained_model(input_size: int = 32) -> TwoViewModel:
    """A network with one weight that is not a number."""
    model = small_two_view(widths=(8, 16), blocks=1, input_size=input_size)
    with torch.no_grad():
        next(model.head.parameters())[0, 0] = torch.nan
    return model


def blind_model(input_size: int = 32) -> TwoViewModel:
    """A network whose embeddings are all zero, and with them every similarity."""
    model = small_two_view(widths=(8, 16), blocks=1, input_size=input_size)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    return model


def gelu_model(input_size: int = 32) -> TwoViewModel:
    """A network whose activation is no ReLU."""
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4, padding=1), torch.nn.GELU())
    return TwoViewModel(trunk, input_size=input_size)


class Failing(Explainer):
    """Explains nothing."""

    def explain(self, pair: Pair) -> tuple[Tensor, Tensor]:
        raise RuntimeError("the method is broken")


class TurnsCtrlC(Explainer):
    """Is interrupted where compiled code makes another exception of that."""

    def explain(self, pair: Pair) -> tuple[Tensor, Tensor]:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("a module could not be initialised")


class Slow(LaFAM):
    """LaFAM that takes ``TOY_SECONDS`` for each pair, less once there is a file ``TOY_UNTIL``.

    Both of the environment, and no part of its identity.
    """

    def explain(self, pair: Pair) -> tuple[Tensor, Tensor]:
        end = time.monotonic() + float(os.environ.get("TOY_SECONDS", "0"))
        while (left := end - time.monotonic()) > 0 and not Path(os.environ.get("TOY_UNTIL", "never")).exists():
            time.sleep(min(left, 0.1))
        return super().explain(pair)


class OneMap(Explainer):
    """Brightness of view 1, no map for view 2."""

    def explain(self, pair: Pair) -> tuple[Tensor, None]:
        return pair.view1.mean(dim=0), None


class Constant(Explainer):
    """Maps that rank nothing."""

    def explain(self, pair: Pair) -> tuple[Tensor, Tensor]:
        return torch.full((4, 4), 0.5), torch.zeros(4, 4)


class NotFinite(Explainer):
    """A map with NaN and one with infinity."""

    def explain(self, pair: Pair) -> tuple[Tensor, Tensor]:
        map1, map2 = pair.view1.mean(dim=0), pair.view2.mean(dim=0)
        map1[0, 0], map2[0, 0] = torch.nan, torch.inf
        return map1, map2


class NoExplainer:
    """Takes a model, as explainers do."""

    def __init__(self, model: TwoViewModel) -> None:
        self.model = model


class NoMetric:
    """Built at once, where a metric is a function that waits for its views."""

    def __init__(self) -> None:
        pass
