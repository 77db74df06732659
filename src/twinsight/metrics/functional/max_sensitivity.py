"""Max-sensitivity for pairs: MS (paper, section 4; SPEC section 3)."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from twinsight.engine import PairBank, check_views, generator, seeds_from_pixels
from twinsight.errors import UserError, unknown
from twinsight.metrics.functional.checks import bank_for
from twinsight.models import TwoViewModel
from twinsight.protocol import resolve

PROTOCOL_OPTIONS: dict[str, dict[str, Any]] = {"units": {"paper": "input", "sound": "pixels"}}
FIELD = "ms"
UNITS = ("input", "pixels")


@runtime_checkable
class Explains(Protocol):
    """What is asked of an explainer: its network, how many maps it makes, and a call that explains a batch."""

    model: TwoViewModel
    maps: int

    def __call__(self, view1: Tensor, view2: Tensor, **kwargs: Any) -> Any: ...


def max_sensitivity(
    explainer: Explains,
    view1: Tensor,
    view2: Tensor,
    radius: float = 0.2,
    draws: int = 10,
    seeds: Tensor | None = None,
    protocol: str = "sound",
    bank: PairBank | None = None,
    units: Literal["input", "pixels"] | None = None,
    explanation: Any = None,
    partner_view2: Tensor | None = None,
) -> Tensor:
    """How much the maps change, at most, when a little noise is added to both views.

    For each map ``max_n |E(x) - E(x + d_n)| / |E(x)|`` over the draws, then the mean of the two maps, or the one there
    is. Norms are Frobenius norms of raw maps at their native size. ``d_n`` is uniform in ``[-radius, radius]``, the
    same on both views, drawn from the seed of the pair; the explainer gets the same seeds every time, so that a
    method's own randomness is not taken for sensitivity. Nothing is clipped (as in the paper): noisy pixels may leave
    [0, 1].

    Args:
        explainer: an explainer that makes maps.
        view1, view2: ``(B, C, H, W)`` in the model's input space.
        radius: largest noise, in ``units`` (paper: 0.2).
        draws: how many times noise is drawn (paper: 10).
        seeds: ``(B,)`` of the pairs; None derives them from the pixels of view 1, before noise.
        protocol: ``"sound"`` or ``"paper"``.
        bank: embeddings of the views to share. Those of noisy views are kept in none.
        units: what ``radius`` is in. ``"input"``: the model's input space, in which 0.2 is 0.2 of the range of pixels
            for a model that eats pixels and about 0.05 for one that wants ImageNet's normalisation; ``"pixels"``:
            pixels in [0, 1], the noise being divided by the std of the normalisation, so that models can be compared.
            None is pixels (sound) or input (paper).
        explanation: what ``explainer`` says of these views and seeds, where the caller has it already.
        partner_view2: ``(B, C, H, W)`` second views of other pairs, for controls that need them; they get the same
            noise.

    Returns:
        ``(B,)``, 0 or more; lower is better. NaN where a map of the pair is zero, so that no change is relative to it,
        or where it is not finite, with noise or without.

    Raises:
        TypeError: ``explainer`` is none.
        UserError: it makes images instead of maps; shapes, radius, draws, units or protocol are out of range.
        NonFiniteEmbedding: the model answers NaN or infinity.

    Cost: that of ``draws`` explanations, and one more where ``explanation`` is not given. Memory does not grow with
    ``draws``.

    >>> from twinsight.explainers import InputXGradient
    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> max_sensitivity(InputXGradient(small_two_view()), view1, view2, draws=2).shape
    torch.Size([1])
    """
    options = resolve(protocol, PROTOCOL_OPTIONS, {"units": units})
    if not isinstance(explainer, Explains):
        raise TypeError(f"`explainer` must be an Explainer, got {type(explainer).__name__}")
    check_views(explainer.model, view1, view2, seeds)
    check_options((view1.shape[-2], view1.shape[-1]), {**options, "radius": radius, "draws": draws})
    if explainer.maps == 0:
        raise UserError("`explainer` makes images, not maps: max-sensitivity has nothing to compare")
    bank = bank_for(explainer.model, bank)
    seeds = seeds_from_pixels(view1) if seeds is None else seeds
    if explanation is None:
        explanation = explainer(view1, view2, seeds=seeds, bank=bank, partner_view2=partner_view2)
    maps = _maps(explanation)
    if any(len(heatmaps) != len(view1) for heatmaps in maps):
        raise UserError(f"`explanation` must be of these {len(view1)} pairs, got {len(maps[0])}")
    scale = _scale(explainer.model, options["units"], view1.shape[1])
    largest = [torch.zeros(len(view1), dtype=torch.float64) for _ in maps]
    for draw in range(draws):
        noise = torch.stack([_noise(view1.shape[1:], radius * scale, seed, draw) for seed in seeds.tolist()])
        noise = noise.to(view1)
        partner = None if partner_view2 is None else partner_view2 + noise
        with bank.aside() as scratch:
            found = _maps(explainer(view1 + noise, view2 + noise, seeds=seeds, bank=scratch, partner_view2=partner))
        changes = [_changes(*two) for two in zip(maps, found, strict=True)]
        largest = [torch.maximum(*two) for two in zip(largest, changes, strict=True)]  # which hands NaN on
    return torch.stack(largest).mean(dim=0).to(view1)


def check_options(size: tuple[int, int], options: Mapping[str, Any]) -> None:
    """Refuse options of :func:`max_sensitivity` that are out of range, before any view is encoded.

    Raises:
        UserError: radius, draws or units out of range.
    """
    radius, draws, units = options.get("radius", 0.2), options.get("draws", 10), options.get("units")
    if not (math.isfinite(radius) and radius > 0):
        raise UserError(f"`radius` must be a positive number, got {radius}")
    if not isinstance(draws, int) or draws < 1:
        raise UserError(f"`draws` must be at least 1, got {draws}")
    if units is not None and units not in UNITS:
        raise unknown("`units`", units, UNITS)


max_sensitivity.protocol_options = PROTOCOL_OPTIONS  # type: ignore[attr-defined]
max_sensitivity.check_options = check_options  # type: ignore[attr-defined]
max_sensitivity.columns = (FIELD,)  # type: ignore[attr-defined]
max_sensitivity.field = FIELD  # type: ignore[attr-defined]
max_sensitivity.forwards = lambda size, options, maps, explanation: options.get("draws", 10) * explanation  # type: ignore[attr-defined]


def _maps(explanation: Any) -> list[Tensor]:
    """Its maps ``(B, h, w)``, one or two, where double precision is to be had everywhere."""
    found = (explanation.map1, explanation.map2)
    return [heatmaps.detach().cpu().double() for heatmaps in found if heatmaps is not None]


def _scale(model: TwoViewModel, units: str, channels: int) -> Tensor:
    """``(C, 1, 1)`` what one unit of noise is in the model's input space."""
    if units == "input" or model.normalization is None:
        return torch.ones(channels, 1, 1)
    return 1 / torch.tensor(model.normalization[1]).view(-1, 1, 1)


def _noise(shape: torch.Size, radius: Tensor, seed: int, draw: int) -> Tensor:
    """``(C, H, W)`` uniform in ``+-radius``, a draw that depends on the pair alone."""
    return (2 * torch.rand(shape, generator=generator(seed, "max sensitivity", draw)) - 1) * radius


def _changes(maps: Tensor, others: Tensor) -> Tensor:
    """``(B,)`` relative distance of each of ``(B, h, w)`` maps from the other; NaN where undefined."""
    values = []
    for one, other in zip(maps, others, strict=True):  # pair by pair, so that rounding cannot depend on the batch
        size = one.norm()
        defined = bool(one.isfinite().all() and other.isfinite().all() and size > 0)
        values.append((one - other).norm() / size if defined else size.new_full((), torch.nan))
    return torch.stack(values)
