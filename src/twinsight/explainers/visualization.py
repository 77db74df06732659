"""Feature visualisation: the image that excites a layer as a view does."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from twinsight.errors import UserError, unknown
from twinsight.explainers.base import Cost, Pair
from twinsight.explainers.centred import check_at_least, check_positive, clipped, eaten, to_pixels, variation
from twinsight.explainers.images import ImageExplainer, Images, frames_at
from twinsight.explainers.layers import activation, activations, check_layer
from twinsight.models import TwoViewModel


class FeatureVisualization(ImageExplainer):
    """The image that excites a layer as view 2 does, found by gradient ascent over an image pyramid (paper).

    From small uniform noise about grey, ``x'`` climbs the objective minus ``1e-3 |x'|_2`` and ``1e-3 TV(x')``, on
    images that grow to the size of the view. TV is the mean absolute difference of neighbours: their sum outweighs any
    similarity and leaves grey. Each step is ``learning_rate / mean |gradient|`` along the gradient, which is blurred
    first, with a sigma that grows from 0.5 to 2.5 pixels within an octave; ``x'`` is then clipped to valid pixels. View
    2 is resized to every octave as well, since feature maps of different sizes cannot be compared.

    Args:
        model: the network to explain.
        layer: path of the module ``phi`` after which the network is cut; None is the trunk's output.
        objective: ``"score"``: the model's similarity of ``phi(x')`` and ``phi(x2)``, flattened; ``"feature"``:
            ``<phi(x'), phi(x2) / |phi(x2)|>``.
        octaves: sizes of the pyramid (paper: 10). Those whose shorter side would be below 16 pixels are left out: five
            remain at 64 pixels, eight at 224.
        octave_scale: ratio of one size to the next (paper: 1.4).
        iterations: steps per octave (paper: 20).
        learning_rate: mean change of a pixel per step, in centred pixels (a quarter of the range of a pixel is one).
        norm_weight, tv_weight: of the two penalties.
        protocol: ``"sound"`` or ``"paper"``; nothing differs.
        progress: show a progress bar in the terminal.

    Raises:
        UserError: unknown objective or layer, or an option out of range.

    Returns :class:`~twinsight.explainers.images.PairImages` with one image, ``"image"``; its trace is the objective
    without penalties at each step, measured at the size of the octave. Details: ``image_score``, similarity of the
    image (as view 1) and view 2 as embeddings.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> made = FeatureVisualization(small_two_view(), octaves=2, iterations=2)(view1, view2)
    >>> made.images["image"].shape, made.traces["image"].shape
    (torch.Size([1, 3, 64, 64]), torch.Size([1, 4]))
    """

    source = "paper, feature visualisation"
    trace_label = "Objective, which falls where the image grows"

    def __init__(
        self,
        model: TwoViewModel,
        layer: str | None = None,
        objective: Literal["score", "feature"] = "score",
        octaves: int = 10,
        octave_scale: float = 1.4,
        iterations: int = 20,
        learning_rate: float = 0.05,
        norm_weight: float = 1e-3,
        tv_weight: float = 1e-3,
        protocol: str = "sound",
        progress: bool = False,
    ) -> None:
        if objective not in ("score", "feature"):
            raise unknown("`objective`", objective, ("score", "feature"))
        check_at_least(1, octaves=octaves, iterations=iterations)
        if not octave_scale > 1:
            raise UserError(f"`octave_scale` must be above 1, got {octave_scale}")
        check_positive(learning_rate=learning_rate)
        super().__init__(
            model,
            protocol,
            progress,
            layer=layer,
            objective=objective,
            octaves=octaves,
            octave_scale=octave_scale,
            iterations=iterations,
            learning_rate=learning_rate,
            norm_weight=norm_weight,
            tv_weight=tv_weight,
        )
        check_layer(model, layer)

    @property
    def variant(self) -> str:
        return "feature maximisation" if self.options["objective"] == "feature" else "score maximisation"

    def cost(self, image_size: tuple[int, int]) -> Cost:
        sizes = _pyramid(image_size, self.options["octaves"], self.options["octave_scale"])
        steps = len(sizes) * self.options["iterations"]
        # Both views, view 2 at each octave (the largest shared at the trunk's output), the steps, the final image.
        targets = len(sizes) - (self.options["layer"] is None)
        return Cost(2 + targets + steps + 1, steps)

    def explain(self, pair: Pair) -> Images:
        options, bank = self.options, pair.bank
        score = pair.score  # refuses views that are not finite before the long work
        size = (pair.view2.shape[-2], pair.view2.shape[-1])
        sizes = _pyramid(size, options["octaves"], options["octave_scale"])
        noise = torch.rand((1, len(pair.view1), *sizes[0]), generator=pair.generator("feature_visualization"))
        x = (0.1 * noise - 0.05).to(pair.view1)
        kept, frames, trace = frames_at(len(sizes) * options["iterations"]), [], []
        for octave in self.steps(sizes, self.label):
            x = F.resize(x, list(octave), antialias=True)
            target = self._target(pair, octave).flatten(1)
            for iteration in range(options["iterations"]):
                x, objective = self._step(pair, x, target, iteration)
                trace.append(objective)
                if len(trace) in kept:
                    frames.append(to_pixels(F.resize(x, list(size), antialias=True))[0])
        image = to_pixels(x)
        found = bank.encode(eaten(image, self.model), 1)
        return Images(
            {"image": image[0]},
            {"image": torch.stack(trace).to(score)},
            {"image": torch.stack(frames)},
            {"image_score": self.model.similarity(found, pair.z2.unsqueeze(0))[0]},
        )

    def _target(self, pair: Pair, octave: tuple[int, int]) -> Tensor:
        layer = self.options["layer"]
        if octave == tuple(pair.view2.shape[-2:]) and layer is None:
            return pair.features(2).unsqueeze(0)
        pair.bank.forwards += 1
        return activations(self.model, F.resize(pair.view2.unsqueeze(0), list(octave), antialias=True), [layer], 2)[0]

    def _step(self, pair: Pair, x: Tensor, target: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """``x`` after one step, and the objective before it."""
        options, bank = self.options, pair.bank
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            bank.forwards += 1
            found = activation(self.model, eaten(to_pixels(x), self.model), options["layer"]).flatten(1)
            if options["objective"] == "score":
                objective = self.model.similarity(found, target)[0]
            else:
                objective = (found * target).sum() / target.norm().clamp(min=1e-12)
            penalty = options["norm_weight"] * x.norm() + options["tv_weight"] * variation(x, 1) / x.numel()
            (gradient,) = bank.gradients(objective - penalty, [x])
        sigma = 0.5 + 2.0 * iteration / max(1, options["iterations"] - 1)
        kernel = 2 * min(-(-int(20 * sigma) // 10), min(x.shape[-2:]) - 1) + 1  # two sigma to either side
        gradient = F.gaussian_blur(gradient, [kernel, kernel], [sigma, sigma])
        step = options["learning_rate"] / gradient.abs().mean().clamp(min=1e-20)
        return clipped(x.detach() + step * gradient), objective.detach()


def _pyramid(size: tuple[int, int], octaves: int, scale: float, least: int = 16) -> list[tuple[int, int]]:
    """Sizes from small to ``size`` itself, without those whose shorter side is below ``least``."""
    sizes = [(round(size[0] / scale**level), round(size[1] / scale**level)) for level in reversed(range(octaves))]
    return [octave for octave in sizes[:-1] if min(octave) >= least] + sizes[-1:]
