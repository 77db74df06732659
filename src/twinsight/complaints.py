"""What is said about errors that a user can mend: one message with the key, the value and the remedy."""

import errno
import os
import re
from types import FrameType
from typing import Any

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from twinsight.config import HYDRA_KEYS, conf_folder, misfit, missing_value, options, unknown_key, unresolved
from twinsight.errors import UserError, unknown
from twinsight.signatures import arguments, closest, locate

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_NO_PLACE = (errno.ENOENT, errno.EEXIST)  # from mkdir: a link that leads nowhere, a disk that is not mounted


def explain_error(error: BaseException) -> str | None:
    """The message for an error that the user can mend, None for a fault of the program.

    >>> explain_error(UserError("`views.flip` is a probability, got 2"))
    '`views.flip` is a probability, got 2'
    >>> explain_error(ZeroDivisionError())
    """
    if isinstance(error, UserError):
        # A data loader's worker sends the text of its traceback along.
        return str(error).rpartition("UserError: ")[2].strip()
    if isinstance(error, InstantiationException):
        return _instantiation(error)
    if isinstance(error, OverrideParseException):
        return _override(error)
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, HydraException):
        return _composition(error)
    if isinstance(error, MissingMandatoryValue):
        return missing_value(str(error.full_key))
    if isinstance(error, InterpolationResolutionError):
        return unresolved(str(error.full_key), error.child_node, error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not valid YAML, {error.problem}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, which takes seconds to import
        return _lightning(error)
    frame = _innermost_frame(error)
    if isinstance(error, ValueError) and frame and frame.f_globals.get("__name__", "").startswith("hydra."):
        override = getattr(frame.f_locals.get("override"), "input_line", None)  # which Hydra does not name
        return f"{f'`{override}`: ' if override else ''}{_one_line(error)}: see `--help`"
    return _worker(error) or _disk(error)


def _instantiation(error: InstantiationException) -> str | None:
    """Hydra's wrapper around whatever the constructor behind a ``_target_`` raised."""
    cause = error.__cause__ or error.__context__
    found = re.search(r"full_key: (\S+)", str(error))
    key = found.group(1) if found else "configuration"
    if cause is None or str(error).startswith("Error locating"):
        return f"`{key}`: {str(error).splitlines()[0].partition(', set env var')[0]}"
    message = explain_error(cause)
    if message is not None:
        return message
    if "call to target 'pytorch_lightning." in str(error) and isinstance(cause, ValueError | TypeError | ImportError):
        return _lightning(cause)
    called = cause.__traceback__
    if isinstance(cause, TypeError) and called is not None and called.tb_next is None:
        # Refused at the call itself: an argument is missing, or the task gives one that this target does not take.
        remedy = f"give it, +{key}.NAME=..." if "missing" in str(cause) else f"choose another {key.partition('.')[0]}"
        return f"`{key}`: {cause}: {remedy}"
    return None


def _override(error: OverrideParseException) -> str:
    given = error.override
    if "=" not in given and not given.startswith("~"):
        return f"{given!r} is not an override: write key=value or group=name, see `--help`"
    lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "Lexer", "See "))]
    reason = lines[0].strip(" ^") if lines else ""
    why = f" ({reason})" if reason else ""
    return f"cannot read the override {given!r}{why}: put special characters in quotes, \"key='a, b'\""


