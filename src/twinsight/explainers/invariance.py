"""Pixel invariance: which pixels keep a view similar to itself under augmentation."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from twinsight.engine import Perturbation, blurred, check_baseline, min_max
from twinsight.engine.baselines import Baseline
from twinsight.engine.transforms import colour_jitter, erase, greyscale, rescale
from twinsight.errors import UserError, unknown
from twinsight.explainers.base import Cost, Explainer, Maps, Pair
from twinsight.explainers.surrogates import Fit, fit_logistic, fit_ridge, nmf_targets
from twinsight.models import TwoViewModel

SURROGATES = ("logistic", "ridge")
CHANNELS = ("max", "contribution")
NOT_FOR = {"ms": "the paper does not define it for pixel invariance"}


class PixelInvariance(Explainer):
    """A linear model of the pixels that predicts how similar view 1 stays to augmented versions of itself (paper).

    View 1 is augmented ``samples`` times in pixel space, without shifting anything: detail lost by rescaling to 25 to
    100 % of the side and back (the paper says "resize"; this is our reading), colour jitter (0.8, 0.8, 0.8, 0.2) with
    probability 0.8, greyscale with 0.2, one rectangle of 2-33 % of the area erased with 0.5. Labels are
    ``y_n = s(f(x), f(x_n))``, in which ``x_n`` plays view 2. A surrogate is fitted to the pixels of images reduced to
    ``size``. View 2 plays no part but in the score.

    Args:
        model: the network to explain.
        samples: augmented versions (paper: 1000).
        surrogate: ``"logistic"``, published: :func:`~twinsight.explainers.surrogates.fit_logistic`, which starts from
            weights drawn uniformly from ``+-1 / sqrt(number of weights)`` and cannot fit negative similarities; or
            ``"ridge"``: :func:`~twinsight.explainers.surrogates.fit_ridge`. None is ridge (sound) or logistic (paper).
        size: side to which images are reduced for the surrogate, at most (paper: 64).
        channels: how weights of three channels become one value per pixel. ``"max"``: the largest, published: where
            brighter means more similar. ``"contribution"``: ``sum_c w_c (x_c - fill_c)``, what the surrogate says the
            similarity loses when the pixel is erased, in units of the similarity. None is contribution (sound) or max
            (paper).
        threshold: fraction of the range of the map below which it is set to 0, after min-max scaling; 0 scales only.
            None is the raw signed map (sound) or 0.5 (paper).
        blur: blur the map (Gaussian, kernel 11, sigma 5, at its own resolution). None is False (sound) or True (paper).
        baseline: what erased pixels become, see :func:`twinsight.engine.baselines.baseline_image`. None is the view's
            own ``"mean"`` colour (sound), about which contributions are measured, or ``"input_zero"`` (paper).
        antialias: low-pass before reducing images. None is True (sound) or False (paper, as its time's default).
        nmf_weight: weight of a second target, drawn from non-negative factors of the embeddings, see
            :func:`~twinsight.explainers.surrogates.nmf_targets`; 0 leaves it out (the paper's NMF variant sets it).
        components: number of these factors (paper: 10).
        learning_rate, epochs, l1: of the logistic surrogate (paper: 0.1, 1000, 0.2). The paper gives models other than
            SimCLR 10 epochs, after which the weights drawn at first still show.
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: an unknown option value, or one out of range.

    Details: ``r2_in_sample``, the share of the labels' variance that the surrogate explains, and for ridge ``r2``, the
    same where each label is predicted without itself (leave-one-out): trust no map whose ``r2`` is near 0 or below.
    Maps are 0, and both NaN, where all labels are equal or one is not finite.

    Cost: ``samples`` + 2 forwards, view 2 included.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> explanation = PixelInvariance(small_two_view(), samples=16, size=32)(view1, view2)
    >>> explanation.map1.shape, explanation.map2, list(explanation.details)
    (torch.Size([1, 32, 32]), None, ['r2_in_sample', 'r2'])
    """

    source = "paper, pixel invariance"
    maps = 1
    not_for = NOT_FOR
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {
        "surrogate": {"paper": "logistic", "sound": "ridge"},
        "channels": {"paper": "max", "sound": "contribution"},
        "threshold": {"paper": 0.5, "sound": None},
        "blur": {"paper": True, "sound": False},
        "baseline": {"paper": "input_zero", "sound": "mean"},
        "antialias": {"paper": False, "sound": True},
    }

    def __init__(
        self,
        model: TwoViewModel,
        samples: int = 1000,
        surrogate: Literal["logistic", "ridge"] | None = None,
        size: int = 64,
        channels: Literal["max", "contribution"] | None = None,
        threshold: float | None = None,
        blur: bool | None = None,
        baseline: Baseline | None = None,
        antialias: bool | None = None,
        nmf_weight: float = 0.0,
        components: int = 10,
        learning_rate: float = 0.1,
        epochs: int = 1000,
        l1: float = 0.2,
        protocol: str = "sound",
    ) -> None:
        for name, count in (("samples", samples), ("size", size), ("components", components), ("epochs", epochs)):
            if not isinstance(count, int) or count < 1:
                raise UserError(f"`{name}` must be a positive integer, got {count!r}")
        if not (nmf_weight >= 0 and l1 >= 0 and learning_rate > 0):
            raise UserError(
                "`nmf_weight` and `l1` must not be negative, and `learning_rate` must be positive, "
                f"got {nmf_weight}, {l1} and {learning_rate}"
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"`threshold` must be a fraction in [0, 1], got {threshold}")
        import sklearn.linear_model  # noqa: F401  # two seconds, which are no part of what explaining a pair takes

        super().__init__(
            model,
            protocol,
            samples=samples,
            surrogate=surrogate,
            size=size,
            channels=channels,
            threshold=threshold,
            blur=blur,
            baseline=baseline,
            antialias=antialias,
            nmf_weight=nmf_weight,
            components=components,
            learning_rate=learning_rate,
            epochs=epochs,
            l1=l1,
        )
        for option, valid in (("surrogate", SURROGATES), ("channels", CHANNELS)):
            if self.options[option] not in valid:
                raise unknown(f"`{option}`", self.options[option], valid)
        check_baseline(self.options["baseline"])

    @property
    def variant(self) -> str:
        return "NMF" if self.options["nmf_weight"] else ""

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(self.options["samples"] + 2)

    def explain(self, pair: Pair) -> Maps:
        options = self.options
        _ = pair.score  # refuses views that are not finite before the long work
        versions = _Augmentations(pair, options)
        embeddings = pair.bank.perturbed(versions, view=2)
        labels = self.model.similarity(pair.z1.unsqueeze(0), embeddings)
        images, plain, fill = versions.reduced(), versions.reduce(versions.pixels), versions.reduce(versions.fill)
        target = nmf_targets(embeddings, options["components"]) if options["nmf_weight"] else None
        if not _informative(labels):
            nothing = labels.new_full((), torch.nan)
            fit = Fit(torch.zeros_like(plain), nothing, nothing, nothing)
        elif options["surrogate"] == "logistic":
            bound = plain.numel() ** -0.5
            initial = bound * (2 * torch.rand(plain.shape, generator=pair.generator("pixel_invariance")) - 1)
            schedule = (options["learning_rate"], options["epochs"], options["l1"])
            fit = fit_logistic(
                images, plain, labels, initial.to(plain), *schedule, target=target, target_weight=options["nmf_weight"]
            )
        else:
            fit = fit_ridge(images, labels, target, options["nmf_weight"])
        details = {"r2_in_sample": fit.r2_in_sample}
        if options["surrogate"] == "ridge":
            assert fit.r2 is not None
            details["r2"] = fit.r2
        return Maps(self._map(fit.weights, plain - fill), None, details)

    def _map(self, weights: Tensor, presence: Tensor) -> Tensor:
        """``(h, w)`` from weights ``(C, h, w)`` and what erasing takes away."""
        options = self.options
        found = weights.amax(dim=0) if options["channels"] == "max" else (weights * presence).sum(dim=0)
        if not torch.isfinite(found).all():
            found = torch.zeros_like(found)
        if options["threshold"] is not None:
            found = min_max(found)
            found = torch.where(found < options["threshold"], 0, found)
        if options["blur"]:
            found = blurred(found.unsqueeze(0))[0]
        return found


class _Augmentations(Perturbation):
    """Augmented versions of view 1, each drawn from a seed of its own; keeps them reduced as they are made."""

    def __init__(self, pair: Pair, options: dict[str, Any]) -> None:
        model = pair.bank.model
        fill = pair.baseline(options["baseline"], 1)
        key = ("pixel_invariance", pair.seed, options["samples"], options["antialias"])
        super().__init__(pair.view1, fill, torch.zeros_like, options["samples"], key)
        self.pair, self.antialias, self.normalization = pair, options["antialias"], model.normalization
        self.pixels, self.fill = model.pixels(pair.view1.unsqueeze(0))[0], model.pixels(fill.unsqueeze(0))[0]
        self.size = [min(options["size"], side) for side in pair.view1.shape[-2:]]
        self._reduced: dict[int, Tensor] = {}

    def versions(self, indices: Tensor) -> Tensor:
        made = {index: self._version(index) for index in dict.fromkeys(indices.tolist())}  # a last chunk repeats
        return torch.stack([made[index] for index in indices.tolist()])

    def reduce(self, pixels: Tensor) -> Tensor:
        """``(C, H, W)`` pixels as the surrogate sees them, ``(C, h, w)``."""
        return F.resize(pixels, self.size, antialias=self.antialias)

    def reduced(self) -> Tensor:
        """All versions ``(N, C, h, w)`` in pixels; made again where the bank had their embeddings."""
        for index in range(self.count):
            if index not in self._reduced:
                self._version(index)
        return torch.stack([self._reduced[index] for index in range(self.count)])

    def _version(self, index: int) -> Tensor:
        draw = self.pair.generator("pixel_invariance", index)
        pixels = rescale(self.pixels, draw, antialias=self.antialias)
        pixels = colour_jitter(pixels, draw, probability=0.8)
        pixels = greyscale(pixels, draw, probability=0.2)
        pixels = erase(pixels, draw, value=self.fill, probability=0.5)
        self._reduced[index] = self.reduce(pixels)
        return pixels if self.normalization is None else F.normalize(pixels, *map(list, self.normalization))


def _informative(labels: Tensor) -> bool:
    """Whether there is anything to fit: finite labels that differ by more than rounding."""
    if not torch.isfinite(labels).all():
        return False
    return bool(labels.max() - labels.min() > 1e-6 * labels.abs().max())
