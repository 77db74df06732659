"""Fixtures that run tiny cells in process, and one that clears up after them."""

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from toy_cells import composed, only_cell, write_photo
from toy_studies import SLOW
from twinsight.study import explain

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(autouse=True)
def surroundings_restored() -> Iterator[None]:
    """A run sets variables, signal handlers and switches of the whole process; the next test should not see them."""
    environment, interrupt = dict(os.environ), signal.getsignal(signal.SIGINT)
    level = logging.root.level
    yield
    # Those of a run write to a stream that closes with its test; some come from fixtures that live longer.
    logging.root.handlers[:] = [one for one in logging.root.handlers if type(one).__module__.startswith("_pytest")]
    logging.root.setLevel(level)
    torch.use_deterministic_algorithms(False)
    signal.signal(signal.SIGINT, interrupt)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five photos; read only."""
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(NAMES):
        write_photo(folder / f"{name}.png", index)
    return folder


@pytest.fixture
def tiny(photos: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """``tiny(*overrides)``: configuration of a tiny cell on the five photos, each with an output folder of its own."""
    numbers = count()

    def make(*overrides: str, **replaced: Any) -> DictConfig:
        root = tmp_path / f"run{next(numbers)}"
        return composed(f"data.root={photos}", f"paths.output_root={root}", *overrides, **replaced)

    return make


@pytest.fixture
def explained(tiny: Callable[..., DictConfig]) -> Callable[..., Path]:
    """``explained(*overrides)``: run the cell; its folder."""

    def run(*overrides: str, **replaced: Any) -> Path:
        config = tiny(*overrides, **replaced)
        assert explain(config) == 0
        return only_cell(config)

    return run


@pytest.fixture(scope="session")
def plain(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The cells of ``toy_studies.TWO``, each run alone and whole, by name."""
    choices = [(f"explainer={explainer}", f"seed={seed}") for explainer in ("gradcam", "lafam") for seed in (0, 1)]
    return _one_by_one(tmp_path_factory.mktemp("plain"), photos, choices)


@pytest.fixture(scope="session")
def slow(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Cells of ``toy_studies.SLOW`` for four seeds, each run alone, whole, and at once; by name."""
    choices = [(*SLOW, f"seed={seed}") for seed in range(4)]
    return _one_by_one(tmp_path_factory.mktemp("slow"), photos, choices)


def _one_by_one(root: Path, photos: Path, choices: Iterable[tuple[str, ...]]) -> dict[str, Path]:
    for choice in choices:
        assert explain(composed(f"data.root={photos}", f"paths.output_root={root}", *choice)) == 0
    return {folder.name: folder for folder in (root / "cells").iterdir()}
