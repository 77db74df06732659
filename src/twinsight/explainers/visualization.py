"""Images that show what a model sees: the input that excites it, and what two models keep of a view."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from twinsight.errors import UserError, unknown
from twinsight.explainers.base import Cost, Pair
from twinsight.explainers.images import ImageExplainer, Images, frames_at
from twinsight.explainers.layers import activation, activations, check_layer
from twinsight.models import TwoViewModel, evaluating, load_model, weights_digest

# Both methods optimise x' in centred pixels, about -2 to 2, which is what trunks made for ImageNet eat: the published
# penalties keep their strength, and learning rates their meaning, whatever a model's own normalisation.
CENTRE, SPREAD = 0.5, 0.25


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
        _check_at_least(1, octaves=octaves, iterations=iterations)
        if not octave_scale > 1:
            raise UserError(f"`octave_scale` must be above 1, got {octave_scale}")
        _check_positive(learning_rate=learning_rate)
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
                    frames.append(_pixels(F.resize(x, list(size), antialias=True))[0])
        image = _pixels(x)
        found = bank.encode(_eaten(image, self.model), 1)
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
            found = activation(self.model, _eaten(_pixels(x), self.model), options["layer"]).flatten(1)
            if options["objective"] == "score":
                objective = self.model.similarity(found, target)[0]
            else:
                objective = (found * target).sum() / target.norm().clamp(min=1e-12)
            penalty = options["norm_weight"] * x.norm() + options["tv_weight"] * _variation(x, 1) / x.numel()
            (gradient,) = bank.gradients(objective - penalty, [x])
        sigma = 0.5 + 2.0 * iteration / max(1, options["iterations"] - 1)
        kernel = 2 * min(-(-int(20 * sigma) // 10), min(x.shape[-2:]) - 1) + 1  # two sigma to either side
        gradient = F.gaussian_blur(gradient, [kernel, kernel], [sigma, sigma])
        step = options["learning_rate"] / gradient.abs().mean().clamp(min=1e-20)
        return _clipped(x.detach() + step * gradient), objective.detach()


class ModelDifference(ImageExplainer):
    """View 1 reconstructed from the features of this model and of another one, at three depths (paper).

    Minimises ``0.1 |phi(x') - phi(x)|^2 / |phi(x)|^2 + 1e-7 sum x'^6 + 1e-8 TV2(x')`` (sum of squared differences of
    neighbours) by gradient descent with momentum 0.9: what a model has thrown away cannot come back. Both models start
    from the same image and follow the same schedule; the published code gives them different learning rates, which
    makes it impossible to tell the models from the schedule. Every model eats its own normalisation of the same pixels.

    Args:
        model: the network to explain.
        reference: what it is compared with, a model or a name for :func:`twinsight.models.load_model`; mostly a
            supervised network of the same architecture.
        layers: module paths valid in both models; None takes three, at a third, two thirds and the end of the stages.
        iterations: steps of each reconstruction (paper: 201).
        learning_rate: of images of 224 x 224 centred pixels; scales with their area, as gradients do inversely.
        reference_learning_rate: None is the same; another one confounds the comparison as published.
        power_weight, tv_weight: of the two penalties.
        protocol: ``"sound"`` or ``"paper"``; nothing differs.
        progress: show progress bars in the terminal.

    Raises:
        UserError: models that eat images of different sizes, a layer that one of them lacks, no stages found, or an
            option out of range.

    Returns :class:`~twinsight.explainers.images.PairImages` with the images ``"model/LAYER"`` and
    ``"reference/LAYER"``; traces are ``|phi(x') - phi(x)|^2 / |phi(x)|^2`` before each step. Details, for each model
    and depth: ``model_error_1`` ... (the same, of the final image) and ``model_pixel_error_1`` ... (root mean square
    difference from the view, in pixels of [0, 1]), and ``reference_...``.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> made = ModelDifference(small_two_view(), reference=small_two_view(), iterations=2)(view1, view2)
    >>> list(made.images)[:2]
    ['model/trunk.stages.0', 'model/trunk.stages.1']
    """

    source = "paper, model difference visualisation"
    trace_label = "Feature error"
    shown = (1,)

    def __init__(
        self,
        model: TwoViewModel,
        reference: TwoViewModel | str = "demo_supervised",
        layers: Sequence[str] | None = None,
        iterations: int = 201,
        learning_rate: float = 1e4,
        reference_learning_rate: float | None = None,
        power_weight: float = 1e-7,
        tv_weight: float = 1e-8,
        protocol: str = "sound",
        progress: bool = False,
    ) -> None:
        _check_at_least(1, iterations=iterations)
        same = learning_rate if reference_learning_rate is None else reference_learning_rate
        _check_positive(learning_rate=learning_rate, reference_learning_rate=same)
        super().__init__(
            model,
            protocol,
            progress,
            layers=layers,
            iterations=iterations,
            learning_rate=learning_rate,
            reference_learning_rate=same,
            power_weight=power_weight,
            tv_weight=tv_weight,
        )
        if isinstance(reference, str):
            reference = load_model(reference, input_size=model.input_size)
        if not isinstance(reference, TwoViewModel):
            raise UserError(f"`reference` must be a TwoViewModel or the name of one, got {type(reference).__name__}")
        if reference.input_size != model.input_size:
            raise UserError(
                f"`reference` eats images of {reference.input_size} pixels, the model of {model.input_size}: "
                "load both with the same `input_size`"
            )
        self.reference = reference
        self.options["reference"] = weights_digest(reference)  # decides the result, so it belongs to the identity
        layers = _thirds(model) if layers is None else list(layers)
        for layer in layers:
            check_layer(model, layer, "layers")
            check_layer(reference, layer, "layers` of the `reference")
        self.options["layers"] = layers

    def cost(self, image_size: tuple[int, int]) -> Cost:
        # Both views, the targets of each model, the steps and the final images; passes end at the layer.
        images = 2 * len(self.options["layers"])
        return Cost(2 + 2 + images * (self.options["iterations"] + 1), images * self.options["iterations"])

    def explain(self, pair: Pair) -> Images:
        options = self.options
        _ = pair.score  # refuses views that are not finite before the long work
        view = self.model.pixels(pair.view1.unsqueeze(0))
        start = (0.1 * torch.randn(view.shape, generator=pair.generator("model_difference"))).to(view)
        models = {"model": self.model, "reference": self.reference}
        made = Images({}, {}, {}, {})
        with evaluating(self.reference):
            for who, model in models.items():
                pair.bank.forwards += 1
                targets = activations(model, _eaten(view, model), options["layers"])
                rate = options["learning_rate" if who == "model" else "reference_learning_rate"]
                for depth, (layer, target) in enumerate(zip(options["layers"], targets, strict=True), start=1):
                    name = f"{who}/{layer}"
                    error = _FeatureError(pair, model, layer, target)
                    images, trace = self._reconstruct(pair, error, start, rate, f"{self.label}: {name}")
                    made.images[name], made.traces[name], made.frames[name] = images[-1], trace, images
                    made.details[f"{who}_error_{depth}"] = error((images[-1:] - CENTRE) / SPREAD)
                    made.details[f"{who}_pixel_error_{depth}"] = (images[-1] - view[0]).square().mean().sqrt()
        return made

    def _reconstruct(
        self, pair: Pair, error: Callable[[Tensor], Tensor], start: Tensor, rate: float, description: str
    ) -> tuple[Tensor, Tensor]:
        """Snapshots ``(K, 3, H, W)`` in pixels, the last one the result, and the errors ``(T,)`` before each step."""
        options = self.options
        rate = rate * start.shape[-2] * start.shape[-1] / 224**2
        kept, frames, trace = frames_at(options["iterations"]), [], []
        x, velocity = start, torch.zeros_like(start)
        for step in self.steps(range(1, options["iterations"] + 1), description):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                found = error(x)
                penalty = options["power_weight"] * x.pow(6).sum() + options["tv_weight"] * _variation(x, 2)
                (gradient,) = pair.bank.gradients(0.1 * found + penalty, [x])
            velocity = 0.9 * velocity + gradient
            # Within valid pixels, where all models are used, and where too large a rate cannot end in infinity.
            x = _clipped(x.detach() - rate * velocity)
            trace.append(found.detach())
            if step in kept:
                frames.append(_pixels(x)[0])
        return torch.stack(frames), torch.stack(trace)


class _FeatureError:
    """``|phi(x') - phi(x)|^2 / |phi(x)|^2`` of centred pixels ``(1, 3, H, W)``, for one model and layer."""

    def __init__(self, pair: Pair, model: TwoViewModel, layer: str, target: Tensor) -> None:
        self.pair, self.model, self.layer, self.target = pair, model, layer, target

    def __call__(self, x: Tensor) -> Tensor:
        self.pair.bank.forwards += 1
        found = activation(self.model, _eaten(_pixels(x), self.model), self.layer)
        return (found - self.target).square().sum() / self.target.square().sum().clamp(min=1e-12)


def _pyramid(size: tuple[int, int], octaves: int, scale: float, least: int = 16) -> list[tuple[int, int]]:
    """Sizes from small to ``size`` itself, without those whose shorter side is below ``least``."""
    sizes = [(round(size[0] / scale**level), round(size[1] / scale**level)) for level in reversed(range(octaves))]
    return [octave for octave in sizes[:-1] if min(octave) >= least] + sizes[-1:]


def _thirds(model: TwoViewModel) -> list[str]:
    """Paths of the modules at a third, two thirds and the end of the trunk's stages."""
    for path in ("trunk.stages", "trunk.net", "trunk"):
        container = dict(model.named_modules()).get(path)
        if isinstance(container, nn.Sequential):
            names = [name for name, _ in container.named_children()]
            names = [name for name in names if re.fullmatch(r"layer\d+", name)] or names  # a ResNet's stem is no stage
            if len(names) >= 3:
                return [f"{path}.{names[-(-len(names) * third // 3) - 1]}" for third in (1, 2, 3)]
    raise UserError("`layers` cannot be derived for this trunk: name modules that both models have")


def _pixels(x: Tensor) -> Tensor:
    return CENTRE + SPREAD * x


def _clipped(x: Tensor) -> Tensor:
    return x.clamp(-CENTRE / SPREAD, (1 - CENTRE) / SPREAD)


def _eaten(pixels: Tensor, model: TwoViewModel) -> Tensor:
    """Pixels ``(1, 3, H, W)`` in [0, 1] as the model eats them."""
    return pixels if model.normalization is None else F.normalize(pixels, *map(list, model.normalization))


def _variation(x: Tensor, power: int) -> Tensor:
    """Sum over neighbours, right and below, of their absolute difference to a ``power``."""
    return x.diff(dim=-1).abs().pow(power).sum() + x.diff(dim=-2).abs().pow(power).sum()


def _check_at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"`{name}` must be an integer of at least {least}, got {value!r}")


def _check_positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise UserError(f"`{name}` must be above 0, got {value!r}")
