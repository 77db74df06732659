"""Vision transformers by their attention: rollout, and attention weighted by the gradient of the similarity."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from twinsight.errors import NotApplicable, unknown
from twinsight.explainers.base import Cost, Explainer, Maps, Pair
from twinsight.models import HookedModel, TwoViewModel, evaluating

_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda heads: heads.mean(dim=0),
    "max": lambda heads: heads.amax(dim=0),
    "min": lambda heads: heads.amin(dim=0),
}


class _AttentionExplainer(Explainer, abstract=True):
    """Shared by both: the attention of every layer, and how the tokens that are read depend on those of the image."""

    model: HookedModel

    def __init__(self, model: TwoViewModel, protocol: str, **given: Any) -> None:
        super().__init__(model, protocol, **given)
        check_attention(model)

    def explain(self, pair: Pair) -> Maps:
        map1, map2 = (self._map(pair, view) for view in (1, 2))
        return Maps(map1, map2)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(4)

    def through(self, attentions: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """``(N, N)``: what each token of the last layer takes from each token of the first.

        Args:
            attentions, gradients: ``(heads, N, N)`` of each layer, and of the similarity there.
        """
        raise NotImplementedError

    def _map(self, pair: Pair, view: int) -> Tensor:
        other = (pair.z2 if view == 1 else pair.z1).unsqueeze(0)
        with torch.enable_grad(), attending() as attentions:
            # Frozen networks build a graph only where something asks for gradients.
            z = pair.bank.encode(pair.view(view).unsqueeze(0).clone().requires_grad_(), view, own=True)
        with torch.enable_grad():
            score = self.model.similarity(z, other) if view == 1 else self.model.similarity(other, z)
            gradients = torch.autograd.grad(score.sum(), attentions)
        found = self.through([a.detach()[0].float() for a in attentions], [g[0].float() for g in gradients])
        prefix = self.model.layout.prefix_tokens
        # Rows of the last layer without a gradient are tokens that nobody reads after it.
        read = gradients[-1][0].abs().sum(dim=(0, 2)) > 0
        rows = found[read] if bool(read.any()) else found
        patches = rows.mean(dim=0)[prefix:]
        side = math.isqrt(len(patches))
        return patches.view(side, side)


class AttentionRollout(_AttentionExplainer):
    """How attention passes the tokens of the image on to those that the embedding is read from (Abnar & Zuidema 2020).

    ``product over layers of (1 - residual) * A + residual * I``, ``A`` the attention fused over heads; of that the rows
    of the tokens that are read (the class token, or the mean of all). It knows nothing of the other view: what it shows
    is where each view is looked at.

    Args:
        model: a vision transformer, read by :meth:`TwoViewModel.from_module`.
        fusion: over heads, ``"mean"`` (as published), ``"max"`` or ``"min"``.
        residual: share of the connection that passes attention by (published: 0.5).
        protocol: ``"sound"`` or ``"paper"``; nothing differs.

    Raises:
        NotApplicable: the network has no attention over all of its tokens.
        UserError: an unknown fusion.

    Maps are not negative and have the resolution of the tokens. Cost: 4 forwards, 2 of them shared, and the backward of
    the last layer.

    >>> from twinsight.models import timm_model
    >>> model = timm_model("vit_tiny_patch16_224", options={"depth": 2}, input_size=64)
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> AttentionRollout(model)(view1, view2).map1.shape
    torch.Size([1, 4, 4])
    """

    source = "Abnar & Zuidema 2020"

    def __init__(
        self,
        model: TwoViewModel,
        fusion: Literal["mean", "max", "min"] = "mean",
        residual: float = 0.5,
        protocol: str = "sound",
    ) -> None:
        if fusion not in _FUSIONS:
            raise unknown("`fusion`", fusion, _FUSIONS)
        super().__init__(model, protocol, fusion=fusion, residual=residual)

    def through(self, attentions: list[Tensor], gradients: list[Tensor]) -> Tensor:
        residual = self.options["residual"]
        total = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
        for attention in attentions:
            fused = _FUSIONS[self.options["fusion"]](attention)
            step = (1 - residual) * fused + residual * torch.eye(len(fused), device=fused.device)
            total = (step / step.sum(dim=-1, keepdim=True)) @ total
        return total


class GradientAttention(_AttentionExplainer):
    """Attention weighted by the gradient of the pair's similarity, passed on through the layers (Chefer et al. 2021).

    ``R <- R + E_h[relu(dA_h * A_h)] R`` from the first layer to the last, ``R`` the identity at first (their equations
    5 and 6), with ``dA_h`` the gradient of the similarity at the attention of head ``h``: what of each view is looked
    at *because* it makes the two alike.

    Args:
        model: a vision transformer, read by :meth:`TwoViewModel.from_module`.
        protocol: ``"sound"`` or ``"paper"``; nothing differs.

    Raises:
        NotApplicable: the network has no attention over all of its tokens.

    Maps are not negative and have the resolution of the tokens. Cost: 4 forwards, 2 of them shared, and a backward down
    to the first layer for each view.

    >>> from twinsight.models import timm_model
    >>> model = timm_model("vit_tiny_patch16_224", options={"depth": 2}, input_size=64)
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> GradientAttention(model)(view1, view2).map2.shape
    torch.Size([1, 4, 4])
    """

    title = "Gradient-weighted attention"
    source = "Chefer et al. 2021"

    def __init__(self, model: TwoViewModel, protocol: str = "sound") -> None:
        super().__init__(model, protocol)

    def through(self, attentions: list[Tensor], gradients: list[Tensor]) -> Tensor:
        total = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
        for attention, gradient in zip(attentions, gradients, strict=True):
            total = total + (gradient * attention).relu().mean(dim=0) @ total
        # What a token is to itself is no relevance of the image (their equation 8 subtracts it).
        return total - torch.eye(len(total), device=total.device)


def check_attention(model: TwoViewModel) -> None:
    """Refuse networks without attention of all tokens to all; costs a forward pass of one image.

    Raises:
        NotApplicable: there is none.
    """
    if not (isinstance(model, HookedModel) and model.layout.kind == "tokens"):
        raise NotApplicable("this needs a vision transformer whose tokens are the feature map, read by from_module")
    with evaluating(model), torch.inference_mode(False), torch.no_grad(), attending() as found:
        model(model.probe())
    prefix, width = model.layout.prefix_tokens, model.layout.width
    sizes = {tuple(attention.shape[-2:]) for attention in found}
    if sizes != {(prefix + width**2,) * 2} or any(attention.ndim != 4 or len(attention) != 1 for attention in found):
        seen = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes)) or "none"
        raise NotApplicable(
            f"attention must be of all {prefix + width**2} tokens to all in every layer, this network's is {seen}"
        )


class attending(TorchFunctionMode):
    """Inside the block attention is computed in the open, and each layer's ``(B, heads, N, N)`` kept in a list.

    Whether it is PyTorch's fused attention, ``nn.MultiheadAttention``, or a softmax over a square.

    >>> with attending() as found:
    ...     q = torch.zeros(1, 2, 3, 4)
    ...     _ = F.scaled_dot_product_attention(q, q, q)
    >>> found[0].shape, found[0][0, 0, 0, 0]
    (torch.Size([1, 2, 3, 3]), tensor(0.3333))
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __enter__(self) -> Any:
        super().__enter__()
        return self.found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            # Python code that would call itself through this mode for ever: what it calls is put in its place.
            with patch.object(F, "scaled_dot_product_attention", self._attend):
                answer, _ = func(*args, **{**kwargs, "need_weights": False})
            return answer, self.found[-1].mean(dim=1) if kwargs.get("need_weights", True) else None
        answer = func(*args, **kwargs)
        square = isinstance(answer, Tensor) and answer.ndim == 4 and answer.shape[-1] == answer.shape[-2]
        if square and getattr(func, "__name__", "") == "softmax":
            self.found.append(answer)
        return answer

    def _attend(self, *args: Any, **kwargs: Any) -> Tensor:
        weights, value = _opened(*args, **kwargs)
        self.found.append(weights)
        return weights @ value


def _opened(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention weights and values of PyTorch's fused attention, for networks in evaluation mode."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(dim=-1), value
