"""Average drop and increase in confidence for pairs: SAD, SIC, CAD, CIC (paper, section 4; SPEC section 3)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinsight.engine import (
    PairBank,
    baseline_image,
    check_baseline,
    check_views,
    degenerate,
    min_max,
    seeds_from_pixels,
)
from twinsight.engine.baselines import Baseline
from twinsight.metrics.functional.checks import at_image_size, bank_for
from twinsight.models import TwoViewModel, evaluating
from twinsight.protocol import resolve

PROTOCOL_OPTIONS: dict[str, dict[str, Any]] = {
    "baseline": {"paper": "input_zero", "sound": "blur"},
    "floor": {"paper": float("-inf"), "sound": 1e-3},
}
COLUMNS = ("sad", "sic", "cad", "cic")
"""Fields that have a class in ``METRICS``."""


@dataclass(eq=False)
class AverageDrop:
    """Drops of a batch when views are masked by their own maps.

    Attributes:
        sad, cad1, cad2, cad: ``(B,)`` relative drop, both views masked; only view 1; only view 2; mean of the two
            directions. Lower is better. NaN where a map is missing.
        sic, cic1, cic2, cic: ``(B,)`` 1.0 where masking raised the similarity, else 0.0. Higher is better.
        sad_absolute, cad_absolute: ``(B,)`` the drop not divided by the similarity.
        nonpositive: ``(B,)`` True where the similarity is zero or negative, so that a relative drop means little.
        degenerate1, degenerate2: ``(B,)`` True where a map is constant or not finite; it then masks everything.
    """

    sad: Tensor
    sic: Tensor
    cad1: Tensor
    cad2: Tensor
    cad: Tensor
    cic1: Tensor
    cic2: Tensor
    cic: Tensor
    sad_absolute: Tensor
    cad_absolute: Tensor
    nonpositive: Tensor
    degenerate1: Tensor
    degenerate2: Tensor


def average_drop(
    model: TwoViewModel,
    view1: Tensor,
    view2: Tensor,
    map1: Tensor,
    map2: Tensor | None,
    protocol: str = "sound",
    bank: PairBank | None = None,
    baseline: Baseline | None = None,
    floor: float | None = None,
    seeds: Tensor | None = None,
) -> AverageDrop:
    """How much similarity is lost when only what a map calls important stays visible.

    With ``m`` the map scaled to [0, 1] (min-max; 0 where degenerate), a view becomes ``m * x + (1 - m) * baseline``,
    and the drop is ``max(0, s0 - s) / max(s0, floor)``.

    Args:
        model: the network whose similarity is measured.
        view1, view2: ``(B, C, H, W)`` in the model's input space.
        map1, map2: ``(B, h, w)``, brought to image size bilinearly where they are not; ``map2`` may be None.
        protocol: ``"sound"`` or ``"paper"``.
        bank: embeddings to share.
        baseline: what masked pixels become; None is ``"blur"`` (sound) or ``"input_zero"`` (paper).
        floor: smallest similarity to divide by; None is 0.001 (sound) or minus infinity, that is none (paper).
        seeds: ``(B,)`` of the pairs, for a noise baseline; None derives them from the pixels of view 1.

    Raises:
        UserError: shapes, baseline or protocol out of range.

    Cost: 2 forwards, 2 more for the views (shared).

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> average_drop(small_two_view(), view1, view2, view1.mean(1), view2.mean(1)).sad.shape
    torch.Size([1])
    """
    options = resolve(protocol, PROTOCOL_OPTIONS, {"baseline": baseline, "floor": floor})
    check_baseline(options["baseline"])
    check_views(model, view1, view2, seeds)
    view1, view2 = view1.contiguous(), view2.contiguous()  # means and blurs round by the layout
    map1 = at_image_size(map1, view1, "map1")
    map2 = None if map2 is None else at_image_size(map2, view2, "map2")
    seeds = seeds_from_pixels(view1) if seeds is None else seeds
    bank = bank_for(model, bank)
    scores: list[Tensor] = []
    flags: list[list[bool]] = []

    def masked(image: Tensor, heatmap: Tensor, view: int, seed: int) -> Tensor:
        mask = min_max(heatmap).to(image)
        fill = baseline_image(options["baseline"], image, model.normalization, seed)
        return bank.embedding(mask * image + (1 - mask) * fill, view)

    with torch.no_grad(), evaluating(model):
        for index, seed in enumerate(seeds.tolist()):
            z1, z2 = bank.embedding(view1[index], 1), bank.embedding(view2[index], 2)
            y1 = masked(view1[index], map1[index], 1, seed)
            y2 = None if map2 is None else masked(view2[index], map2[index], 2, seed)
            scores.append(_similarities(model, (z1, z2), (y1, y2), (y1, z2), (z1, y2)))
            flags.append([maps is not None and degenerate(maps[index]) for maps in (map1, map2)])
    base, both, first, second = torch.stack(scores).unbind(dim=1)
    divisor = base.clamp(min=options["floor"])

    def drop(score: Tensor) -> Tensor:
        return (base - score).clamp(min=0)

    def increase(score: Tensor) -> Tensor:
        return torch.where(score.isnan(), score, (score > base).to(score))

    degenerate1, degenerate2 = torch.tensor(flags).unbind(dim=1)
    return AverageDrop(
        sad=drop(both) / divisor,
        sic=increase(both),
        cad1=drop(first) / divisor,
        cad2=drop(second) / divisor,
        cad=_mean(drop(first), drop(second)) / divisor,
        cic1=increase(first),
        cic2=increase(second),
        cic=_mean(increase(first), increase(second)),
        sad_absolute=drop(both),
        cad_absolute=_mean(drop(first), drop(second)),
        nonpositive=base <= 0,
        degenerate1=degenerate1,
        degenerate2=degenerate2,
    )


average_drop.protocol_options = PROTOCOL_OPTIONS  # type: ignore[attr-defined]
average_drop.columns = COLUMNS  # type: ignore[attr-defined]
average_drop.forwards = lambda size, options, maps, explanation: maps  # type: ignore[attr-defined]


def _similarities(model: TwoViewModel, base: tuple[Tensor, Tensor], *others: tuple[Tensor, Tensor | None]) -> Tensor:
    """Scores of the pairs of embeddings, NaN where one of the two is missing."""
    missing = base[0].new_full((), torch.nan)
    return torch.stack(
        [
            missing if b is None else model.similarity(a.unsqueeze(0), b.unsqueeze(0)).squeeze(0)
            for a, b in (base, *others)
        ]
    )


def _mean(first: Tensor, second: Tensor) -> Tensor:
    """Mean of the two directions, or the one there is."""
    return torch.stack([first, second]).nanmean(dim=0)
