"""The small residual network behind the demo weights: made for 32 pixels, at home at 64."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class SmallResNet(nn.Module):
    """Residual network of basic blocks (He et al. 2016), stride-2 stem, feature map at an eighth of the side.

    Args:
        widths: channels of each stage; every stage but the first halves the side. (32, 64, 128) has 0.70 M parameters.
        blocks: basic blocks per stage.

    Shapes: ``(B, 3, H, W) -> (B, widths[-1], H / 8, W / 8)`` for three stages.

    >>> import torch
    >>> SmallResNet()(torch.rand(1, 3, 64, 64)).shape
    torch.Size([1, 128, 8, 8])
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128), blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], kernel_size=3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stem_relu = nn.ReLU()
        stages, channels = [], widths[0]
        for index, width in enumerate(widths):
            first = BasicBlock(channels, width, stride=1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1))))
            channels = width
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem_relu(self.stem_norm(self.stem(x))))


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + conv(relu(conv(x))))``, batch norm after each convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(hidden)))


def projection_head(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """SimCLR's two-layer projection (Chen et al. 2020, section 4.2): linear, batch norm, ReLU, linear, batch norm."""
    return nn.Sequential(
        nn.Linear(in_features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_features, bias=False),
        nn.BatchNorm1d(out_features),
    )
