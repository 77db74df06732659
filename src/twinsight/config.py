"""The schema under the YAML files, and what is said when a configuration does not fit it."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from twinsight.errors import UserError
from twinsight.signatures import arguments, as_written, choices, closest, expected, fits, locate

HYDRA_KEYS = frozenset(["_target_", "_partial_", "_args_", "_convert_", "_recursive_"])
_LOCATORS = frozenset(f"hydra.utils.get_{kind}" for kind in ("class", "method", "object"))


@dataclass
class Loader:
    """How pairs reach the device. None of it changes a result."""

    batch_size: int = 1  # pairs per batch: pairs are encoded one by one, so more only coarsens the progress bar
    num_workers: int = 0  # processes that read photos; 0 reads in the main process


@dataclass
class Engine:
    """The fast path."""

    chunk_size: Any = (
        16  # perturbed images per pass, or auto: measured; frozen into the cell, as rounding depends on it
    )
    precision: str = "fp32"  # of the network's passes: fp32, tf32 (GPUs), bf16
    # of occluded images, compute again only what the window reaches; exact to rounding; null: on CPUs, where it pays
    incremental: bool | None = None
    compile: bool = False  # passes of perturbed images through torch.compile, with CUDA graphs on GPUs


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
    sweep: Any = None
    protocol: str = "sound"
    seed: int = 0
    study: str | None = None
    shard: Any = None
    retry_failed: bool = False
    replan: bool = False
    job: str | None = None
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
    """Make the schema, a one-member set for every explainer, and what YAML files may ask for, known."""
    OmegaConf.register_new_resolver("saved_input_size", _saved_input_size, replace=True)
    OmegaConf.register_new_resolver("options_of", _options_of, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    # `explainers=[a,b]` composes each member on its own; deriving the members keeps a new explainer at one YAML file.
    for path in sorted((conf_folder() / "explainer").glob("*.yaml")):
        name = path.stem
        store.store(group="explainers", name=name, node={"defaults": [{f"/explainer@options.{name}": name}]})


def _saved_input_size(checkpoint: str | None) -> int:
    """``${saved_input_size:FILE}`` is the side of the views that a weight file was made for."""
    from twinsight.models import saved_input_size  # brings torch along, which --help does without

    return saved_input_size(checkpoint)


def _options_of(name: str, *, _root_: DictConfig) -> dict[str, Any]:
    """``${options_of:gradcam}`` is what the set says of its member of that name, so that a control follows its row."""
    member = OmegaConf.select(_root_, f"explainers.options.{name}")
    if member is None:
        return {}
    return {str(key): value for key, value in member.items() if key not in (*HYDRA_KEYS, "protocol")}


def options(group: str) -> list[str]:
    """Names that ``group=NAME`` takes; empty where there is no such group."""
    names = {path.stem for path in (conf_folder() / group).glob("*.yaml")}
    with suppress(OSError):  # nothing stored under that name
        names.update(name.removesuffix(".yaml") for name in ConfigStore.instance().list(group))
    return sorted(names)


def validate(config: DictConfig) -> None:
    """Hold a composed configuration against the schema, and every ``_target_`` in it against its signature.

    Nothing is built and nothing changed; modules of targets are imported. ``task`` is called with the whole
    configuration and reads its other keys itself, so that only its target is checked.

    Raises:
        UserError: a key is unknown, a value is missing or has the wrong type, or a target cannot be imported. The
            message names the full key.
    """
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain: Any = OmegaConf.to_container(config)
    try:
        OmegaConf.merge(OmegaConf.structured(Config), plain)
    except (ConfigKeyError, ValidationError) as error:
        raise UserError(misfit(error)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(missing_value(missing[0]))
    _check(config, plain, "")
    if not 0 <= config.get("seed", 0) < 2**32:
        raise UserError(f"`seed` must be between 0 and {2**32 - 1}, got {config.seed}")
    if HydraConfig.initialized():
        invocation = HydraConfig.get()
        if invocation.mode == RunMode.MULTIRUN:
            refuse_several_devices(config, invocation.launcher)
        check_words(config, invocation.overrides.task)


def refuse_dangerous(node: Any, key: str = "") -> Any:
    """A node of plain containers as it is, but not one that somebody could have written to run something.

    For files that are read back: a frozen configuration is not looked at by :func:`validate` again.

    Raises:
        UserError: a target that :func:`twinsight.signatures.locate` refuses, or a reference, which a frozen
            configuration has none of.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            full = f"{key}.{name}".lstrip(".")
            if name == "_target_" or (name == "path" and node.get("_target_") in _LOCATORS):
                locate(full, value)
            refuse_dangerous(value, full)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            refuse_dangerous(value, f"{key}[{place}]")
    elif isinstance(node, str) and "${" in node:
        raise UserError(f"`{key}={node}` is a reference, and a frozen configuration has none: plan again, replan=true")
    return node


SLURM_LAUNCHER = "hydra_plugins.twinsight_slurm.SlurmLauncher"
"""Starts a process per device by itself, so that jobs may have several."""


