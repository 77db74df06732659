"""The schema under the YAML files, and what is said when a configuration does not fit it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig


@dataclass
class Loader:
    """How pairs reach the device. None of it changes a result."""

    batch_size: int = 4  # pairs per batch
    num_workers: int = 0  # processes that read photos; 0 reads in the main process


@dataclass
class Engine:
    """The fast path."""

    chunk_size: int = 32  # perturbed images per forward pass; frozen into the cell, since rounding depends on it


@dataclass
class Paths:
    """Where things are written."""

    output_root: str = "outputs"  # everything a run writes goes below


@dataclass
class Pictures:
    """Figures of a run."""

    limit: int = 16  # at most this many pairs are drawn
    side: int = 512  # longest side of a drawn view in pixels; photos are drawn at their own resolution up to it


@dataclass
class Debug:
    """Aids for finding faults."""

    enabled: bool = False  # tracebacks beside error messages


@dataclass
class Config:
    """Every key a configuration may have at its top; groups with a ``_target_`` are checked against its signature."""

    task: Any = MISSING
    model: Any = MISSING
    data: Any = MISSING
    views: Any = MISSING
    explainer: Any = MISSING
    explainers: Any = None
    metrics: Any = None
    similarity: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None
    protocol: str = "sound"
    seed: int = 0
    loader: Loader = field(default_factory=Loader)
    engine: Engine = field(default_factory=Engine)
    pictures: Pictures = field(default_factory=Pictures)
    paths: Paths = field(default_factory=Paths)
    debug: Debug = field(default_factory=Debug)


def conf_folder() -> Path:
    """The folder of YAML files: beside ``src`` in a checkout, inside the package when installed."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def register_schema() -> None:
    """Make the schema, and a one-member set for every explainer, known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    # `explainers=[a,b]` composes each member on its own; deriving the members keeps a new explainer at one YAML file.
    for path in sorted((conf_folder() / "explainer").glob("*.yaml")):
        name = path.stem
        store.store(group="explainers", name=name, node={"defaults": [{f"/explainer@options.{name}": name}]})


def validate(config: DictConfig) -> None:
    pass


def explain_error(error):
    return None
