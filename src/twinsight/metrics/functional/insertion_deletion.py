"""Insertion and deletion for pairs: SI, SD, CI, CD (paper, section 4; SPEC section 3)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinsight.engine import (
    PairBank,
    Perturbation,
    baseline_image,
    check_baseline,
    check_views,
    degenerate,
    erased_by_rank,
    pixel_ranks,
    revealed_by_rank,
    seeds_from_pixels,
)
from twinsight.engine.baselines import Baseline
from twinsight.errors import UserError
from twinsight.metrics.functional.checks import at_image_size, bank_for
from twinsight.models import TwoViewModel, evaluating
from twinsight.protocol import resolve

PROTOCOL_OPTIONS: dict[str, dict[str, Any]] = {"deletion_baseline": {"paper": "input_zero", "sound": "blur"}}


@dataclass(eq=False)
class InsertionDeletion:
    """Areas under the curves of a batch, in units of the similarity.

    Attributes:
        si, sd: ``(B,)`` simultaneous insertion (higher is better) and deletion (lower is better): each view perturbed
            by its own map. NaN where there is only one map.
        ci1, cd1: ``(B,)`` conditional: view 1 perturbed, view 2 whole.
        ci2, cd2: ``(B,)`` view 2 perturbed, view 1 whole. NaN where there is only one map.
        ci, cd: ``(B,)`` mean of both directions; the one there is where there is only one map.
        curves: for si, sd, ci1, ci2, cd1, cd2 the similarities ``(B, T + 1)`` along the path.
        degenerate1, degenerate2: ``(B,)`` True where a map is constant or not finite, so that its ranking is chance.
    """

    si: Tensor
    sd: Tensor
    ci1: Tensor
    ci2: Tensor
    ci: Tensor
    cd1: Tensor
    cd2: Tensor
    cd: Tensor
    curves: dict[str, Tensor]
    degenerate1: Tensor
    degenerate2: Tensor


def insertion_deletion(
    model: TwoViewModel,
    view1: Tensor,
    view2: Tensor,
    map1: Tensor,
    map2: Tensor | None,
    points: int = 224,
    step: int | None = None,
    protocol: str = "sound",
    bank: PairBank | None = None,
    insertion_baseline: Baseline = "blur",
    deletion_baseline: Baseline | None = None,
    seeds: Tensor | None = None,
) -> InsertionDeletion:
    """Similarity along the path from the baseline to the views (insertion) and back (deletion), most important first.

    Pixels are ranked by the map, largest first; point ``t`` of ``T = ceil(HW / step)`` has the ``t * step`` first
    pixels revealed or erased. The area is the trapezoid sum over T intervals.

    Args:
        model: the network whose similarity is measured.
        view1, view2: ``(B, C, H, W)`` in the model's input space.
        map1, map2: ``(B, h, w)``, brought to image size bilinearly where they are not; ``map2`` may be None.
        points: intervals per curve when ``step`` is None: ``step = ceil(HW / points)`` (paper: 224).
        step: pixels per interval.
        protocol: ``"sound"`` or ``"paper"``.
        bank: embeddings to share.
        insertion_baseline: what insertion starts from; blur in both protocols.
        deletion_baseline: what deletion ends in; None is ``"blur"`` (sound) or ``"input_zero"`` (paper, under which
            both views end as the same blank and the similarity returns to 1).
        seeds: ``(B,)`` of the pairs, for ties; None derives them from the pixels of view 1.

    Raises:
        UserError: shapes, points, step, baseline or protocol out of range.

    Cost: 4 (T - 1) forwards and the distinct ends of the paths, 4 (sound) or 5 (paper): 892 + 5 a pair at 224 points.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> result = insertion_deletion(small_two_view(), view1, view2, view1.mean(1), view2.mean(1), points=8)
    >>> result.ci.shape, result.curves["si"].shape
    (torch.Size([1]), torch.Size([1, 9]))
    """
    options = resolve(protocol, PROTOCOL_OPTIONS, {"deletion_baseline": deletion_baseline})
    for baseline in (insertion_baseline, options["deletion_baseline"]):
        check_baseline(baseline)
    check_views(view1, view2, seeds)
    view1, view2 = view1.contiguous(), view2.contiguous()  # means and blurs round by the layout
    pixels = view1.shape[-2] * view1.shape[-1]
    step = _step(pixels, points, step)
    map1 = at_image_size(map1, view1, "map1")
    map2 = None if map2 is None else at_image_size(map2, view2, "map2")
    seeds = seeds_from_pixels(view1) if seeds is None else seeds
    bank = bank_for(model, bank)
    rows = []
    with torch.no_grad(), evaluating(model):
        for index, seed in enumerate(seeds.tolist()):
            path1 = _Paths(bank, view1[index], map1[index], 1, seed, step, insertion_baseline, options)
            z1, z2 = path1.whole, bank.embedding(view2[index], 2)
            curves = {
                "ci1": model.similarity(path1.insertion, z2.expand_as(path1.insertion)),
                "cd1": model.similarity(path1.deletion, z2.expand_as(path1.deletion)),
            }
            if map2 is not None:
                path2 = _Paths(bank, view2[index], map2[index], 2, seed, step, insertion_baseline, options)
                curves |= {
                    "ci2": model.similarity(z1.expand_as(path2.insertion), path2.insertion),
                    "cd2": model.similarity(z1.expand_as(path2.deletion), path2.deletion),
                    "si": model.similarity(path1.insertion, path2.insertion),
                    "sd": model.similarity(path1.deletion, path2.deletion),
                }
            else:
                curves |= dict.fromkeys(("ci2", "cd2", "si", "sd"), torch.full_like(curves["ci1"], torch.nan))
            rows.append(curves)
    curves = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    # Pair by pair: a device may add up in another order when there are more.
    areas = {name: torch.stack([area(row[name]) for row in rows]) for name in rows[0]}
    flags = [
        torch.tensor([maps is not None and degenerate(maps[index]) for index in range(len(view1))])
        for maps in (map1, map2)
    ]
    return InsertionDeletion(
        **areas,
        ci=areas["ci1"] if map2 is None else (areas["ci1"] + areas["ci2"]) / 2,
        cd=areas["cd1"] if map2 is None else (areas["cd1"] + areas["cd2"]) / 2,
        curves=curves,
        degenerate1=flags[0],
        degenerate2=flags[1],
    )


def check_options(size: tuple[int, int], options: Mapping[str, Any]) -> None:
    """Refuse, before any view is encoded, options of :func:`insertion_deletion` that views of ``size`` cannot have.

    Raises:
        UserError: points, step or a baseline out of range.
    """
    _step(size[0] * size[1], options.get("points", 224), options.get("step"))
    for name in ("insertion_baseline", "deletion_baseline"):
        if options.get(name) is not None:
            check_baseline(options[name])


insertion_deletion.protocol_options = PROTOCOL_OPTIONS  # type: ignore[attr-defined]
insertion_deletion.check_options = check_options  # type: ignore[attr-defined]


def area(curve: Tensor) -> Tensor:
    """Trapezoid area under curves ``(..., T + 1)`` over the unit interval.

    >>> area(torch.tensor([0.0, 1.0, 1.0]))
    tensor(0.7500)
    """
    return torch.trapezoid(curve.cpu().double(), dim=-1).div(curve.shape[-1] - 1).to(curve)


class _Paths:
    """Embeddings ``(T + 1, d)`` of one view along its insertion and its deletion path."""

    def __init__(
        self,
        bank: PairBank,
        image: Tensor,
        heatmap: Tensor,
        view: int,
        seed: int,
        step: int,
        insertion_baseline: Baseline,
        options: dict[str, Any],
    ) -> None:
        normalization = bank.model.normalization
        blank = baseline_image(insertion_baseline, image, normalization, seed)
        erased = baseline_image(options["deletion_baseline"], image, normalization, seed)
        ranks = pixel_ranks(heatmap, seed).to(image.device)
        steps = math.ceil(ranks.numel() / step)
        self.whole = bank.embedding(image, view)

        def path(start: Tensor, interior: Perturbation, end: Tensor) -> Tensor:
            return torch.cat([start.unsqueeze(0), bank.perturbed(interior, view), end.unsqueeze(0)])

        revealing = revealed_by_rank(image, blank, ranks, step, steps)
        erasing = erased_by_rank(image, erased, ranks, step, steps)
        self.insertion = path(bank.embedding(blank, view), revealing, self.whole)
        self.deletion = path(self.whole, erasing, bank.embedding(erased, view))


def _step(pixels: int, points: int, step: int | None) -> int:
    if points < 1:
        raise UserError(f"`points` must be at least 1, got {points}")
    if step is None:
        return math.ceil(pixels / points)
    if not 1 <= step <= pixels:
        raise UserError(f"`step` must be between 1 and the {pixels} pixels of a view, got {step}")
    return step
