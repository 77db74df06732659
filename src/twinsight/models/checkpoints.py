"""Weight files of other people: read without running what they hold, and held against the layout that is expected."""

import argparse
import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from twinsight.errors import UserError
from twinsight.files import refuse_bomb

ALLOWED_OBJECTS = (argparse.Namespace,)
"""What a file may hold beside tensors and plain containers: training scripts store their arguments."""

Shapes = Mapping[str, tuple[int, ...]]

_ZIP = b"PK\x03\x04"
_UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, RuntimeError, OSError, struct.error),
    *(LookupError, ValueError, TypeError, AttributeError),  # what half an instruction of a pickle can lead to
)


def read_tensors(path: Path, argument: str = "checkpoint") -> dict[str, Tensor]:
    """Every tensor of a ``torch.save`` or safetensors file, by its full key: ``{"a": {"b.c": t}}`` gives ``"a.b.c"``.

    Nothing but tensors, plain containers and ``ALLOWED_OBJECTS`` is unpickled, so no code of the file runs. Files in
    the zip format are mapped into memory: the tensors are as good as the file is unchanged, so copy what is kept.
    ``argument`` is what complaints call the file.

    Raises:
        UserError: no such file; not one of these formats; truncated; or it holds another kind of object.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "weights.pth"
    >>> torch.save({"model": {"fc.weight": torch.zeros(2, 3)}, "epoch": 7}, path)
    >>> {key: tuple(tensor.shape) for key, tensor in read_tensors(path).items()}
    {'model.fc.weight': (2, 3)}
    """
    if not path.is_file():
        raise UserError(f"`{argument}={path}`: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"`{argument}={path}` cannot be read: {error.strerror}") from None
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path, argument)
    zipped = start.startswith(_ZIP)
    try:
        if zipped:
            refuse_bomb(path, path.stat().st_size)  # torch.save packs nothing
    except ValueError as error:
        raise UserError(f"`{argument}={path}` is no file of torch.save: {error}") from None
    try:
        with torch.serialization.safe_globals(list(ALLOWED_OBJECTS)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what cannot be read is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _UNREADABLE as error:
        raise UserError(_why_unreadable(path, argument, zipped, error)) from None
    return dict(_tensors(content, ""))


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor.

    >>> shapes(nn.Linear(2, 1).state_dict())
    {'weight': (1, 2), 'bias': (1,)}
    """
    return {key: tuple(value.shape) for key, value in tensors.items()}


def sha256(path: Path) -> str:
    """Digest of a file of any size, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Layout:
    """Where a file keeps the weights of a model's parts.

    Attributes:
        prefixes: for each part, what stands before its keys in the file.
        ignored: beginnings of keys that belong to the layout and to no part: a classifier, the norm of a loss.
        entries: the top-level entries that hold the model. Others, an optimiser's state for one, are not looked at;
            an empty tuple means that the file has no entries and every tensor counts.
    """

    prefixes: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()

    def compare(self, parts: Mapping[str, Shapes], found: Shapes) -> "Difference":
        """What keeps a file with the tensors ``found`` from filling ``parts``, given by the shapes of their weights."""
        expected = {prefix + key: shape for part, prefix in self.prefixes.items() for key, shape in parts[part].items()}
        model_keys = [key for key in found if key.partition(".")[0] in self.entries] or list(found)
        counted = {key: found[key] for key in model_keys if key in expected or not key.startswith(self.ignored)}
        return Difference(
            missing=[key for key in expected if key not in counted and not _excused(key, counted)],
            unexpected=[key for key in counted if key not in expected],
            misshapen=[key for key, shape in expected.items() if key in counted and counted[key] != shape],
            expected=expected,
            found=counted,
        )

    def fill(self, parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
        """Give ``parts``, which may be on the meta device, memory of their own and the weights of a file that fits."""
        for part, prefix in self.prefixes.items():
            module = parts[part].to_empty(device="cpu")
            state = module.state_dict()
            for key, value in state.items():
                # What may be absent is a counter, which starts at 0.
                state[key] = tensors[prefix + key] if prefix + key in tensors else torch.zeros_like(value)
            module.load_state_dict(state)


def backbone_layouts(ignored: tuple[str, ...] = ()) -> Iterator[Layout]:
    """Layouts of files that hold a trunk and nothing to explain beside it: at the top, or in a usual entry.

    ``ignored`` are beginnings of keys that belong to the layout and not to the trunk, as in :class:`Layout`.

    >>> [layout.prefixes["trunk"] for layout in backbone_layouts()]
    ['', 'state_dict.', 'model.']
    """
    for place in ("", "state_dict.", "model."):
        entries = (place.removesuffix("."),) if place else ()
        yield Layout({"trunk": place}, tuple(place + key for key in ignored), entries)


def fitting_layout(
    layouts: Iterable[Layout], parts: Mapping[str, Shapes], found: Shapes
) -> "tuple[Layout | None, Difference]":
    """The first layout under which a file with the tensors ``found`` fills ``parts``, with an empty difference.

    Where none fits: None, and how the file differs from the layout it comes nearest to.

    >>> layout, difference = fitting_layout(backbone_layouts(), {"trunk": {"weight": (1, 2)}}, {"model.weight": (1, 2)})
    >>> layout.prefixes, len(difference)
    ({'trunk': 'model.'}, 0)
    """
    compared = []
    for layout in layouts:
        difference = layout.compare(parts, found)
        if not difference:
            return layout, difference
        compared.append(difference)
    # The first layout is the one that is hoped for, so it is shown where nothing is in its place.
    return None, min((each for each in compared if not each.unrelated), key=len, default=compared[0])


@dataclass(frozen=True)
class Difference:
    """How a file differs from what is expected; falsy when it does not."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    expected: Shapes
    found: Shapes

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    @property
    def unrelated(self) -> bool:
        """Not one tensor is where it is expected."""
        return not any(key in self.found for key in self.expected)

    def __str__(self) -> str:
        """What was expected, what was found, and the first key of each kind of difference.

        >>> layout = Layout({"trunk": "model."}, entries=("model",))
        >>> linear = shapes(nn.Linear(2, 1).state_dict())
        >>> print(layout.compare({"trunk": linear}, {"model.weight": (1, 3), "model.offset": (1,)}))
        expected 2 tensors in model, found 2 tensors in model; 1 missing, first `model.bias`; 1 unexpected, \
first `model.offset`; 1 of another shape, first `model.weight`: expected (1, 2), found (1, 3)
        """
        said = [f"expected {_overview(self.expected)}, found {_overview(self.found)}"]
        if self.missing:
            said.append(f"{len(self.missing)} missing, first `{self.missing[0]}`")
        if self.unexpected:
            said.append(f"{len(self.unexpected)} unexpected, first `{self.unexpected[0]}`")
        if self.misshapen:
            key = self.misshapen[0]
            said.append(
                f"{len(self.misshapen)} of another shape, first `{key}`: "
                f"expected {self.expected[key]}, found {self.found[key]}"
            )
        return "; ".join(said)


def _excused(key: str, found: Shapes) -> bool:
    """A batch norm without its counter: files from before PyTorch 0.4.1, torchvision's among them, have none."""
    norm, _, name = key.rpartition(".")
    return name == "num_batches_tracked" and f"{norm}.running_mean" in found


def _overview(shapes: Shapes) -> str:
    entries = list(dict.fromkeys(key.partition(".")[0] for key in shapes))
    if not entries:
        return "no tensors"
    named = ", ".join(entries[:4]) + (", ..." if len(entries) > 4 else "")
    return f"{len(shapes)} tensors in {named}"


def _tensors(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{prefix}{key}.")


def _read_safetensors(path: Path, argument: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"`{argument}={path}` is not safetensors, or truncated ({error}): fetch it again") from None


def _why_unreadable(path: Path, argument: str, zipped: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())
    refused = re.search(r"GLOBAL ([\w.]+)", reason)
    if refused:
        allowed = ", ".join(f"{each.__module__}.{each.__qualname__}" for each in ALLOWED_OBJECTS)
        return (
            f"`{argument}={path}` holds a pickled object, `{refused[1]}`, which could run code and was not unpickled. "
            f"Only tensors, plain containers and {allowed} are read: if you trust the file, save its tensors alone, "
            "torch.save(state_dict, FILE)"
        )
    cut = not zipfile.is_zipfile(path) if zipped else isinstance(error, EOFError) or "unexpected EOF" in reason
    if cut:
        size = path.stat().st_size
        return f"`{argument}={path}` is truncated or damaged ({size:,} bytes): fetch it again and compare its size"
    return f"`{argument}={path}` is not a file of torch.save, or damaged: give the checkpoint, no web page or archive"
