"""Model difference: what two models keep of a view, by what can be rebuilt from their features."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from twinsight.errors import NotApplicable, UserError
from twinsight.explainers.base import Cost, Pair
from twinsight.explainers.centred import (
    CENTRE,
    SPREAD,
    check_at_least,
    check_positive,
    clipped,
    eaten,
    to_pixels,
    variation,
)
from twinsight.explainers.images import ImageExplainer, Images, frames_at
from twinsight.explainers.layers import activation, activations, check_layer
from twinsight.models import HookedModel, TwoViewModel, device_of, evaluating, load_model, weights_digest


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
        layers: module paths, valid in both models unless ``reference_layers`` are given; None takes three in each,
            at a third, two thirds and the end of its stages.
        reference_layers: the same depths of the reference, where its modules have other names.
        iterations: steps of each reconstruction (paper: 201).
        learning_rate: of images of 224 x 224 centred pixels; scales with their area, as gradients do inversely.
        reference_learning_rate: None is the same; another one confounds the comparison as published.
        power_weight, tv_weight: of the two penalties.
        protocol: ``"sound"`` or ``"paper"``; nothing differs.
        progress: show progress bars in the terminal.

    Raises:
        UserError: models that eat images of different sizes, a layer that one of them lacks, no stages found, lists of
            layers of different lengths, or an option out of range.

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

    family = "visualization"
    source = "paper, model difference visualisation"
    trace_label = "Feature error"
    shown = (1,)

    def __init__(
        self,
        model: TwoViewModel,
        reference: TwoViewModel | str = "demo_supervised",
        layers: Sequence[str] | None = None,
        reference_layers: Sequence[str] | None = None,
        iterations: int = 201,
        learning_rate: float = 1e4,
        reference_learning_rate: float | None = None,
        power_weight: float = 1e-7,
        tv_weight: float = 1e-8,
        protocol: str = "sound",
        progress: bool = False,
    ) -> None:
        check_at_least(1, iterations=iterations)
        same = learning_rate if reference_learning_rate is None else reference_learning_rate
        check_positive(learning_rate=learning_rate, reference_learning_rate=same)
        super().__init__(
            model,
            protocol,
            progress,
            layers=layers,
            reference_layers=reference_layers,
            iterations=iterations,
            learning_rate=learning_rate,
            reference_learning_rate=same,
            power_weight=power_weight,
            tv_weight=tv_weight,
        )
        if isinstance(reference, str):
            reference = load_model(reference, input_size=model.input_size)
            reference.to(device_of(model))
        if not isinstance(reference, TwoViewModel):
            raise UserError(f"`reference` must be a TwoViewModel or the name of one, got {type(reference).__name__}")
        if reference.input_size != model.input_size:
            raise UserError(
                f"`reference` eats images of {reference.input_size} pixels, the model of {model.input_size}: "
                "load both with the same `input_size`"
            )
        self.reference = reference
        self.options["reference"] = {  # decides the result, so it belongs to the identity
            "weights": weights_digest(reference),
            "normalization": reference.normalization,
            "architecture": reference.architecture,
        }
        if reference_layers is None:
            reference_layers = _thirds(reference) if layers is None else layers
        layers = _thirds(model) if layers is None else layers
        for name, paths in (("layers", layers), ("reference_layers", reference_layers)):
            if isinstance(paths, str) or not len(paths) or len(set(paths)) < len(paths):
                raise UserError(f"`{name}` must be a list of different module paths, got {paths!r}")
        if len(layers) != len(reference_layers):
            raise UserError(f"`layers` and `reference_layers` must be as many, got {layers} and {reference_layers}")
        for layer, counterpart in zip(layers, reference_layers, strict=True):
            check_layer(model, layer, "layers")
            check_layer(reference, counterpart, "layers` of the `reference")
        self.options["layers"], self.options["reference_layers"] = list(layers), list(reference_layers)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        # Both views, the targets of each model, the steps and the final images; passes end at the layer.
        images = 2 * len(self.options["layers"])
        return Cost(2 + 2 + images * (self.options["iterations"] + 1), images * self.options["iterations"])

    def explain(self, pair: Pair) -> Images:
        options = self.options
        _ = pair.score  # refuses views that are not finite before the long work
        self.reference.to(pair.view1)  # whoever moved the model alone
        view = self.model.pixels(pair.view1.unsqueeze(0))
        start = (0.1 * torch.randn(view.shape, generator=pair.generator("model_difference"))).to(view)
        models = {
            "model": (self.model, options["layers"], options["learning_rate"]),
            "reference": (self.reference, options["reference_layers"], options["reference_learning_rate"]),
        }
        made, traces, frames, details = {}, {}, {}, {}
        with evaluating(self.reference):
            for who, (model, layers, rate) in models.items():
                pair.bank.forwards += 1
                targets = activations(model, eaten(view, model), layers)
                for depth, (layer, target) in enumerate(zip(layers, targets, strict=True), start=1):
                    name = f"{who}/{options['layers'][depth - 1]}"  # one column for both
                    error = _FeatureError(pair, model, layer, target)
                    film, traces[name] = self._reconstruct(pair, error, start, rate, f"{self.label}: {name}")
                    made[name], frames[name] = film[-1], film
                    details[f"{who}_error_{depth}"] = error((film[-1:] - CENTRE) / SPREAD)
                    details[f"{who}_pixel_error_{depth}"] = (film[-1] - view[0]).square().mean().sqrt()
        return Images(made, traces, frames, details)

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
                penalty = options["power_weight"] * x.pow(6).sum() + options["tv_weight"] * variation(x, 2)
                (gradient,) = pair.bank.gradients(0.1 * found + penalty, [x])
            velocity = 0.9 * velocity + gradient
            # Within valid pixels, where all models are used, and where too large a rate cannot end in infinity.
            x = clipped(x.detach() - rate * velocity)
            trace.append(found.detach())
            if step in kept:
                frames.append(to_pixels(x)[0])
        return torch.stack(frames), torch.stack(trace)


class _FeatureError:
    """``|phi(x') - phi(x)|^2 / |phi(x)|^2`` of centred pixels ``(1, 3, H, W)``, for one model and layer."""

    def __init__(self, pair: Pair, model: TwoViewModel, layer: str, target: Tensor) -> None:
        self.pair, self.model, self.layer, self.target = pair, model, layer, target

    def __call__(self, x: Tensor) -> Tensor:
        self.pair.bank.forwards += 1
        found = activation(self.model, eaten(to_pixels(x), self.model), self.layer)
        return (found - self.target).square().sum() / self.target.square().sum().clamp(min=1e-12)


def _thirds(model: TwoViewModel) -> list[str]:
    """Paths of the modules at a third, two thirds and the end of the trunk's stages."""
    if isinstance(model, HookedModel):
        names = [f"network.{name}" for name in model.stages()]
        if len(names) >= 3:
            return [names[-(-len(names) * third // 3) - 1] for third in (1, 2, 3)]
    for path in ("trunk.stages", "trunk.net", "trunk"):
        container = dict(model.named_modules()).get(path)
        if isinstance(container, nn.Sequential):
            names = [name for name, _ in container.named_children()]
            # A ResNet's stem is no stage.
            names = [name for name in names if re.fullmatch(r"layer\d+", name)] or names[path == "trunk.net" :]
            if len(names) >= 3:
                return [f"{path}.{names[-(-len(names) * third // 3) - 1]}" for third in (1, 2, 3)]
    raise NotApplicable("`layers` cannot be derived for this trunk: name modules that both models have")
