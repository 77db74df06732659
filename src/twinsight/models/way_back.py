"""Gradients taken back through a convolution to its input."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twinsight.models.packed import PackedWeights

_FEW_CHANNELS = 4


def way_back(weight: Tensor, geometry: Any, gradient: Tensor, size: torch.Size) -> Callable[[Tensor], Tensor]:
    """What takes gradients like ``gradient`` at the output of a convolution back to its input of ``size``.

    A convolution itself where that is no slower than oneDNN's own way back, because its weights are laid out once: at
    stride 1, to the few channels of images, which fill no vector of oneDNN's, and through kernels of one pixel.
    """
    (stride, strides), padding, dilation, groups = geometry
    if weight.shape[2:] == (1, 1) and stride == strides > 1 and groups == 1 and padding == (0, 0):
        return _among_zeros(weight, stride, gradient, size)
    shuffled = stride == strides and (stride == 1 or weight.shape[1] <= _FEW_CHANNELS)
    if shuffled and groups == 1 and dilation == (1, 1) and all(map(operator.gt, weight.shape[2:], padding)):
        return _as_convolution(weight, stride, padding, gradient, size)
    laid_out: Any = {"memory_format": torch.channels_last}
    weight = weight.contiguous(**laid_out)

    def taken_back(gradient: Tensor) -> Tensor:
        # All three in channels-last layout; oneDNN else copies each to and fro, which takes as long as the product.
        like = torch.empty((len(gradient), *size[1:]), dtype=gradient.dtype, **laid_out)
        fixed = (None, (stride, strides), padding, dilation, False, (0, 0), groups, (True, False, False))
        return torch.ops.aten.convolution_backward(gradient, like, weight, *fixed)[0]

    return taken_back


def _among_zeros(weight: Tensor, stride: int, gradient: Tensor, size: torch.Size) -> Callable[[Tensor], Tensor]:
    """The way back through a kernel of one pixel, which saw every ``stride``-th pixel only."""
    found = _as_convolution(weight, 1, (0, 0), gradient, torch.Size((*size[:2], *gradient.shape[2:])))

    def taken_back(gradient: Tensor) -> Tensor:
        whole = torch.empty((len(gradient), *size[1:]), dtype=gradient.dtype, memory_format=torch.channels_last)
        whole.zero_()[..., ::stride, ::stride] = found(gradient)
        return whole

    return taken_back


def _as_convolution(
    weight: Tensor, stride: int, padding: tuple[int, int], gradient: Tensor, size: torch.Size
) -> Callable[[Tensor], Tensor]:
    """The way back as one convolution of stride 1, which makes a channel for each of ``stride**2`` places of an input.

    With ``y[o] = sum_t w[t] x[stride o + t - padding]``, the gradient at ``x[stride i + a]`` is
    ``sum_r w[stride r + a + padding] g[i - r]``: for each ``a`` a correlation of g with every stride-th weight, turned.
    """
    taps, before, around, cells = [], [], [], []
    for axis in (0, 1):
        kernel, pad, wanted = weight.shape[2 + axis], padding[axis], -(-size[2 + axis] // stride)
        last, first = (kernel - 1 - pad) // stride, -((stride - 1 + pad) // stride)
        at = stride * torch.arange(last, first - 1, -1) + torch.arange(stride).unsqueeze(1) + pad
        taps.append(torch.where((at >= 0) & (at < kernel), at, kernel))  # what is no tap is the zero put after them
        after = wanted + at.shape[1] - 1 - last - gradient.shape[2 + axis]
        before.append(last)
        around.append(max(last, after))
        cells.append(wanted)
    phases = F.pad(weight, (0, 1, 0, 1))[:, :, taps[0]][..., taps[1]]  # (out, in, stride, taps, stride, taps)
    phases = phases.permute(1, 2, 4, 0, 3, 5).flatten(0, 2)
    geometry = ((1, 1), tuple(around), (1, 1), 1)
    packed = PackedWeights(phases.contiguous(), geometry, gradient.shape[1:], len(gradient))
    top, left = (some - start for some, start in zip(around, before, strict=True))

    def taken_back(gradient: Tensor) -> Tensor:
        found = packed.convolved(gradient)[..., top : top + cells[0], left : left + cells[1]]
        return found if stride == 1 else F.pixel_shuffle(found, stride)[..., : size[2], : size[3]]

    return taken_back
