"""Average drop and increase in confidence of one pair whose views are masked by their own scaled maps."""

import torch
from torch import Tensor

from oracles.images import gaussian_blur, min_max


@torch.no_grad()
def average_drop(
    model, view1: Tensor, view2: Tensor, map1: Tensor, map2: Tensor, protocol: str = "paper", eps: float = 1e-6
) -> dict[str, float]:
    """``sad, sic, cad1, cad2, cad, cic1, cic2, cic``.

    paper: views are masked as ``m x`` and the drop is divided by ``s0``;
    sound: masked as ``m x + (1 - m) blur(x)`` and divided by ``max(s0, eps)``.
    """
    z1, z2 = model(view1, view=1), model(view2, view=2)
    masked1 = model(masked(view1, map1, protocol), view=1)
    masked2 = model(masked(view2, map2, protocol), view=2)
    s0 = model.similarity(z1, z2).item()
    divisor = s0 if protocol == "paper" else max(s0, eps)

    def drop(s: float) -> float:
        return max(0.0, s0 - s) / divisor

    both = model.similarity(masked1, masked2).item()
    only1 = model.similarity(masked1, z2).item()
    only2 = model.similarity(z1, masked2).item()
    result = {"sad": drop(both), "cad1": drop(only1), "cad2": drop(only2)}
    result |= {"sic": float(both > s0), "cic1": float(only1 > s0), "cic2": float(only2 > s0)}
    result["cad"] = (result["cad1"] + result["cad2"]) / 2
    result["cic"] = (result["cic1"] + result["cic2"]) / 2
    return result


def masked(view: Tensor, saliency: Tensor, protocol: str) -> Tensor:
    """The view dimmed by its min-max scaled map ``(H, W)``, towards zero (paper) or its own blur (sound)."""
    m = min_max(saliency)
    if protocol == "paper":
        return m * view
    return m * view + (1 - m) * gaussian_blur(view)
