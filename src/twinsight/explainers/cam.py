"""Class activation maps for pairs: feature maps weighted by how they make the views similar."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from twinsight.engine import min_max
from twinsight.errors import unknown
from twinsight.explainers.base import Cost, Explainer, Pair
from twinsight.explainers.layers import check_layer, tapped
from twinsight.models import TwoViewModel

Activations = tuple[Tensor, Tensor]


class _ActivationExplainer(Explainer):
    """Shared by the CAMs: activations of both views at a layer, and the gradients of the similarity there."""

    def __init__(self, model: TwoViewModel, layer: str | None, protocol: str, **given: Any) -> None:
        super().__init__(model, protocol, layer=layer, **given)
        check_layer(model, layer)

    def explain(self, pair: Pair) -> Activations:
        activations, gradients = self._activations_and_gradients(pair)
        return self.combine(pair, activations, gradients)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(2) if self.options["layer"] is None else Cost(4)

    def combine(self, pair: Pair, activations: Activations, gradients: Activations) -> Activations:
        """Maps ``(h, w)`` from activations and gradients ``(D, h, w)`` of both views."""
        raise NotImplementedError

    def _activations_and_gradients(self, pair: Pair) -> tuple[Activations, Activations]:
        layer = self.options["layer"]
        with torch.enable_grad():
            if layer is None:
                # The trunk's own output: shared with everyone through the bank, and only the head needs gradients.
                a1, a2 = (pair.features(view).unsqueeze(0).requires_grad_() for view in (1, 2))
                # Copies go on: a head that works in place must not overwrite what is explained.
                z1, z2 = self.model.embed(a1.clone(), 1), self.model.embed(a2.clone(), 2)
            else:
                a1, z1 = _cut(pair, layer, 1)
                a2, z2 = _cut(pair, layer, 2)
            score = self.model.similarity(z1, z2).sum()
            gradients = torch.autograd.grad(score, (a1, a2))
        on_image = self.model.on_image
        return (on_image(a1.detach()[0]), on_image(a2.detach()[0])), (
            on_image(gradients[0][0]),
            on_image(gradients[1][0]),
        )


class GradCAM(_ActivationExplainer):
    """Grad-CAM of the pair's similarity (the paper's baseline; Selvaraju et al. 2017).

    Args:
        model: the network to explain.
        form: ``"elementwise"``, published: ``sum_d A[d, u] relu(ds/dA[d, u])``; ``"canonical"``: the gradient is
            averaged over space first and the ReLU is on the result. None is canonical (sound) or elementwise (paper).
        layer: path of the module whose output is explained (``model.get_submodule``); None is the trunk's output.
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: unknown form or layer.

    Maps are non-negative where activations are. Cost: 2 forwards (shared) and one backward through the head; with
    ``layer``, 2 forwards more and a backward down to it.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> GradCAM(small_two_view())(view1, view2).map1.shape
    torch.Size([1, 8, 8])
    """

    name = "gradcam"
    title = "Grad-CAM"
    source = "Selvaraju et al. 2017; the paper's baseline"
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {"form": {"paper": "elementwise", "sound": "canonical"}}

    def __init__(
        self,
        model: TwoViewModel,
        form: Literal["elementwise", "canonical"] | None = None,
        layer: str | None = None,
        protocol: str = "sound",
    ) -> None:
        super().__init__(model, layer, protocol, form=form)
        if self.options["form"] not in ("elementwise", "canonical"):
            raise unknown("`form`", form, ("elementwise", "canonical"))

    def combine(self, pair: Pair, activations: Activations, gradients: Activations) -> Activations:
        cam1, cam2 = (self._cam(a, g) for a, g in zip(activations, gradients, strict=True))
        return cam1, cam2

    def _cam(self, activation: Tensor, gradient: Tensor) -> Tensor:
        if self.options["form"] == "elementwise":
            return (activation * gradient.relu()).sum(dim=0)
        return (activation * gradient.mean(dim=(-2, -1), keepdim=True)).sum(dim=0).relu()


class InteractionCAM(_ActivationExplainer):
    """Channels weighted by what both views have in common (paper, section 3.4).

    ``cam_i[u] = sum_d A_i[d, u] * w_d * relu(G_i[d, u])`` with the joint weight ``w_d = r(A1)_d * r(A2)_d`` and
    ``G_i = ds/dA_i``.

    Args:
        model: the network to explain.
        reduction: ``r`` of a feature map over space: ``"mean"``, ``"max"``, or ``"attention"``, where the mean feature
            queries all positions and the answer is their softmax-weighted sum.
        gradient_interaction: False; True (journal version): each channel's gradient is replaced by its largest
            product with any channel of the other view, ``Gamma = sum_u G1[:, u] G2[:, u]^T``; or
            ``"sign_consistent"``: the same with negative gradients set to zero first, because a product of two
            negative gradients would otherwise count as evidence for similarity.
        invariance_weight: multiply both maps by ``1 - mean |z1' - z2'|``, ``z'`` = min-max scaled embedding. None is
            False (sound, journal) or True (paper, first version).
        layer: path of the module whose output is explained; None is the trunk's output.
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: an unknown option value or layer.

    Cost: 2 forwards (shared) and one backward through the head; with ``layer``, 2 forwards more and a backward down to
    it.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> InteractionCAM(small_two_view(), reduction="attention")(view1, view2).map2.shape
    torch.Size([1, 8, 8])
    """

    title = "Interaction-CAM"
    source = "paper, section 3.4"
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {"invariance_weight": {"paper": True, "sound": False}}

    def __init__(
        self,
        model: TwoViewModel,
        reduction: Literal["mean", "max", "attention"] = "mean",
        gradient_interaction: bool | Literal["sign_consistent"] = False,
        invariance_weight: bool | None = None,
        layer: str | None = None,
        protocol: str = "sound",
    ) -> None:
        if reduction not in _REDUCTIONS:
            raise unknown("`reduction`", reduction, _REDUCTIONS)
        if gradient_interaction not in (False, True, "sign_consistent"):
            raise unknown("`gradient_interaction`", gradient_interaction, ("false", "true", "sign_consistent"))
        super().__init__(
            model,
            layer,
            protocol,
            reduction=reduction,
            gradient_interaction=gradient_interaction,
            invariance_weight=invariance_weight,
        )

    @property
    def variant(self) -> str:
        return self.options["reduction"] + ", gradient interaction" * bool(self.options["gradient_interaction"])

    def combine(self, pair: Pair, activations: Activations, gradients: Activations) -> Activations:
        reduce = _REDUCTIONS[self.options["reduction"]]
        weight = (reduce(activations[0]) * reduce(activations[1])).view(-1, 1, 1)
        interaction = self.options["gradient_interaction"]
        if interaction:
            if interaction == "sign_consistent":
                gradients = (gradients[0].relu(), gradients[1].relu())
            constant = self.options["layer"] is None and self.model.mean_pooled
            gradients = _interacting_constant(*gradients) if constant else _interacting(*gradients)
        cam1, cam2 = ((a * weight * g.relu()).sum(dim=0) for a, g in zip(activations, gradients, strict=True))
        if self.options["invariance_weight"]:
            invariance = 1 - (min_max(pair.z1) - min_max(pair.z2)).abs().mean()
            cam1, cam2 = cam1 * invariance, cam2 * invariance
        return cam1, cam2


def _attention(activation: Tensor) -> Tensor:
    positions = activation.flatten(1)
    weights = torch.softmax(positions.mean(dim=1) @ positions, dim=0)
    return positions @ weights


_REDUCTIONS = {
    "mean": lambda activation: activation.mean(dim=(-2, -1)),
    "max": lambda activation: activation.amax(dim=(-2, -1)),
    "attention": _attention,
}


def _interacting(g1: Tensor, g2: Tensor) -> Activations:
    """Gradients ``(D, h, w)`` replaced by each channel's largest product with the other view's, ``(D, 1, 1)``."""
    products = g1.flatten(1) @ g2.flatten(1).T
    return products.amax(dim=1).view(-1, 1, 1), products.amax(dim=0).view(-1, 1, 1)


def _interacting_constant(g1: Tensor, g2: Tensor) -> Activations:
    """The same where gradients are constant over space: the products are an outer product, so O(D) suffices."""
    positions = g1.shape[-2] * g1.shape[-1]
    first, second = g1[:, :1, :1], g2[:, :1, :1]

    def largest(mine: Tensor, other: Tensor) -> Tensor:
        return positions * torch.maximum(mine * other.max(), mine * other.min())

    return largest(first, second), largest(second, first)


def _cut(pair: Pair, layer: str, view: int) -> tuple[Tensor, Tensor]:
    """Activation ``(1, D, h, w)`` of ``layer`` as a leaf, and the embedding computed from it."""
    leaves: list[Tensor] = []

    def take(output: Tensor) -> Tensor:
        leaves.append(pair.bank.model.as_map(output.detach(), f"`layer={layer}`").requires_grad_())
        # A copy goes on: a following in-place ReLU must not overwrite the activation that is explained.
        return pair.bank.model.as_output(leaves[-1].clone(), like=output)

    with tapped(pair.bank.model, layer, take):
        embedding = pair.bank.encode(pair.view(view).unsqueeze(0), view, own=True)
    return leaves[0], embedding
