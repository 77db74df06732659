"""Grad-CAM for pairs and Interaction-CAM, from feature maps ``A`` and gradients ``G = ds/dA`` of one pair."""

import torch
from torch import Tensor

from oracles.images import min_max


def features_and_gradients(model, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``A1, A2, G1, G2``, each ``(D, h, w)``."""
    with torch.enable_grad():
        a1 = model.features(view1, view=1).detach().requires_grad_()
        a2 = model.features(view2, view=2).detach().requires_grad_()
        score = model.similarity(model.embed(a1, view=1), model.embed(a2, view=2)).sum()
        g1, g2 = torch.autograd.grad(score, [a1, a2])
    return a1.detach()[0], a2.detach()[0], g1[0], g2[0]


def gradcam(model, view1: Tensor, view2: Tensor, form: str = "elementwise") -> tuple[Tensor, Tensor]:
    """Maps ``(h, w)``.

    elementwise: ``cam[u] = sum_d A[d, u] relu(G[d, u])``; canonical: ``cam[u] = relu(sum_d A[d, u] mean_v G[d, v])``.
    """
    a1, a2, g1, g2 = features_and_gradients(model, view1, view2)
    cams = {"elementwise": _elementwise, "canonical": _canonical}[form]
    return cams(a1, g1), cams(a2, g2)


def interaction_cam(
    model,
    view1: Tensor,
    view2: Tensor,
    reduction: str,
    invariance_weight: bool,
    gradient_interaction: bool | str = False,
) -> tuple[Tensor, Tensor]:
    """Maps ``cam_i[u] = sum_d A_i[d, u] w_d relu(G_i[d, u])`` with the joint weight ``w_d = r(A1)_d r(A2)_d``.

    Args:
        reduction: ``r``: ``"mean"``, ``"max"`` or ``"attention"``.
        invariance_weight: multiply both maps by ``1 - mean |z1' - z2'|``.
        gradient_interaction: False, True, or ``"sign_consistent"`` (negative gradients are dropped beforehand).
    """
    a1, a2, g1, g2 = features_and_gradients(model, view1, view2)
    if gradient_interaction == "sign_consistent":
        g1, g2 = interacting(g1.clamp(min=0), g2.clamp(min=0))
    elif gradient_interaction:
        g1, g2 = interacting(g1, g2)
    r1, r2 = reduced(a1, reduction), reduced(a2, reduction)
    map1 = torch.zeros_like(a1[0])
    map2 = torch.zeros_like(a2[0])
    for d in range(len(a1)):
        weight = r1[d] * r2[d]
        map1 += a1[d] * weight * g1[d].clamp(min=0)
        map2 += a2[d] * weight * g2[d].clamp(min=0)
    if invariance_weight:
        scalar = invariance(model, view1, view2)
        map1, map2 = map1 * scalar, map2 * scalar
    return map1, map2


def reduced(a: Tensor, reduction: str) -> list[Tensor]:
    """One number for each channel of ``(D, h, w)``."""
    if reduction == "mean":
        return [channel.mean() for channel in a]
    if reduction == "max":
        return [channel.max() for channel in a]
    places = [(y, x) for y in range(a.shape[1]) for x in range(a.shape[2])]
    query = torch.stack([channel.mean() for channel in a])
    attention = torch.stack([(query * a[:, y, x]).sum() for y, x in places]).softmax(dim=0)
    return [sum(attention[n] * channel[y, x] for n, (y, x) in enumerate(places)) for channel in a]


def interacting(g1: Tensor, g2: Tensor) -> tuple[Tensor, Tensor]:
    """``Gamma = sum_u G1[:, u] G2[:, u]^T``; each channel gets its largest entry of Gamma, the same at every place."""
    gamma = torch.zeros(len(g1), len(g2), dtype=g1.dtype)
    for y in range(g1.shape[1]):
        for x in range(g1.shape[2]):
            gamma += torch.outer(g1[:, y, x], g2[:, y, x])
    new1, new2 = torch.zeros_like(g1), torch.zeros_like(g2)
    for d in range(len(g1)):
        new1[d] = gamma[d, :].max()
    for d in range(len(g2)):
        new2[d] = gamma[:, d].max()
    return new1, new2


@torch.no_grad()
def invariance(model, view1: Tensor, view2: Tensor) -> float:
    """``1 - mean |z1' - z2'|``, ``z'`` the embedding min-max scaled."""
    z1, z2 = min_max(model(view1, view=1)[0]), min_max(model(view2, view=2)[0])
    return 1 - (z1 - z2).abs().mean().item()


def _elementwise(a: Tensor, g: Tensor) -> Tensor:
    cam = torch.zeros_like(a[0])
    for d in range(len(a)):
        cam += a[d] * g[d].clamp(min=0)
    return cam


def _canonical(a: Tensor, g: Tensor) -> Tensor:
    cam = torch.zeros_like(a[0])
    for d in range(len(a)):
        cam += a[d] * g[d].mean()
    return cam.clamp(min=0)
