"""A network that forgets stage by stage: which layers go together, and how they are set back."""

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from twinsight.engine import seed_of


@dataclass
class Stage:
    """Layers that are randomised together.

    Attributes:
        name: where they lie in the network.
        layers: modules with parameters, or running statistics, of their own.
        parts: the stages it can be taken apart into, in the order of the network.
    """

    name: str
    layers: list[nn.Module]
    parts: list["Stage"] = field(default_factory=list)

    def randomize(self, seed: int) -> None:
        """Set the layers back to a state that depends on ``seed`` and the stage's name alone."""
        with torch.random.fork_rng(devices=[]):  # what PyTorch initialises with draws from the global state
            torch.manual_seed(seed_of(seed, "randomize", self.name))
            for layer in self.layers:
                device = next(chain(layer.parameters(recurse=False), layer.buffers(recurse=False))).device
                layer.to("cpu")  # the same numbers on every device
                _reset(layer)
                layer.to(device)

    def join(self, name: str, layers: list[nn.Module]) -> None:
        """Put ``layers`` into the last part."""
        self.layers = [*self.layers, *layers]
        if self.parts:
            self.parts[-1].join(name, layers)
        self.name = f"{self.name.split('-')[0]}-{name.rsplit('.', 1)[-1]}" if not self.parts else self.name


def randomization_stages(model: nn.Module, limit: int = 8) -> list[Stage]:
    """The layers of a network from the last to the first, in at most ``limit`` stages.

    The order is that in which modules are registered: trunk, head, predictor. Layers without a matrix (normalisations)
    go with the one before. The network is taken apart level by level, what lies nearest its end first, for as long as
    the limit allows: head and trunk, layers of the head, stages of the trunk, blocks.

    >>> from twinsight.models import small_two_view
    >>> [stage.name for stage in randomization_stages(small_two_view(), limit=6)]
    ['head.3-4', 'head.0-1', 'trunk.stages.2', 'trunk.stages.1', 'trunk.stages.0', 'trunk.stem-stem_norm']
    """
    if not any(map(_has_state, model.modules())):
        return []
    level = [_tree(model, "")]
    while True:
        finer: list[Stage] = []
        for place, stage in enumerate(reversed(level)):
            left = len(level) - place - 1  # stages that are still whole, at least one each
            fits = len(stage.parts) > 1 and len(finer) + len(stage.parts) + left <= limit
            finer += reversed(stage.parts) if fits else [stage]
        if len(finer) == len(level):
            return finer
        level = finer[::-1]


def _tree(module: nn.Module, name: str) -> Stage:
    """The stages inside a module that has something to randomise."""
    parts = [Stage(name, [module])] if _has_state(module) else []
    for child_name, child in module.named_children():
        if not any(map(_has_state, child.modules())):
            continue
        part = _tree(child, f"{name}.{child_name}".lstrip("."))
        flat = all(parameter.ndim < 2 for parameter in child.parameters())
        if flat and parts:
            parts[-1].join(part.name, part.layers)
        else:
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return Stage(name or "model", [layer for part in parts for layer in part.layers], parts)


def _has_state(layer: nn.Module) -> bool:
    """Whether a module itself, not what it holds, has parameters or statistics that can be set back."""
    statistics = hasattr(layer, "reset_parameters") and any(True for _ in layer.buffers(recurse=False))
    return statistics or any(True for _ in layer.parameters(recurse=False))


def _reset(layer: nn.Module) -> None:
    reset: Any = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in layer.parameters(recurse=False):
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
        parameter.copy_(torch.randn(parameter.shape).to(parameter) * spread + parameter.mean())