def _missing_config(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    valid = error.options or options(group)
    if not group or not valid:
        return str(error).splitlines()[0]
    # A list, explainers=[a,b], names single explainers and sets alike.
    return str(unknown("explainer or set" if group == "explainers" else group, name, valid))


def _composition(error: HydraException) -> str:
    """A configuration that does not compose: the reason is an OmegaConf error behind Hydra's."""
    reason = error.__cause__ or error.__context__
    if not isinstance(reason, OmegaConfBaseException) or not reason.full_key:
        twice = re.match(r"(\S+) appears more than once|Multiple values for (\S+)\.", str(error))
        if twice:
            group = twice[1] or twice[2]
            return f"`{group}` is chosen twice: write {group}=NAME once, without a plus"
        return _one_line(error)
    file = re.match(r"In '([^']+)'", str(error))
    where = f"in {file[1]}.yaml: " if file else ""
    if not isinstance(reason, ConfigKeyError | ConfigAttributeError):
        return where + misfit(reason)
    override = re.match(r"Could not override '([^']+)'", str(error))
    key = str(reason.full_key)
    if file and key in _groups():
        return f"{where}its keys landed under `{key}`: start the file with the line `# @package _global_`"
    try:
        return where + _no_such_key(key, override[1] if override else key, reason.parent_node)
    except UserError as worse:  # the node's target cannot be imported
        return str(worse)


def _no_such_key(key: str, asked: str, node: Any) -> str:
    """``key`` is not in ``node``; the user asked for it, or for something below it."""
    parent, _, name = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    names = [str(k) for k in node if k not in HYDRA_KEYS] if isinstance(node, DictConfig) else []
    if not parent:
        names = sorted({*names, *_groups()})
    near = closest(name, names, cutoff=0.8)  # before modules are imported for what else a signature takes
    plus = ""
    if not near and parent and parent != "task" and isinstance(node, DictConfig) and node.get("_target_"):
        takes = arguments(locate(f"{parent}._target_", node["_target_"]))
        if name in takes.types or takes.open:
            return f"`{asked}` is a valid key that no file sets: add it with a plus, +{asked}=..."
        plus = "+" if closest(name, names) is None else ""
        names = sorted({*names, *takes.writable})
    near = near or closest(name, names)
    if near:
        near = f"{plus}{prefix}{near}{asked.removeprefix(key)}"
    elif isinstance(node, DictConfig):
        near = _elsewhere(name, node._get_root())
    remedy = ""
    if parent == "explainers.options":
        remedy = ". Name the set first, explainers=[a,b]"
    elif parent == "task":
        remedy = f". For an option of your own: +{asked}=..."
    return unknown_key(asked, names, near) + remedy


def _elsewhere(name: str, root: Any) -> str | None:
    """Full key of the value in the whole configuration whose last part is nearest to ``name``."""
    keys: dict[str, str] = {}

    def collect(node: DictConfig, prefix: str) -> None:
        for key, value in ((str(key), value) for key, value in node.items_ex(resolve=False)):
            if key == "hydra" or key in HYDRA_KEYS:
                continue
            keys.setdefault(key, f"{prefix}{key}")
            if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
                collect(value, f"{prefix}{key}.")

    collect(root, "")
    near = closest(name, keys, cutoff=0.8)
    return keys[near] if near else None


def _groups() -> list[str]:
    return [path.name for path in conf_folder().iterdir() if path.is_dir()]


def _lightning(error: BaseException) -> str:
    text = _one_line(error)
    absent = re.search(r"No supported (gpu)|`(\w+)Accelerator` can not run", text)
    if absent:
        device = (absent[1] or absent[2]).lower()
        return (
            f"`trainer.accelerator={device}`: this machine has none that PyTorch can use. "
            "Choose trainer.accelerator=cpu, or trainer=cpu"
        )
    remedy = ". Lower trainer.devices, or choose trainer=cpu" if "machine only has" in text else ""
    return f"`trainer`: {text}{remedy}"


def _worker(error: BaseException) -> str | None:
    """PyTorch's words for a process of its data loader that has died."""
    dead = isinstance(error, RuntimeError) and re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    if not dead:
        return None
    return (
        f"a process that reads photos (pid {dead[1]}) was killed; memory may have run out. Run again to go on where "
        "this ended, or read photos in the main process: loader.num_workers=0"
    )


def _disk(error: BaseException) -> str | None:
    number, path = getattr(error, "errno", None), getattr(error, "filename", None)
    place = f"{path}: " if path else ""
    elsewhere = "write elsewhere with paths.output_root=DIR"
    if number in _DISK_FULL or "No space left on device" in str(error):
        return f"{place}no space left on the disk: free some, or {elsewhere}"
    if number in _NOT_ALLOWED and path:
        return f"{place}{os.strerror(number).lower()}: change its rights, or {elsewhere}"
    frame = _innermost_frame(error)
    if number in _NO_PLACE and path and frame is not None and frame.f_code.co_name == "mkdir":
        return f"{place}no folder can be made there: mend the link or mount the disk, or {elsewhere}"
    return None


def _innermost_frame(error: BaseException) -> FrameType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame if trace else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
