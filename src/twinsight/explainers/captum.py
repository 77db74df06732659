"""Any attribution of Captum, on the similarity of the pair, for both views."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinsight.engine import PairBank, check_baseline
from twinsight.engine.baselines import Baseline
from twinsight.errors import UserError, unknown
from twinsight.explainers.base import Cost, Explainer, Maps, Pair
from twinsight.explainers.layers import check_layer
from twinsight.models import TwoViewModel


class Captum(Explainer):
    """A method of Captum, applied to each view while the other view's embedding stays what it is.

    The score that is attributed is ``s(f(x1), z2)`` for view 1 and ``s(z1, f(x2))`` for view 2. Needs ``captum``.

    Args:
        model: the network to explain.
        method: name of a class in ``captum.attr``: ``IntegratedGradients``, ``DeepLift``, ``GradientShap``,
            ``Occlusion``, ``FeatureAblation``, ``KernelShap``, ``GuidedBackprop``, ``LayerGradCam``, ... Not those of
            neurons.
        options: arguments of its ``attribute``, such as ``{"n_steps": 20}``; lists become tuples.
        layer: path of the module that the methods of layers are about.
        baseline: what stands for nothing where the method asks for baselines; None is ``"blur"`` (sound) or
            ``"input_zero"`` (paper: Captum's own).
        grid: cells per side that methods of features (ablation, Shapley values, Lime) take as one feature; None is
            every pixel, or their own ``feature_mask``.
        channels: over colours, ``"sum"`` (signed) or ``"max_abs"`` the magnitude.
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: Captum is missing, an unknown method, layer or option, or a method that this network does not suit.

    Maps have the views' size, those of methods of layers the layer's. Cost: what the method takes, counted by doing it.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> explainer = Captum(small_two_view(), "IntegratedGradients", options={"n_steps": 2})
    >>> explainer(view1, view2).map1.shape, str(explainer.cost((64, 64)))
    (torch.Size([1, 64, 64]), '6 F + 4 b')
    """

    source = "captum"
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {"baseline": {"paper": "input_zero", "sound": "blur"}}

    def __init__(
        self,
        model: TwoViewModel,
        method: str = "IntegratedGradients",
        options: Mapping[str, Any] | None = None,
        layer: str | None = None,
        baseline: Baseline | None = None,
        grid: int | None = None,
        channels: Literal["sum", "max_abs"] = "sum",
        protocol: str = "sound",
    ) -> None:
        methods = _methods()
        if method not in methods:
            raise unknown("Captum `method`", method, methods)
        if channels not in ("sum", "max_abs"):
            raise unknown("`channels`", channels, ("sum", "max_abs"))
        given = {key: _plain(value) for key, value in (options or {}).items()}
        super().__init__(
            model,
            protocol,
            method=method,
            options=given,
            layer=layer,
            baseline=baseline,
            grid=grid,
            channels=channels,
        )
        check_baseline(self.options["baseline"])
        check_layer(model, layer)
        self._kind = methods[method]
        self._takes = inspect.signature(self._kind.attribute).parameters
        if method.startswith("Layer") and layer is None:
            raise UserError(f"`method={method}` needs a `layer`: the path of a module of the model")
        for name in given:
            if name not in self._takes:
                raise unknown(f"option of `method={method}`", name, [key for key in self._takes if key != "self"])

    @property
    def variant(self) -> str:
        return self.options["method"]

    def explain(self, pair: Pair) -> Maps:
        map1, map2 = (self._map(pair, view) for view in (1, 2))
        return Maps(map1, map2)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        explainer: Captum = self
        if self.options["layer"] is None:  # any network is asked as often: count on one that costs nothing
            given = {key: value for key, value in self.options.items() if key != "layer"}
            explainer = Captum(TwoViewModel(nn.Conv2d(3, 2, 1), input_size=8), **given)
        bank = PairBank(explainer.model)
        views = torch.rand(2, 1, 3, *image_size, generator=torch.Generator().manual_seed(0))
        explainer(*views.to(explainer.model.probe()), bank=bank)
        return Cost(bank.forwards, bank.backwards)

    def _map(self, pair: Pair, view: int) -> Tensor:
        score = _Score(pair, view)
        layer = self.options["layer"]
        arguments = dict(self.options["options"])
        if "baselines" in self._takes and "baselines" not in arguments:
            arguments["baselines"] = pair.baseline(self.options["baseline"], view).unsqueeze(0)
        if self.options["grid"] and "feature_mask" in self._takes:
            arguments["feature_mask"] = _cells(self.options["grid"], pair.view(view)).unsqueeze(0)
        with torch.enable_grad(), _drawing_from(pair):
            made = self._kind(score, self.model.get_submodule(layer)) if layer is not None else self._kind(score)
            image = pair.view(view).unsqueeze(0).clone().requires_grad_()
            try:
                found = made.attribute(image, **arguments)
            except (AssertionError, TypeError, ValueError, RuntimeError) as error:
                if isinstance(error, UserError | torch.OutOfMemoryError):
                    raise
                said = " ".join(str(error).split())
                raise UserError(f"`method={self.options['method']}` of Captum cannot explain this: {said}") from error
        found = found[0] if isinstance(found, tuple) else found
        if layer is not None:
            found = self.model.on_image(self.model.as_map(found, f"`layer={layer}`"))
        found = found.detach()[0]
        return found.sum(dim=0) if self.options["channels"] == "sum" else found.abs().amax(dim=0)


class _Score(nn.Module):
    """Similarity of images ``(n, C, H, W)`` with the other view of a pair, as a network that Captum can explain."""

    def __init__(self, pair: Pair, view: int) -> None:
        super().__init__()
        self.network = pair.bank.model
        self.bank = pair.bank
        self.view = view
        self.other = (pair.z2 if view == 1 else pair.z1).unsqueeze(0)

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images.register_hook(self._backwards)
        z = self.bank.encode(images.clone(), self.view, own=True)  # a copy: the network may work in place
        other = self.other.expand(len(z), -1)
        return self.network.similarity(z, other) if self.view == 1 else self.network.similarity(other, z)

    def _backwards(self, gradient: Tensor) -> None:
        self.bank.backwards += len(gradient)


@contextmanager
def _drawing_from(pair: Pair) -> Iterator[None]:
    """Inside the block PyTorch's and NumPy's global generators, which Captum draws from, are the pair's."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[pair.view1.device] if pair.view1.is_cuda else []):
            torch.manual_seed(pair.seed % 2**63)
            np.random.seed(pair.seed % 2**32)
            yield
    finally:
        np.random.set_state(state)


def _methods() -> dict[str, Any]:
    try:
        attr = importlib.import_module("captum.attr")
    except ImportError:
        raise UserError("explainer=captum needs the package `captum`: pip install 'twinsight[captum]'") from None
    bases = (attr.GradientAttribution, attr.PerturbationAttribution, attr.LayerAttribution)
    return {
        name: kind
        for name, kind in vars(attr).items()
        if isinstance(kind, type) and hasattr(kind, "attribute") and kind not in bases and not name.startswith("Neuron")
        if issubclass(kind, attr.Attribution) and kind is not attr.Attribution
    }


def _cells(side: int, view: Tensor) -> Tensor:
    """``(C, H, W)`` numbers of the ``side * side`` cells that pixels lie in."""
    numbers = torch.arange(side**2, dtype=torch.float32).view(1, 1, side, side)
    return F.interpolate(numbers, view.shape[-2:], mode="nearest")[0].long().to(view.device).expand_as(view)


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) or hasattr(value, "_content") else value
