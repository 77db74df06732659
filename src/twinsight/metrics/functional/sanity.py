"""Whether maps follow what they should follow: the weights of the network, and the other view of the pair."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from twinsight.engine import NonFiniteEmbedding, PairBank, check_views, degenerate, seeds_from_pixels
from twinsight.errors import UserError
from twinsight.metrics.functional.checks import bank_for
from twinsight.metrics.functional.correlation import spearman
from twinsight.metrics.functional.randomization import randomization_stages
from twinsight.models import TwoViewModel


@runtime_checkable
class Explains(Protocol):
    """What is asked of an explainer: its network, how many maps it makes, a call that explains a batch, and the same
    explainer on another network."""

    model: TwoViewModel
    maps: int

    def __call__(self, view1: Tensor, view2: Tensor, **kwargs: Any) -> Any: ...

    def on(self, model: TwoViewModel) -> Self: ...


@dataclass(eq=False)
class Randomization:
    """How alike maps of the network and of its randomised copies are; lower is better.

    Attributes:
        randomization1, randomization2, randomization: ``(B,)`` Spearman correlation for the map of view 1, that of view
            2, and their mean or the one there is; the mean over all stages.
        full_randomization1, full_randomization2, full_randomization: ``(B,)`` the same when every weight is random.
        arrays: ``randomization1``, ``randomization2`` ``(B, S)``: the correlation after each stage.
        stages: names of the S stages, in the order in which they were randomised.
    """

    randomization1: Tensor
    randomization2: Tensor
    randomization: Tensor
    full_randomization1: Tensor
    full_randomization2: Tensor
    full_randomization: Tensor
    arrays: dict[str, Tensor]
    stages: tuple[str, ...]


def cascading_randomization(
    explainer: Explains,
    view1: Tensor,
    view2: Tensor,
    stages: int = 8,
    absolute: bool = False,
    seed: int = 0,
    seeds: Tensor | None = None,
    bank: PairBank | None = None,
    explanation: Any = None,
    partner_view2: Tensor | None = None,
) -> Randomization:
    """Do the maps change when the network forgets, layer by layer from the head down (Adebayo et al. 2018)?

    A copy of the network is randomised in stages that add up: the head first, the stem of the trunk last. After each
    stage the same explainer explains the same views on the copy. Maps that stay what they were show the image rather
    than what the network makes of it.

    A stage is a layer with the normalisation after it, or a block of layers, see
    :func:`.randomization.randomization_stages`. Layers are set back as PyTorch initialises them when they are built,
    running statistics of a normalisation included; parameters that belong to no such layer are drawn from a normal
    distribution of their own mean and spread.

    Args:
        explainer: an explainer that makes maps.
        view1, view2: ``(B, C, H, W)`` in the model's input space.
        stages: at most this many; small ones are merged into blocks. Ours: 8.
        absolute: compare magnitudes instead of signed values. Signed is the default, since our maps say by their sign
            what speaks against the similarity.
        seed: of the random weights, which are the same for all pairs.
        seeds: ``(B,)`` of the pairs, for the explainer; None derives them from the pixels of view 1.
        bank: embeddings to share, of the network as it is.
        explanation: what ``explainer`` says of these views and seeds, where the caller has it already.
        partner_view2: ``(B, C, H, W)`` second views of other pairs, for controls that need them.

    Maps are compared at their native size. NaN where the map is missing, constant or not finite, or where a randomised
    network answers NaN; 0 where it makes a constant map, which has nothing left of the original.

    Raises:
        TypeError: ``explainer`` is none.
        UserError: it makes images instead of maps, the network has no parameters, ``stages`` is below 1, or shapes do
            not fit.

    Cost: that of one explanation for each stage, and one more where ``explanation`` is not given. A copy of the network
    is held meanwhile; the network itself is left alone.

    >>> from twinsight.explainers import GradCAM
    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> result = cascading_randomization(GradCAM(small_two_view()), view1, view2, stages=3)
    >>> result.stages, result.arrays["randomization1"].shape
    (('head.3-4', 'head.0-1', 'trunk'), torch.Size([1, 3]))
    """
    check_options((view1.shape[-2], view1.shape[-1]), {"stages": stages})
    bank, seeds = _checked(explainer, view1, view2, seeds, bank)
    with torch.inference_mode(False), torch.no_grad():
        # Plain tensors, whatever mode the caller is in: explainers take gradients of the copy.
        copy = deepcopy(explainer.model)
        other = explainer.on(copy)
        order = randomization_stages(copy, stages)
        if not order:
            raise UserError("the model has no parameters: there is nothing to randomise")
        if explanation is None:
            explanation = explainer(view1, view2, seeds=seeds, bank=bank, partner_view2=partner_view2)
        rows = []
        for stage in order:
            stage.randomize(seed)
            with bank.aside(copy) as scratch:
                rows.append(_alike(explanation, other, view1, view2, seeds, scratch, partner_view2, absolute))
    curves = torch.stack(rows, dim=-1)  # (2, B, S)
    means, last = curves.nanmean(dim=-1), curves[..., -1]
    return Randomization(
        randomization1=means[0],
        randomization2=means[1],
        randomization=means.nanmean(dim=0),
        full_randomization1=last[0],
        full_randomization2=last[1],
        full_randomization=last.nanmean(dim=0),
        arrays={"randomization1": curves[0], "randomization2": curves[1]},
        stages=tuple(stage.name for stage in order),
    )


def check_options(size: tuple[int, int], options: Mapping[str, Any]) -> None:
    """Refuse options of :func:`cascading_randomization` that are out of range, before any view is encoded.

    Raises:
        UserError: ``stages`` is below 1.
    """
    if options.get("stages", 8) < 1:
        raise UserError(f"`stages` must be at least 1, got {options['stages']}")


cascading_randomization.columns = ("randomization", "full_randomization")  # type: ignore[attr-defined]
cascading_randomization.check_options = check_options  # type: ignore[attr-defined]
cascading_randomization.forwards = lambda size, options, maps, explanation: options.get("stages", 8) * explanation  # type: ignore[attr-defined]


@dataclass(eq=False)
class PartnerChange:
    """How much the maps depend on the other view; higher is better.

    Attributes:
        partner_sensitivity1, partner_sensitivity2, partner_sensitivity: ``(B,)`` 1 - Spearman correlation, in [0, 2],
            of the map of view 1 and that of view 2, and their mean or the one there is.
    """

    partner_sensitivity1: Tensor
    partner_sensitivity2: Tensor
    partner_sensitivity: Tensor


def partner_sensitivity(
    explainer: Explains,
    view1: Tensor,
    view2: Tensor,
    partner_view2: Tensor,
    absolute: bool = False,
    seeds: Tensor | None = None,
    bank: PairBank | None = None,
    explanation: Any = None,
) -> PartnerChange:
    """Do the maps change when a view meets a view of another photo instead of its own partner?

    View 1 is explained against the second view of another pair, and view 2 against that same view, as by the control
    :class:`twinsight.explainers.PartnerSwapped`. An explanation that does not change is not about the pair.

    Args:
        explainer: an explainer that makes maps.
        view1, view2: ``(B, C, H, W)`` in the model's input space.
        partner_view2: ``(B, C, H, W)`` second views of other pairs.
        absolute: compare magnitudes instead of signed values.
        seeds, bank, explanation: as for :func:`cascading_randomization`.

    Maps are compared at their native size. NaN where the map is missing, constant or not finite, and where the partner
    is the pair's own second view; 1 where the other map is constant.

    Raises:
        TypeError: ``explainer`` is none.
        UserError: it makes images instead of maps, or shapes do not fit.

    Cost: two explanations (one where there is one map), and one more where ``explanation`` is not given.

    >>> from twinsight.explainers import LaFAM
    >>> from twinsight.models import small_two_view
    >>> view1, view2, other = torch.rand(3, 1, 3, 64, 64)
    >>> partner_sensitivity(LaFAM(small_two_view()), view1, view2, other).partner_sensitivity  # sees one view only
    tensor([0.])
    """
    bank, seeds = _checked(explainer, view1, view2, seeds, bank)
    check_views(explainer.model, view1, partner_view2, None)

    def explained(first: Tensor, second: Tensor) -> Any:
        return explainer(first, second, seeds=seeds, bank=bank, partner_view2=partner_view2)

    if explanation is None:
        explanation = explained(view1, view2)
    found = [
        _correlations(explanation.map1, explained(view1, partner_view2).map1, absolute),
        torch.full((len(view1),), torch.nan)
        if explanation.map2 is None
        else _correlations(explanation.map2, explained(partner_view2, view2).map2, absolute),
    ]
    own = torch.tensor([torch.equal(*views) for views in zip(view2, partner_view2, strict=True)])
    changes = (1 - torch.stack(found)).masked_fill(own, torch.nan)
    return PartnerChange(changes[0], changes[1], changes.nanmean(dim=0))


partner_sensitivity.columns = ("partner_sensitivity",)  # type: ignore[attr-defined]
partner_sensitivity.forwards = lambda size, options, maps, explanation: 2 * explanation  # type: ignore[attr-defined]


def _checked(
    explainer: Explains, view1: Tensor, view2: Tensor, seeds: Tensor | None, bank: PairBank | None
) -> tuple[PairBank, Tensor]:
    if not isinstance(explainer, Explains):
        raise TypeError(f"`explainer` must be an Explainer, got {type(explainer).__name__}")
    check_views(explainer.model, view1, view2, seeds)
    if explainer.maps == 0:
        raise UserError("`explainer` makes images, not maps: there is nothing to compare")
    return bank_for(explainer.model, bank), seeds_from_pixels(view1) if seeds is None else seeds


def _alike(
    explanation: Any,
    other: Explains,
    view1: Tensor,
    view2: Tensor,
    seeds: Tensor,
    bank: PairBank,
    partner_view2: Tensor | None,
    absolute: bool,
) -> Tensor:
    """``(2, B)`` correlation of the maps of ``explanation`` with those of another explainer, NaN for a missing map."""
    found = torch.full((2, len(view1)), torch.nan)
    for place in range(len(view1)):  # pair by pair: one that a random network cannot embed must not take others along
        one = slice(place, place + 1)
        partner = None if partner_view2 is None else partner_view2[one]
        try:
            changed = other(view1[one], view2[one], seeds=seeds[one], bank=bank, partner_view2=partner)
        except NonFiniteEmbedding:
            continue
        for view, (maps, now) in enumerate(((explanation.map1, changed.map1), (explanation.map2, changed.map2))):
            if maps is not None:
                found[view, place] = _correlations(maps[one], now, absolute)[0]
    return found


def _correlations(maps: Tensor, others: Tensor, absolute: bool) -> Tensor:
    """``(B,)`` Spearman correlation; 0 where only the other one is constant, NaN where the first is."""
    values = []
    for one, other in zip(maps, others, strict=True):
        one, other = (one.abs(), other.abs()) if absolute else (one, other)
        forgotten = bool(other.isfinite().all()) and degenerate(other) and not degenerate(one)
        values.append(0.0 if forgotten else spearman(one, other))
    return torch.tensor(values)
