"""Views along their insertion and deletion paths, and the similarities there."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twinsight.engine import PairBank, baseline_image, erased_by_rank, region_ranks, revealed_by_rank, some_of
from twinsight.engine.baselines import Baseline
from twinsight.metrics.functional.adaptive import adaptive_curves
from twinsight.models import TwoViewModel


class Paths:
    """One view along its insertion and its deletion path, encoded where asked."""

    def __init__(
        self,
        bank: PairBank,
        image: Tensor,
        heatmap: Tensor,
        view: int,
        seed: int,
        step: int,
        steps: int,
        granularity: int,
        baselines: tuple[Baseline, Baseline],
    ) -> None:
        normalization = bank.model.normalization
        blank, erased = (baseline_image(baseline, image, normalization, seed) for baseline in baselines)
        ranks = region_ranks(heatmap, granularity, seed).to(image.device)
        self.bank, self.view, self.steps = bank, view, steps
        self.whole = bank.embedding(image, view)
        self.paths = {
            "insertion": (blank, revealed_by_rank(image, blank, ranks, step, steps), image),
            "deletion": (image, erased_by_rank(image, erased, ranks, step, steps), erased),
        }

    def at(self, kind: str, places: Sequence[int]) -> Tensor:
        """Embeddings ``(n, d)`` at ascending places in ``0 ... steps``."""
        start, interior, end = self.paths[kind]
        between = [place - 1 for place in places if 0 < place < self.steps]
        if len(between) < len(interior):
            interior = some_of(interior, between)
        first = [self.bank.embedding(start, self.view).unsqueeze(0)] if places[0] == 0 else []
        last = [self.bank.embedding(end, self.view).unsqueeze(0)] if places[-1] == self.steps else []
        return torch.cat([*first, self.bank.perturbed(interior, self.view), *last])


def curves_along(
    model: TwoViewModel,
    kind: str,
    first: Paths,
    second: Paths | None,
    ends: tuple[Tensor, Tensor],
    steps: int,
    tolerance: float | None,
) -> tuple[dict[str, Tensor], int, float]:
    """The simultaneous and both conditional curves of one kind; how many points they took; the bound on their error."""
    z1, z2 = ends
    simultaneous, conditional = ("si", "ci") if kind == "insertion" else ("sd", "cd")

    def scores(places: Sequence[int]) -> dict[str, Tensor]:
        perturbed1 = first.at(kind, places)
        curves = {f"{conditional}1": model.similarity(perturbed1, z2.expand_as(perturbed1))}
        if second is not None:
            perturbed2 = second.at(kind, places)
            curves[f"{conditional}2"] = model.similarity(z1.expand_as(perturbed2), perturbed2)
            curves[simultaneous] = model.similarity(perturbed1, perturbed2)
        return curves

    if tolerance is None:
        curves, computed, bound = scores(range(steps + 1)), steps + 1, 0.0
    else:
        curves, computed, bound = adaptive_curves(steps, tolerance, scores)
    missing = torch.full_like(curves[f"{conditional}1"], torch.nan)
    return {simultaneous: missing, f"{conditional}2": missing, **curves}, computed, bound


def regions(size: tuple[int, int], granularity: int) -> int:
    """How many squares of side ``granularity`` tile a view of (height, width) pixels, those at its borders included.

    >>> regions((224, 224), 1), regions((5, 4), 2)
    (50176, 6)
    """
    return math.ceil(size[0] / granularity) * math.ceil(size[1] / granularity)
