"""What reduced precision gains and costs on a GPU: forwards a second, and how far every metric moves."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from twinsight.data import DemoPhotos, PairDataModule, SimCLRViews
from twinsight.engine import PRECISIONS, Execution, PairBank, forwards_per_second
from twinsight.explainers import GradCAM
from twinsight.metrics.functional import average_drop, insertion_deletion
from twinsight.models import TwoViewModel

CHUNK = 128


def precisions(model: TwoViewModel, device: torch.device, pairs: int = 32) -> list[dict[str, Any]]:
    """For each precision, image forwards a second and the largest change of each metric over ``pairs`` pairs."""
    executions = [Execution(name, compiled) for compiled in (False, True) for name in PRECISIONS]
    views = _views(model, device, pairs)
    maps = GradCAM(model)(*views).resized((model.input_size, model.input_size))
    exact = _metrics(model, views, maps, executions[0])
    found = []
    for execution in executions:
        moved = _metrics(model, views, maps, execution)
        found.append(
            {
                **dataclasses.asdict(execution),
                "forwards_per_second": forwards_per_second(model, CHUNK, execution),
                "moved": {name: float((moved[name] - values).abs().max()) for name, values in exact.items()},
            }
        )
    return found


def _views(model: TwoViewModel, device: torch.device, count: int) -> tuple[Tensor, Tensor]:
    batches = []
    for seed in range(-(-count // len(DemoPhotos()))):
        recipe = SimCLRViews(model.input_size)
        module = PairDataModule(DemoPhotos(), recipe, model.normalization, batch_size=count, seed=seed)
        batches += list(module.predict_dataloader())
    first, second = (torch.cat([getattr(batch, name) for batch in batches])[:count] for name in ("view1", "view2"))
    return first.to(device), second.to(device)


def _metrics(
    model: TwoViewModel, views: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor | None], execution: Execution
) -> dict[str, Tensor]:
    bank = PairBank(model, CHUNK, execution=execution)
    results = (insertion_deletion(model, *views, *maps, bank=bank), average_drop(model, *views, *maps, bank=bank))
    names = ("si", "sd", "ci", "cd", "sad", "sic", "cad", "cic")
    return {name: getattr(result, name) for result in results for name in names if hasattr(result, name)}
