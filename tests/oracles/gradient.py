"""Gradients of the similarity at the pixels, taken back layer by layer by hand, one image and one sample at a time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oracles.images import gaussian_blur


class ResidualBlock(nn.Module):
    """``relu(x + net(x))``; the ReLU at its end is a function, as in SimCLRv2."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.net(x))


def layers(model, view: int) -> list[nn.Module]:
    """Everything from pixels to embedding, in order."""
    found = [*model.trunk, model.pool, *model.head]
    if view == 1 and hasattr(model, "predictor"):
        found.append(model.predictor)
    return found


def taken_back(layer: nn.Module, x: Tensor, gradient: Tensor, guided: str) -> Tensor:
    """Gradient at the input ``x`` of one layer from that at its output.

    ``guided``: clamp gradients at the output of ReLU ``"modules"``, at ``"all"`` ReLUs, or at ``"none"``.
    """
    if isinstance(layer, nn.ReLU):
        if guided in ("modules", "all"):
            gradient = gradient.clamp(min=0)
        return gradient * (x > 0)
    if isinstance(layer, ResidualBlock):
        total = x + layer.net(x)
        if guided == "all":
            gradient = gradient.clamp(min=0)
        gradient = gradient * (total > 0)
        return gradient + taken_back_through(list(layer.net), x, gradient, guided)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x), x, gradient)[0]


@torch.no_grad()
def taken_back_through(chain: list[nn.Module], x: Tensor, gradient: Tensor, guided: str) -> Tensor:
    """Gradient at the input ``x`` of a chain of layers from that at its output."""
    inputs = []
    for layer in chain:
        inputs.append(x)
        x = layer(x)
    for layer, before in zip(reversed(chain), reversed(inputs), strict=True):
        gradient = taken_back(layer, before, gradient, guided)
    return gradient


def gradients(model, x1: Tensor, x2: Tensor, guided: str) -> tuple[Tensor, Tensor]:
    """``ds(f(x1), f(x2))/dx1`` and ``ds(f(x1), f(x2))/dx2``; x2 goes the way of view 2."""
    with torch.enable_grad():
        z1, z2 = (model(x, view=v).detach().requires_grad_() for v, x in ((1, x1), (2, x2)))
        to_z1, to_z2 = torch.autograd.grad(model.similarity(z1, z2).sum(), [z1, z2])
    g1 = taken_back_through(layers(model, 1), x1, to_z1, guided)
    g2 = taken_back_through(layers(model, 2), x2, to_z2, guided)
    return g1, g2


def saliency(x: Tensor, gradient: Tensor, blur: bool) -> Tensor:
    """``max_channel |x * gradient|`` of ``(1, C, H, W)``, as ``(H, W)``."""
    channels = [(x[:, c : c + 1] * gradient[:, c : c + 1]).abs() for c in range(x.shape[1])]
    largest = channels[0]
    for channel in channels[1:]:
        largest = torch.where(channel > largest, channel, largest)
    if blur:
        largest = gaussian_blur(largest)
    return largest[0, 0]


def input_x_gradient(model, x1: Tensor, x2: Tensor, guided: str = "none", blur: bool = False) -> tuple[Tensor, Tensor]:
    g1, g2 = gradients(model, x1, x2, guided)
    return saliency(x1, g1, blur), saliency(x2, g2, blur)


def smoothgrad(
    model,
    x1: Tensor,
    x2: Tensor,
    noise1: list[Tensor],
    noise2: list[Tensor],
    guided: str = "none",
    blur: bool = False,
) -> tuple[Tensor, Tensor]:
    """``noise1[n]`` and ``noise2[n]`` are added to view 1 and view 2 for sample n."""
    sum1, sum2 = torch.zeros_like(x1), torch.zeros_like(x2)
    for e1, e2 in zip(noise1, noise2, strict=True):
        g1, g2 = gradients(model, x1 + e1, x2 + e2, guided)
        sum1, sum2 = sum1 + g1, sum2 + g2
    return saliency(x1, sum1 / len(noise1), blur), saliency(x2, sum2 / len(noise2), blur)


def averaged_transforms(
    model,
    x1: Tensor,
    x2: Tensor,
    lambdas: list[float],
    noise: list[Tensor] | None = None,
    guided: str = "none",
    blur: bool = False,
) -> tuple[Tensor, Tensor]:
    """View 1 against ``l * x1 + (1 - l) * x2`` for every ``l < 1``; ``noise[n]`` is added to the n-th of them."""
    sum1, sum2 = torch.zeros_like(x1), torch.zeros_like(x2)
    count = 0
    for weight in lambdas:
        if weight == 1:
            continue
        last = weight * x1 + (1 - weight) * x2
        mixed = last if noise is None else last + noise[count]
        g1, g2 = gradients(model, x1, mixed, guided)
        sum1, sum2 = sum1 + g1, sum2 + g2
        count += 1
    return saliency(x1, sum1 / count, blur), saliency(last, sum2 / count, blur)


def deviation(view: Tensor, level: float, protocol: str) -> float:
    """Standard deviation of SmoothGrad's noise."""
    spread = (view.max() - view.min()).item()
    return {"paper": level / spread, "sound": level * spread}[protocol]
