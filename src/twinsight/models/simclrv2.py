"""SimCLRv2's networks (Chen et al. 2020, arXiv 2006.10029): deep, wide, with selective kernels as an option.

Modules are named so that their state dict has the keys of the published weights converted to PyTorch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Bottlenecks in each of the four stages, by depth."""
_EXPANSION = 4
_SELECTIVE_RATIO = 0.0625


class SimCLRv2ResNet(nn.Module):
    """The trunk: a ResNet whose stages begin with a projection shortcut, stride on the 3x3 convolution.

    The ReLU at the end of a block is a function, those inside blocks and stem are modules, as in the published network:
    whatever reaches ReLU modules only passes the block ends by.

    Args:
        depth: 50, 101 or 152.
        width: multiple of ResNet's channels; published are 1, 2 and 3.
        selective_kernels: two 3x3 branches mixed by attention (Li et al. 2019) instead of one, and a deeper stem.

    Shapes: ``(B, 3, H, W) -> (B, 2048 * width, H / 32, W / 32)``.

    >>> with torch.device("meta"):
    ...     trunk = SimCLRv2ResNet(50, width=2)
    ...     trunk(torch.rand(1, 3, 224, 224)).shape
    torch.Size([1, 4096, 7, 7])
    """

    def __init__(self, depth: int = 50, width: int = 1, selective_kernels: bool = False) -> None:
        super().__init__()
        channels = 64 * width
        layers: list[nn.Module] = [_stem(channels, selective_kernels)]
        in_channels = channels
        for index, blocks in enumerate(BLOCKS[depth]):
            layers.append(Stage(in_channels, channels * 2**index, blocks, 1 if index == 0 else 2, selective_kernels))
            in_channels = channels * 2**index * _EXPANSION
        self.net = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Stage(nn.Module):
    """Bottlenecks of one width; the first has the stride and the projection."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int, selective_kernels: bool) -> None:
        super().__init__()
        first = Bottleneck(in_channels, channels, stride, selective_kernels, projected=True)
        rest = (Bottleneck(channels * _EXPANSION, channels, 1, selective_kernels) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Bottleneck(nn.Module):
    """``relu(shortcut(x) + net(x))`` with 1x1, 3x3 and 1x1 convolutions, batch norm after each."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, selective_kernels: bool, projected: bool = False
    ) -> None:
        super().__init__()
        out_channels = channels * _EXPANSION
        self.projection = Projection(in_channels, out_channels, stride, selective_kernels) if projected else None
        middle: tuple[nn.Module, ...] = (_convolution(channels, channels, 3, stride), _norm(channels))
        if selective_kernels:
            middle = (SelectiveKernel(channels, stride),)
        self.net = nn.Sequential(
            _convolution(in_channels, channels, 1),
            _norm(channels),
            *middle,
            _convolution(channels, out_channels, 1),
            _norm(out_channels, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.projection is None else self.projection(x)
        return F.relu(shortcut + self.net(x))


class Projection(nn.Module):
    """Shortcut of the first block of a stage; beside selective kernels it averages before it convolves."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, selective_kernels: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module = _convolution(in_channels, out_channels, 1, stride)
        if selective_kernels:
            self.shortcut = nn.Sequential(
                nn.ZeroPad2d((0, 1, 0, 1)),
                nn.AvgPool2d(2, stride),
                _convolution(in_channels, out_channels, 1),
            )
        self.bn = _norm(out_channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.shortcut(x))


class SelectiveKernel(nn.Module):
    """Two 3x3 branches, summed with weights per channel that their pooled sum decides; in place of a convolution.

    Shapes: ``(B, C, H, W) -> (B, C, H / stride, W / stride)``.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        squeezed = max(int(channels * _SELECTIVE_RATIO), 32)
        self.main_conv = nn.Sequential(_convolution(channels, 2 * channels, 3, stride), _norm(2 * channels))
        self.mixing_conv = nn.Sequential(
            _convolution(channels, squeezed, 1), _norm(squeezed), _convolution(squeezed, 2 * channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack(self.main_conv(x).chunk(2, dim=1), dim=1)
        pooled = branches.sum(dim=1).mean(dim=(-2, -1), keepdim=True)
        weights = self.mixing_conv(pooled).unflatten(1, (2, -1)).softmax(dim=1)
        return (branches * weights).sum(dim=1)


def simclrv2_head(features: int, embedding: int = 128) -> nn.Module:
    """SimCLRv2's three-layer projection: linear without bias and batch norm, ReLU after the first two.

    Shapes: ``(B, features) -> (B, embedding)``.
    """
    return nn.Sequential(
        *(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()),
        *(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()),
        *(nn.Linear(features, embedding, bias=False), nn.BatchNorm1d(embedding)),
    )


def _stem(channels: int, selective_kernels: bool) -> nn.Module:
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if not selective_kernels:
        return nn.Sequential(_convolution(3, channels, 7, 2), _norm(channels), pool)
    half = channels // 2
    return nn.Sequential(
        *(_convolution(3, half, 3, 2), _norm(half)),
        *(_convolution(half, half, 3), _norm(half)),
        *(_convolution(half, channels, 3), _norm(channels)),
        pool,
    )


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=False)


def _norm(channels: int, relu: bool = True) -> nn.Sequential:
    norm = nn.BatchNorm2d(channels)
    return nn.Sequential(norm, nn.ReLU()) if relu else nn.Sequential(norm)
