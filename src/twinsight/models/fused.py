"""Layers that oneDNN computes as one kernel each, with weights laid out as it wants them for this size of batch."""

import copy
import functools
import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

log = logging.getLogger(__name__)

_FEW_CHANNELS = 4
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
        self._packed: _LaidOut | None = None
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
        self._packed = _LaidOut(self.weight, self.geometry, shape[1:], count)
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
        weight = self._packed(len(x))
        stride, padding, dilation, groups = self.geometry
        geometry = (self.bias, padding, stride, dilation, groups)
        apart = self.relu and _keeping_nan.get()
        relu = "relu" if self.relu and not apart else None
        kernels: Any = torch.ops.mkldnn
        if summand is None:
            y = kernels._convolution_pointwise(x, weight, *geometry, relu or "none", [], "")
        elif overwrite and summand.is_contiguous(memory_format=torch.channels_last):
            y = kernels._convolution_pointwise_.binary(summand, x, weight, *geometry, "add", 1.0, relu, [], "")
        else:
            y = kernels._convolution_pointwise.binary(x, summand, weight, *geometry, "add", 1.0, relu, [], "")
        return y.relu_() if apart else y

    def taken_back(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Gradient at an input of ``size`` from that at the output of the convolution; for what has been packed."""
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if self._back is None or self._back[0] != size[1:]:
            assert self._packed is not None
            self._back = size[1:], _way_back(self._packed.plain(), self.geometry, gradient, size)
        return self._back[1](gradient)


class _LaidOut:
    """Weights of a convolution as oneDNN wants them for each number of images; one tensor where it wants the same.

    In another layout it would turn them round at each pass, which can take longer than the pass itself.

    Args:
        weight: plain.
        geometry: stride, padding, dilation and groups.
        size: ``(C, H, W)`` of an input.
        count: of inputs, to begin with.
    """

    def __init__(self, weight: Tensor, geometry: Any, size: torch.Size, count: int) -> None:
        self._geometry = geometry
        self._size = size
        self._for = {count: self._turned(weight, count)}

    def __call__(self, count: int) -> Tensor:
        """For ``count`` inputs."""
        if count not in self._for:
            with torch.inference_mode(False), torch.no_grad():
                new = self._turned(self.plain(), count)
                described: Any = torch.ops.mkldnn._get_mkldnn_serialized_md
                layout = described(new)
                alike = (known for known in list(self._for.values()) if torch.equal(described(known), layout))
                self._for[count] = next(alike, new)
        return self._for[count]

    def plain(self) -> Tensor:
        """The weights themselves."""
        return next(iter(self._for.values())).to_dense()

    def _turned(self, weight: Tensor, count: int) -> Tensor:
        stride, padding, dilation, groups = self._geometry
        turn: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        return turn(weight.to_mkldnn(), padding, stride, dilation, groups, [count, *self._size])


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


class PackedLinear(nn.Module):
    """A linear layer of which oneDNN has the weights as it wants them for ``count`` inputs; its own serve gradients.

    Where the weights are larger than the caches, as of a head 8192 wide, a pass takes a quarter of the time.
    """

    def __init__(self, linear: nn.Linear, count: int) -> None:
        super().__init__()
        self.linear = linear
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), count)

    def forward(self, x: Tensor) -> Tensor:
        return _Packed.apply(x, self)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def packed(self, x: Tensor) -> Tensor:
        """The pass without a graph."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.linear.bias, "none", [], "")


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, module: PackedLinear) -> Tensor:
        context.module = module
        return module.packed(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ context.module.linear.weight, None


def _way_back(weight: Tensor, geometry: Any, gradient: Tensor, size: torch.Size) -> Callable[[Tensor], Tensor]:
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
    convolution = nn.utils.skip_init(nn.Conv2d, phases.shape[1], len(phases), phases.shape[2:], padding=tuple(around))
    convolution.weight, convolution.bias = nn.Parameter(phases, requires_grad=False), None
    layer = FoldedConvolution(convolution, None, relu=False)
    layer.pack(len(gradient), gradient.shape)
    top, left = (some - start for some, start in zip(around, before, strict=True))

    def taken_back(gradient: Tensor) -> Tensor:
        found = layer.fused(gradient, None)[..., top : top + cells[0], left : left + cells[1]]
        return found if stride == 1 else F.pixel_shuffle(found, stride)[..., : size[2], : size[3]]

    return taken_back


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
