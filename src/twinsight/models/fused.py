"""Convolutions that oneDNN computes as one kernel with the batch norm, sum and ReLU after them; there and back."""

import copy
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from twinsight.models.packed import PackedLinear, PackedWeights
from twinsight.models.way_back import way_back

log = logging.getLogger(__name__)

_SHIFT = "shift_of_all_images"
"""What :func:`shifted` leaves on the graph's node, for a convolution that is handed just its answer."""
_keeping_nan: ContextVar[bool] = ContextVar("keeping_nan", default=False)


@contextmanager
def keeping_nan() -> Iterator[None]:
    """Let NaN through, of which a ReLU within a fused kernel makes 0; for passes whose result is looked at for NaN."""
    token = _keeping_nan.set(True)
    try:
        yield
    finally:
        _keeping_nan.reset(token)


class FoldedConvolution(nn.Module):
    """``relu(convolution(x) + summand)`` with a batch norm inside the convolution; sum and ReLU where there were any.

    Args:
        convolution: from its own network; its weights are copied.
        norm: batch norm in evaluation mode after it, None where there is none.
        relu: whether a ReLU follows.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool) -> None:
        super().__init__()
        self.geometry: Any = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        self.kernel_size = convolution.kernel_size
        self.relu = relu
        weight, bias = convolution.weight, convolution.bias
        if norm is not None:
            weight, bias = _normed(weight, bias, norm)
        weight = weight.detach().clone(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.overwrites = False
        """Whether nobody asks for the summand afterwards, so that the sum may take its place without a graph."""
        self.overwrites_in_graphs = False
        """Whether it may with one too: nobody else ever asks for it, and no ReLU gave it, whose answers graphs keep."""
        self._shape: torch.Size | None = None
        self._sums = True
        self._packed: PackedWeights | None = None
        self._back: tuple[torch.Size, Callable[[Tensor], Tensor]] | None = None

    def forward(self, x: Tensor, summand: Tensor | None = None) -> Tensor:
        if self._packed is not None:
            graph = torch.is_grad_enabled() and (x.requires_grad or (summand is not None and summand.requires_grad))
            if not graph:
                return self.fused(x, summand, self.overwrites)
            shift = getattr(x.grad_fn, _SHIFT, None)
            return _Fused.apply(x if shift is None else x.detach(), summand, shift, self)
        y = F.conv2d(x, self.weight, self.bias, *self.geometry)
        self._shape = x.shape
        if summand is not None:
            self._sums = summand.shape == y.shape
            y = y + summand
        return F.relu(y, inplace=True) if self.relu else y

    def pack(self, count: int, shape: torch.Size | None = None) -> None:
        """Lay the weights out as oneDNN wants them for ``count`` inputs of ``shape``, or of that of the last pass."""
        shape = self._shape if shape is None else shape
        if shape is None or not self._sums:
            return
        self._packed = PackedWeights(self.weight, self.geometry, shape[1:], count)
        del self.weight

    def without_padding(self, shape: torch.Size) -> "FoldedConvolution":
        """The same for inputs of ``shape`` that bring what lies around them along."""
        other = copy.copy(self)
        other.__dict__["_parameters"] = dict(self._parameters)
        stride, _, dilation, groups = self.geometry
        other.geometry = (stride, (0, 0), dilation, groups)
        if self._packed is not None:
            other.weight = nn.Parameter(self._packed.plain(), requires_grad=False)
            other._packed, other._back = None, None
            other.pack(shape[0], shape)
        return other

    def fused(self, x: Tensor, summand: Tensor | None, overwrite: bool = False) -> Tensor:
        """The pass as one kernel, which may put the sum into the place of ``summand``; for what has been packed."""
        assert self._packed is not None
        apart = self.relu and _keeping_nan.get()
        y = self._packed.convolved(x, self.bias, self.relu and not apart, summand, overwrite)
        return y.relu_() if apart else y

    def taken_back(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Gradient at an input of ``size`` from that at the output of the convolution; for what has been packed."""
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if self._back is None or self._back[0] != size[1:]:
            assert self._packed is not None
            self._back = size[1:], way_back(self._packed.plain(), self.geometry, gradient, size)
        return self._back[1](gradient)


class _Fused(torch.autograd.Function):
    """A fused pass whose gradient needs nothing but its output."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, summand: Tensor | None, shift: Tensor | None, module: FoldedConvolution
    ) -> Tensor:
        y = module.fused(x, summand, module.overwrites_in_graphs)
        if y is summand:
            context.mark_dirty(summand)
        context.module, context.size, context.summed = module, x.shape, summand is not None
        context.save_for_backward(*([y] if module.relu else []))
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if context.module.relu:
            (y,) = context.saved_tensors
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        to_x = to_shift = None
        if context.needs_input_grad[0]:
            to_x = context.module.taken_back(gradient, context.size)
        if context.needs_input_grad[2]:
            to_shift = context.module.taken_back(_added_up(gradient), torch.Size((1, *context.size[1:])))
        return to_x, gradient if context.summed else None, to_shift, None


def _added_up(gradient: Tensor) -> Tensor:
    """Sum over the images, ``(1, C, H, W)``; ``Tensor.sum`` goes over channels-last memory in strides."""
    return functools.reduce(torch.add, gradient.split(1))


def shifted(images: Tensor, shift: Tensor) -> Tensor:
    """``images`` (n, C, H, W) ``+ shift`` (1, C, H, W), for those who want the gradient at ``shift``: the images' sum.

    Convolutions are linear: one with fused kernels that is handed the answer as it is adds up the gradients at its
    output and takes their sum back, not each.

    >>> images, shift = torch.rand(2, 3, 4, 4), torch.zeros(1, 3, 4, 4, requires_grad=True)
    >>> torch.autograd.grad(shifted(images, shift).sum(), shift)[0].unique()
    tensor([2.])
    """
    return _Shifted.apply(images, shift)


class _Shifted(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, shift: Tensor) -> Tensor:
        if not context.needs_input_grad[0]:
            setattr(context, _SHIFT, shift)
        return images + shift

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        return gradient if context.needs_input_grad[0] else None, gradient.sum(dim=0, keepdim=True)


def _normed(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights in which a batch norm is included, multiplied out in double precision."""
    parts = (weight, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight64, bias64, mean, variance, gain, shift = (None if part is None else part.double() for part in parts)
    assert weight64 is not None
    assert mean is not None
    assert variance is not None
    fused = fuse_conv_bn_weights(weight64, bias64, mean, variance, norm.eps, gain, shift)
    return fused[0].to(weight), fused[1].to(weight)


@functools.cache
def fused_kernels() -> bool:
    """Whether this PyTorch has oneDNN's kernels, which it keeps for its own compiler, and they are right."""
    with torch.random.fork_rng(devices=[]):
        x, summand = torch.rand(2, 3, 4, 6, 6)
        module, linear = FoldedConvolution(nn.Conv2d(4, 4, 3, padding=1), None, relu=True), nn.Linear(6, 2)
    try:
        expected = module(x, summand)
        module.pack(1)
        right = torch.allclose(module(x, summand), expected, atol=1e-5)  # of another number of images than laid out for
        return right and torch.allclose(PackedLinear(linear, 1)(x[0, 0]), linear(x[0, 0]), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError) as error:
        log.debug("no fused convolutions: %s", error)
        return False