def refuse_several_devices(config: DictConfig, launcher: Mapping[str, Any] | None = None) -> None:
    """Refuse what cannot be in a multirun.

    Args:
        config: of a cell.
        launcher: Hydra's, as configured.

    Raises:
        UserError: the trainer wants several devices, and the launcher starts one process a job.
    """
    if launcher is not None and launcher.get("_target_") == SLURM_LAUNCHER:
        return
    trainer = config.get("trainer") or {}
    if _device_count(trainer) > 1 or trainer.get("num_nodes", 1) != 1:
        raise UserError(
            "several devices inside a multirun would replay the whole sweep in every process: "
            "use trainer.devices=1 with -m, run the cells one by one, or let Slurm start the processes, "
            "hydra/launcher=slurm"
        )


def _device_count(trainer: Mapping[str, Any]) -> int:
    """Devices that Lightning would take for ``trainer.devices``."""
    devices = trainer.get("devices", 1)
    if devices in ("auto", -1, "-1"):
        from torch import cuda  # which takes seconds to import

        on_gpu = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
        return max(1, cuda.device_count()) if on_gpu else 1
    if isinstance(devices, str) and not devices.isdecimal():
        return len([device for device in devices.split(",") if device.strip()])
    return int(devices) if isinstance(devices, int | str) else len(devices)


def check_words(config: DictConfig, words: Iterable[str]) -> None:
    """What is wrong with overrides though every key of them is valid.

    Raises:
        UserError: one has no effect.
    """
    written = [override.lstrip("+") for override in words]
    beside = [override for override in written if override.startswith(("explainer=", "explainer."))]
    members = list((config.get("explainers") or {}).get("options") or {})
    if members and beside:
        key = beside[0].removeprefix("explainer.") if beside[0].startswith("explainer.") else "OPTION=VALUE"
        raise UserError(
            f"`{beside[0]}` has no effect beside a set of explainers: write explainers.options.{members[0]}.{key}"
        )


def missing_value(key: str) -> str:
    """What to do about a mandatory value that was not given."""
    names = options(key)
    if names:
        return f"{key} is missing: choose one on the command line, {key}=NAME. Valid: {', '.join(names)}"
    return f"{key} is missing: give it on the command line, {key}=..."


def unknown_key(key: str, valid: Iterable[str], near: str | None = None) -> str:
    """What to do about a full key that does not exist; ``valid`` names its siblings, ``near`` is a full key."""
    parent, _, name = key.rpartition(".")
    names = sorted(valid)
    sibling = closest(name, names)
    near = near or (f"{parent}.{sibling}".lstrip(".") if sibling else None)
    hint = f"did you mean {near!r}? " if near else ""
    kind = "key" if parent else "key or group"
    return f"unknown {kind} {key!r}: {hint}Valid: {', '.join(names) or 'none'}"


def misfit(error: OmegaConfBaseException) -> str:
    """What to do about a key or value that the schema refused."""
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(key, map(str, error.parent_node or ()))
    annotation: Any = Config
    for part in key.split("."):
        annotation = get_type_hints(annotation).get(part) if is_dataclass(annotation) else None
    if annotation is None:
        return f"`{key}`: {str(error).splitlines()[0]}"
    return wrong_type(key, error.value, annotation)


def wrong_type(key: str, value: object, annotation: Any, written: object = None) -> str:
    """What to do about a value that is not of the type its key takes; ``written`` is it before interpolation."""
    near = closest(value, choices(annotation)) if isinstance(value, str) else None
    hint = f": did you mean {near!r}?" if near else ""
    source = f" from {written}" if isinstance(written, str) and written != value else ""
    return f"`{key}` must be {expected(annotation)}, got {as_written(value)}{source}{hint}"


def unresolved(key: str, written: object, error: Exception) -> str:
    """What to do about an interpolation that leads nowhere."""
    return f"`{key}={written}` cannot be resolved: {str(error).splitlines()[0]}"


def _check(node: DictConfig | ListConfig, plain: Any, key: str) -> None:
    """Resolve every value below ``node`` and hold it against its target's signature; ``plain`` is the node as written.

    What an interpolation points to is checked where it stands.
    """
    takes = None
    if isinstance(node, DictConfig) and node.get("_target_") is not None:
        takes = arguments(locate(f"{key}._target_", node["_target_"]))
        if node["_target_"] in _LOCATORS:
            locate(f"{key}.path", node.get("path"))
    names: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        full = f"{key}[{name}]" if isinstance(node, ListConfig) else f"{key}.{name}".lstrip(".")
        written = plain[name]
        try:
            value = node[name]
        except InterpolationResolutionError as error:
            raise UserError(unresolved(full, written, error)) from error
        if takes is not None and key != "task" and name not in HYDRA_KEYS:
            if name not in takes.types and not takes.open:
                raise UserError(unknown_key(full, takes.writable))
            annotation = takes.types.get(name, Any)
            if not fits(value, annotation):
                raise UserError(wrong_type(full, value, annotation, written))
        if isinstance(value, DictConfig | ListConfig) and not isinstance(written, str):
            _check(value, written, full)
