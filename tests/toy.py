"""Small networks and pairs for tests: the network of the golden numbers, and tiny random ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinsight.models import TwoViewModel

GOLDEN = Path(__file__).parent / "golden"


class Golden(NamedTuple):
    """A golden pair: network, views ``(1, 3, 224, 224)``, arrays of the npz, metrics of the json."""

    model: TwoViewModel
    view1: Tensor
    view2: Tensor
    arrays: dict[str, np.ndarray]
    metrics: dict[str, float]

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def heatmap(self, view: int) -> Tensor:
        """The heatmap that the golden metrics were computed with, ``(1, 224, 224)``, no ties."""
        return torch.from_numpy(self.arrays[f"heatmap{view}"].astype(np.float32) / 50176)[None]


def load_golden(name: str) -> Golden:
    """Golden pair ``"a"`` or ``"b"``."""
    with np.load(GOLDEN / f"golden_{name}.npz") as file:
        arrays = dict(file)
    metrics = json.loads((GOLDEN / f"golden_{name}.json").read_text())["metrics"]
    view1, view2 = (
        torch.from_numpy(arrays[key].astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()
        for key in ("view1", "view2")
    )
    return Golden(golden_model(arrays), view1, view2, arrays, metrics)


def golden_model(arrays: dict[str, np.ndarray]) -> TwoViewModel:
    """The toy network of the golden numbers, filled with the ``weight:*`` entries."""
    trunk = nn.Sequential(
        *(nn.Conv2d(3, 8, 7, stride=4, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
    )
    head = nn.Sequential(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16, bias=False))
    _fill(trunk, arrays, "weight:encoder.net.")
    _fill(head, arrays, "weight:contrastive_head.")
    return _frozen(TwoViewModel(trunk, head, pool="avg", normalization=None, input_size=224))


class SquareMean(nn.Module):
    """Pooling whose gradient varies over space, unlike that of the mean."""

    def forward(self, features: Tensor) -> Tensor:
        return features.square().mean(dim=(-2, -1))


class AsymmetricModel(TwoViewModel):
    """View 1 goes through a predictor on top of the head, view 2 does not."""

    symmetric = False

    def __init__(self, *args, predictor: nn.Module, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.predictor = predictor

    def embed(self, features: Tensor, view: int = 1) -> Tensor:
        z = super().embed(features, view)
        return self.predictor(z) if view == 1 else z


def tiny_model(
    seed: int, pool: str | nn.Module = "avg", similarity: str = "cosine", input_size: int = 32, asymmetric: bool = False
) -> TwoViewModel:
    """Random network for small normalised images, evaluation mode, with random batch-norm statistics.

    A ``(B, 3, 32, 32)`` image gives ``(B, 12, 4, 4)`` feature maps and a ``(B, 8)`` embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    trunk = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
    )
    head = nn.Sequential(nn.Linear(12, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8, bias=False))
    predictor = nn.Linear(8, 8, bias=False)
    for module in (trunk, head, predictor):
        _randomise_weights(module, generator)
    pooling = pool if isinstance(pool, nn.Module) else (lambda features: features.mean(dim=(-2, -1)))
    _randomise_statistics(nn.ModuleList([trunk, head]), lambda x: head(pooling(trunk(x))), generator)
    arguments = {
        "pool": pool,
        "normalization": ((0.5,) * 3, (0.25,) * 3),
        "similarity": similarity,
        "input_size": input_size,
    }
    if asymmetric:
        return _frozen(AsymmetricModel(trunk, head, predictor=predictor, **arguments))
    return _frozen(TwoViewModel(trunk, head, **arguments))


def tiny_pair(seed: int, batch: int, size: int | tuple[int, int] = 32) -> tuple[Tensor, Tensor]:
    """Two views ``(batch, 3, H, W)`` in the input space of :func:`tiny_model`: smooth, random, and alike in pairs."""
    generator = torch.Generator().manual_seed(seed)
    size = (size, size) if isinstance(size, int) else size
    shared, own1, own2 = (_smooth(generator, (batch, 3), size) for _ in range(3))
    view1, view2 = ((1.5 * torch.sigmoid(2 * shared + own) - 0.25).clamp(0, 1) for own in (own1, own2))
    return (view1 - 0.5) / 0.25, (view2 - 0.5) / 0.25


def tiny_maps(seed: int, batch: int, size: int | tuple[int, int] = 32) -> tuple[Tensor, Tensor]:
    """Two smooth signed maps ``(batch, H, W)`` in which no two pixels of a map tie."""
    generator = torch.Generator().manual_seed(seed)
    size = (size, size) if isinstance(size, int) else size
    maps = []
    for _ in range(2):
        smooth = _smooth(generator, (batch, 1), size)[:, 0]
        ranks = smooth.flatten(1).argsort(dim=1).argsort(dim=1).reshape(smooth.shape)
        maps.append(ranks / ranks.amax() - 0.4)
    return maps[0], maps[1]


def _smooth(generator: torch.Generator, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    coarse = torch.randn(*shape, 6, 6, generator=generator)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=False)


def _fill(module: nn.Module, arrays: dict[str, np.ndarray], prefix: str) -> None:
    weights = {key.removeprefix(prefix): torch.from_numpy(a) for key, a in arrays.items() if key.startswith(prefix)}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise KeyError(f"weights under {prefix!r} do not fit: missing {missing}, unexpected {unexpected}")


def _randomise_weights(module: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in module.named_parameters():
        a = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data.copy_(a * (2 / parameter[0].numel()) ** 0.5)
        else:
            parameter.data.copy_(0.2 * a if name.endswith("bias") else 1 + 0.2 * a)


def _randomise_statistics(module: nn.Module, forward: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
    """Batch-norm statistics near those of real inputs: an untuned random network calls everything alike."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        forward(torch.cat(tiny_pair(seed=0, batch=32)))
    for norm in norms:
        a, b = torch.randn(2, norm.num_features, generator=generator)
        norm.running_mean += 0.2 * a * norm.running_var.sqrt()
        norm.running_var *= torch.exp(0.3 * b)


def _frozen(model: TwoViewModel) -> TwoViewModel:
    return model.eval().requires_grad_(False)
