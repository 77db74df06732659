"""Gradients of the similarity at the pixels: at the views, at noisy copies, and on the way from one view to another."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from twinsight.engine import TRANSFORMS, PairBank, blurred
from twinsight.errors import UserError, unknown
from twinsight.explainers.base import Cost, Explainer, Pair
from twinsight.explainers.guided import Guided, check_guided, guiding
from twinsight.models import TwoViewModel

NoiseScale = Literal["range", "inverse_range"]
TransformName = Literal["colour_jitter", "blur", "greyscale", "solarize", "combination"]

ImageAndGradient = tuple[Tensor, Tensor]
"""``(C, H, W)`` pixels that are explained and the gradient there."""


class _GradientExplainer(Explainer):
    """Shared by the gradient methods: guiding, and maps ``max_channel |x * gradient|``."""

    def __init__(self, model: TwoViewModel, protocol: str, guided: Guided | bool, blur: bool, **given: Any) -> None:
        super().__init__(model, protocol, guided=guided, blur=blur, **given)
        if isinstance(guided, bool):
            self.options["guided"] = {"paper": "modules", "sound": "all"}[protocol] if guided else "none"
        check_guided(model, self.options["guided"])

    @property
    def variant(self) -> str:
        return "G" if self._guided else ""

    def explain(self, pair: Pair) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            first, second = self.gradients(pair)
        return self._map(*first), self._map(*second)

    def gradients(self, pair: Pair) -> tuple[ImageAndGradient, ImageAndGradient]:
        """What is multiplied to make map 1 and map 2."""
        raise NotImplementedError

    @property
    def _guided(self) -> bool:
        return self.options["guided"] != "none"

    def _view(self, pair: Pair, view: int) -> tuple[Tensor, Tensor]:
        """A view as a leaf ``(1, C, H, W)`` and its embedding ``(1, d)``."""
        with guiding(self.model, self.options["guided"]):
            return pair.with_graph(view, own=self._guided)

    def _encoded(self, bank: PairBank, images: Sequence[Tensor], view: int) -> tuple[Tensor, Tensor]:
        """A leaf ``(1, C, H, W)`` of zeros, added to each of ``(C, H, W)`` images, and their embeddings ``(n, d)``.

        The gradient at the leaf is the sum of those at the images.
        """
        shift = torch.zeros_like(images[0]).unsqueeze(0).requires_grad_()
        with guiding(self.model, self.options["guided"]):
            return shift, bank.encode(torch.stack(list(images)), view, own=self._guided, shift=shift)

    def _map(self, image: Tensor, gradient: Tensor) -> Tensor:
        found = (image * gradient).abs().amax(dim=0)
        if not self.options["blur"]:
            return found
        if min(found.shape) < 6:
            raise UserError(f"`blur=true` needs images of at least 6 x 6 pixels, got {tuple(found.shape)}")
        return blurred(found.unsqueeze(0)).squeeze(0)


class InputXGradient(_GradientExplainer):
    """Pixels times the gradient of the similarity there (the paper's baseline; Shrikumar et al. 2016).

    ``S_i = max over channels |x_i * ds/dx_i|``, with ``x_i`` in the model's input space.

    Args:
        model: the network to explain.
        guided: ``"none"`` or False; ``"modules"``: gradients are clamped to be non-negative at ReLU modules; ``"all"``:
            at every ReLU, functions too; True is all (sound) or modules (paper).
        blur: smooth the maps (Gaussian, kernel 11, sigma 5).
        protocol: ``"sound"`` or ``"paper"``; they differ in what ``guided=True`` means.

    Raises:
        UserError: an unknown value, or a network that cannot be guided.

    Maps have the views' size and are not negative. Cost: 2 forwards, which serve the bank too, and 2 backwards; guided
    passes serve nobody else, which makes it 4 forwards.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> InputXGradient(small_two_view())(view1, view2).map1.shape
    torch.Size([1, 64, 64])
    """

    name = "input_x_gradient"
    title = "Input x gradient"
    source = "Shrikumar et al. 2016; the paper's baseline"

    def __init__(
        self, model: TwoViewModel, guided: Guided | bool = "none", blur: bool = False, protocol: str = "sound"
    ) -> None:
        super().__init__(model, protocol, guided, blur)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(4 if self._guided else 2, 2)

    def gradients(self, pair: Pair) -> tuple[ImageAndGradient, ImageAndGradient]:
        x1, z1 = self._view(pair, 1)
        x2, z2 = self._view(pair, 2)
        g1, g2 = pair.bank.gradients(self.model.similarity(z1, z2).sum(), (x1, x2))
        return (pair.view1, g1[0]), (pair.view2, g2[0])


class SmoothGrad(_GradientExplainer):
    """Input x gradient with gradients averaged over noisy copies (the paper's baseline; Smilkov et al. 2017).

    ``S_i = max over channels |x_i * mean_n ds/dx_i(x1 + e1_n, x2 + e2_n)|``, ``e`` Gaussian noise and ``x_i`` the view
    without it.

    Args:
        model: the network to explain.
        samples: noisy copies of each view (paper: 50).
        noise_level: of the noise, see ``noise_scale`` (paper: 0.15).
        shared_noise: both views get the same noise, with the standard deviation of view 1; None is False (sound) or
            True (paper).
        noise_scale: the standard deviation is ``noise_level`` times (``"range"``) or divided by (``"inverse_range"``)
            the view's largest value minus its smallest; None is ``"range"`` (sound) or ``"inverse_range"`` (paper). A
            view of one value gets no noise either way.
        guided: ``"none"``, ``"modules"``, ``"all"`` or True, as in :class:`InputXGradient`.
        blur: smooth the maps (Gaussian, kernel 11, sigma 5).
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: an option out of range, or a network that cannot be guided.

    Maps have the views' size and are not negative. Cost: 2 x samples forwards and backwards, 2 forwards more for the
    views (shared). Graphs of two chunks are in memory at a time.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> SmoothGrad(small_two_view(), samples=2)(view1, view2).map1.shape
    torch.Size([1, 64, 64])
    """

    name = "smoothgrad"
    title = "SmoothGrad"
    source = "Smilkov et al. 2017; the paper's baseline"
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {
        "shared_noise": {"paper": True, "sound": False},
        "noise_scale": {"paper": "inverse_range", "sound": "range"},
    }

    def __init__(
        self,
        model: TwoViewModel,
        samples: int = 50,
        noise_level: float = 0.15,
        shared_noise: bool | None = None,
        noise_scale: NoiseScale | None = None,
        guided: Guided | bool = "none",
        blur: bool = False,
        protocol: str = "sound",
    ) -> None:
        _check_noise(noise_level, noise_scale)
        if samples < 1:
            raise UserError(f"`samples` must be at least 1, got {samples}")
        super().__init__(
            model,
            protocol,
            guided,
            blur,
            samples=samples,
            noise_level=noise_level,
            shared_noise=shared_noise,
            noise_scale=noise_scale,
        )

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(2 + 2 * self.options["samples"], 2 * self.options["samples"])

    def gradients(self, pair: Pair) -> tuple[ImageAndGradient, ImageAndGradient]:
        samples = self.options["samples"]

        def summed(start: int, stop: int) -> tuple[Tensor, ...]:
            shift1, z1 = self._encoded(pair.bank, [self._noisy(pair, 1, n) for n in range(start, stop)], 1)
            shift2, z2 = self._encoded(pair.bank, [self._noisy(pair, 2, n) for n in range(start, stop)], 2)
            score = self.model.similarity(z1, z2).sum()
            return pair.bank.gradients(score, (shift1, shift2), count=2 * (stop - start))

        chunks = zip(*pair.bank.in_chunks(samples, summed, graphs=True), strict=True)
        g1, g2 = (torch.cat(gradients).sum(dim=0) / samples for gradients in chunks)
        return (pair.view1, g1), (pair.view2, g2)

    def _noisy(self, pair: Pair, view: int, sample: int) -> Tensor:
        drawn_for = 1 if self.options["shared_noise"] else view
        deviation = _deviation(pair.view(drawn_for), self.options["noise_level"], self.options["noise_scale"])
        return _noisy(pair, pair.view(view), deviation, drawn_for, sample)


class AveragedTransforms(_GradientExplainer):
    """Input x gradient with gradients averaged on the way from view 1 to another image (paper, averaged transforms).

    Mixed images ``x^l = l * x1 + (1 - l) * x2`` are compared with view 1. With the means over all ``l < 1`` of the
    gradients, ``g1 = mean ds(f(x1), f(x^l))/dx1`` and ``g2 = mean ds(f(x1), f(x^l))/dx^l``, the maps are
    ``S1 = max over channels |x1 * g1|`` and ``S2 = max over channels |x_last * g2|``; ``x_last`` is the last mixture.
    The views do not play the same part: swapping them is another path, not swapped maps.

    Args:
        model: the network to explain.
        lambdas: ``l`` in [0, 1], the weights of view 1. None is 1, 0.9 ... 0 (sound) or 1, 0.9 ... 0.1 (paper, which
            never reaches view 2). What is 1 compares view 1 with itself and is left out.
        guided: ``"none"``, ``"modules"``, ``"all"`` or True, as in :class:`InputXGradient`.
        noise: add Gaussian noise to the mixed images, of SmoothGrad's standard deviation for view 1; view 1 itself and
            what gradients are multiplied with stay as they are.
        blur: smooth the maps (Gaussian, kernel 11, sigma 5).
        transform: None mixes the two views given. ``"colour_jitter"``, ``"blur"``, ``"greyscale"``, ``"solarize"`` or
            ``"combination"`` (:mod:`twinsight.engine.transforms`) mixes view 1 with itself transformed, drawn from the
            pair's seed; map 2 is then about the transformed view 1. The score is that of the views either way.
        noise_level: of the noise (paper: 0.15).
        noise_scale: ``"range"`` or ``"inverse_range"``, as in :class:`SmoothGrad`; None takes it from the protocol.
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: an unknown or impossible value, or a network that cannot be guided.

    Maps have the views' size and are not negative. Cost for the n mixed images: n + 1 forwards and n + 1 backwards;
    guided 2 n backwards, because guided gradients of a sum are not the sum of theirs. The score takes one forward more
    (shared) where view 2 itself is not among the mixed images, and two where passes are guided and serve nobody else.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> AveragedTransforms(small_two_view(), lambdas=[0.5, 0])(view1, view2).map2.shape
    torch.Size([1, 64, 64])
    """

    name = "averaged_transforms"
    title = "Averaged transforms"
    source = "paper, averaged transforms"
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {
        "lambdas": {"paper": [n / 10 for n in range(10, 0, -1)], "sound": [n / 10 for n in range(10, -1, -1)]},
        "noise_scale": {"paper": "inverse_range", "sound": "range"},
    }

    def __init__(
        self,
        model: TwoViewModel,
        lambdas: Sequence[float] | None = None,
        guided: Guided | bool = "none",
        noise: bool = False,
        blur: bool = False,
        transform: TransformName | None = None,
        noise_level: float = 0.15,
        noise_scale: NoiseScale | None = None,
        protocol: str = "sound",
    ) -> None:
        _check_noise(noise_level, noise_scale)
        if transform is not None and transform not in TRANSFORMS:
            raise unknown("`transform`", transform, TRANSFORMS)
        super().__init__(
            model,
            protocol,
            guided,
            blur,
            lambdas=None if lambdas is None else _checked(lambdas),
            noise=noise,
            transform=transform,
            noise_level=noise_level,
            noise_scale=noise_scale,
        )

    @property
    def variant(self) -> str:
        return "+".join("G" * self._guided + "N" * self.options["noise"])

    def cost(self, image_size: tuple[int, int]) -> Cost:
        weights = self._weights()
        for_score = self._guided + (self._guided or not any(map(self._is_view2, weights)))
        return Cost(
            1 + len(weights) + for_score,
            len(weights) + (len(weights) if self._guided else 1),
        )

    def gradients(self, pair: Pair) -> tuple[ImageAndGradient, ImageAndGradient]:
        weights, bank = self._weights(), pair.bank
        x1, z1 = self._view(pair, 1)
        other = self._other(pair)

        def mixed(weight: float) -> Tensor:
            return weight * pair.view1 + (1 - weight) * other

        def backwards(leaf: Tensor, embeddings: Tensor) -> tuple[Tensor, ...]:
            """Gradients at the mixed images, summed; and at the embedding of view 1, for each image."""
            first = z1.detach().repeat(len(embeddings), 1).requires_grad_()
            score = self.model.similarity(first, embeddings).sum()
            return bank.gradients(score, (leaf, first), count=len(embeddings))

        def chunk(start: int, stop: int) -> tuple[Tensor, ...]:
            images = [mixed(weight) for weight in between[start:stop]]
            if self.options["noise"]:
                deviation = _deviation(pair.view1, self.options["noise_level"], self.options["noise_scale"])
                images = [_noisy(pair, image, deviation, start + n) for n, image in enumerate(images)]
            return backwards(*self._encoded(bank, images, 2))

        between = [weight for weight in weights if not self._is_view2(weight)]
        found = bank.in_chunks(len(between), chunk, graphs=True)
        # View 2 goes on its own, so that its pass serves the bank.
        found += [backwards(*self._view(pair, 2)) for weight in weights if self._is_view2(weight)]
        to_mixed, to_z1 = zip(*found, strict=True)
        g1 = self._through_view1(bank, x1, z1, torch.cat(to_z1)) / len(weights)
        g2 = torch.cat(to_mixed).sum(dim=0) / len(weights)
        return (pair.view1, g1), (mixed(weights[-1]), g2)

    def _through_view1(self, bank: PairBank, x1: Tensor, z1: Tensor, to_z1: Tensor) -> Tensor:
        """Gradients ``(n, d)`` at the embedding of view 1, taken back to its pixels and summed."""
        if not self._guided:  # linear: the sum goes back once
            to_z1 = to_z1.sum(dim=0, keepdim=True)
        total = torch.zeros_like(x1[0])
        for row in to_z1:
            total += bank.gradients((z1 * row).sum(), (x1,), keep_graph=True)[0][0]
        return total

    def _weights(self) -> list[float]:
        return [weight for weight in self.options["lambdas"] if weight < 1]

    def _is_view2(self, weight: float) -> bool:
        return weight == 0 and self.options["transform"] is None and not self.options["noise"]

    def _other(self, pair: Pair) -> Tensor:
        if self.options["transform"] is None:
            return pair.view2
        pixels = self.model.pixels(pair.view1.unsqueeze(0)).squeeze(0)
        pixels = TRANSFORMS[self.options["transform"]](pixels, pair.generator("transform"))
        normalization = self.model.normalization
        return pixels if normalization is None else F.normalize(pixels, *map(list, normalization))


def _deviation(view: Tensor, level: float, scale: NoiseScale) -> Tensor:
    """Standard deviation of the noise for a view."""
    spread = view.max() - view.min()
    if scale == "range":
        return level * spread
    return torch.where(spread == 0, 0.0, level / spread)  # a view of one value would get infinite noise


def _noisy(pair: Pair, image: Tensor, deviation: Tensor, *sample: int) -> Tensor:
    # One generator for each sample: chunks of any size, begun again or not, then see the same noise.
    noise = torch.randn(image.shape, generator=pair.generator("noise", *sample))
    return image + deviation * noise.to(image)


def _check_noise(level: float, scale: NoiseScale | None) -> None:
    if level < 0:
        raise UserError(f"`noise_level` must not be negative, got {level}")
    if scale not in (None, "range", "inverse_range"):
        raise unknown("`noise_scale`", scale, ("range", "inverse_range"))


def _checked(lambdas: Sequence[float]) -> list[float]:
    weights = [float(weight) for weight in lambdas]
    if not all(0 <= weight <= 1 for weight in weights):
        raise UserError(f"`lambdas` must be in [0, 1], got {weights}")
    if not any(weight < 1 for weight in weights):
        raise UserError(f"`lambdas` must hold a weight below 1, or nothing is mixed: got {weights}")
    return weights
