"""Files in the layouts of published checkpoints, filled by the rule of the golden numbers or hollow."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toy import GOLDEN
from twinsight.models import TwoViewModel, load_model

LAYOUTS = json.loads((GOLDEN / "checkpoint_layouts.json").read_text())
EMBEDDINGS = json.loads((GOLDEN / "checkpoint_embeddings.json").read_text())


def loader(name: str) -> str:
    """The name under which ``load_model`` takes the golden layout ``name``."""
    return name.removesuffix("_sk0")


def flat_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Full key and shape of every tensor in the layout."""
    return {f"{entry}.{key}": tuple(s) for entry, keys in LAYOUTS[name].items() for key, s in keys.items()}


def write_filled(name: str, path: Path) -> Path:
    """A checkpoint with the weights of the golden numbers."""
    seed = EMBEDDINGS[name]["seed"]
    content = {
        entry: {key: _filled(key.removeprefix("module."), shape, seed) for key, shape in keys.items()}
        for entry, keys in LAYOUTS[name].items()
    }
    torch.save(content, path)
    return path


def hollow(name: str) -> dict[str, dict[str, Tensor]]:
    """The layout with one number repeated in every tensor, so that a file of it is small."""
    return {
        entry: {key: torch.full((), 0.01).expand(shape) for key, shape in keys.items()}
        for entry, keys in LAYOUTS[name].items()
    }


def torchvision_backbone() -> dict[str, Tensor]:
    """A hollow ResNet-50 under torchvision's names, without its classifier."""
    prefix = "module.backbone."
    items = hollow("barlow_twins")["model"].items()
    return {key.removeprefix(prefix): value for key, value in items if key.startswith(prefix)}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def loaded(name: str, path: Path, **options: Any) -> TwoViewModel:
    """As quickly as can be, where it does not matter what the model computes."""
    return load_model(name, checkpoint=path, **{"input_size": 32, **options})


def _filled(key: str, shape: list[int], seed: int) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    a = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape)
    if key.endswith("running_var"):
        a = 0.5 + abs(a)
    elif key.endswith("running_mean"):
        a *= 0.1
    elif len(shape) >= 2:
        a *= math.sqrt(2 / math.prod(shape[1:]))
    elif key.endswith("weight"):
        a = 1 + 0.1 * a
    else:
        a *= 0.1
    return torch.from_numpy(a.astype(np.float32))
