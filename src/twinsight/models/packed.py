"""Weights laid out as oneDNN wants them, and the kernels that take them so."""

from typing import Any

import torch
from torch import Tensor, nn


class PackedWeights:
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

    def convolved(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        relu: bool = False,
        summand: Tensor | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """``relu(convolution(x) + summand)`` as one kernel, which may put the sum into the place of ``summand``."""
        stride, padding, dilation, groups = self._geometry
        geometry = (bias, padding, stride, dilation, groups)
        kernels: Any = torch.ops.mkldnn
        if summand is None:
            return kernels._convolution_pointwise(x, self(len(x)), *geometry, "relu" if relu else "none", [], "")
        summed: Any = (self(len(x)), *geometry, "add", 1.0, "relu" if relu else None, [], "")
        if overwrite and summand.is_contiguous(memory_format=torch.channels_last):
            return kernels._convolution_pointwise_.binary(summand, x, *summed)
        return kernels._convolution_pointwise.binary(x, summand, *summed)

    def _turned(self, weight: Tensor, count: int) -> Tensor:
        stride, padding, dilation, groups = self._geometry
        turn: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        return turn(weight.to_mkldnn(), padding, stride, dilation, groups, [count, *self._size])


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
