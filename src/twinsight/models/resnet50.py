"""ResNet-50 as Barlow Twins and SimSiam use it: torchvision's trunk, and their projectors and predictor."""

from collections import OrderedDict

from torch import nn
from torchvision.models import resnet50


def resnet50_trunk() -> nn.Sequential:
    """Torchvision's ResNet-50 up to its last feature map, untrained, with torchvision's names of modules and weights.

    Shapes: ``(B, 3, H, W) -> (B, 2048, H / 32, W / 32)``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     resnet50_trunk()(torch.rand(1, 3, 224, 224)).shape
    torch.Size([1, 2048, 7, 7])
    """
    children = resnet50(weights=None).named_children()
    trunk = nn.Sequential(OrderedDict((name, child) for name, child in children if name not in ("avgpool", "fc")))
    for module in trunk.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # else an activation taken before it is overwritten
    return trunk


def barlow_twins_projector(width: int = 8192) -> nn.Sequential:
    """``(B, 2048) -> (B, width)``: linear layers without bias, the last one bare (Zbontar et al. 2021, section 2.2)."""
    return nn.Sequential(
        *(nn.Linear(2048, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        nn.Linear(width, width, bias=False),
    )


def simsiam_projector(width: int = 2048) -> nn.Sequential:
    """``(B, 2048) -> (B, width)``: three linear layers (Chen & He 2021, section 3), the last normed without scale."""
    return nn.Sequential(
        *(nn.Linear(2048, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width), nn.BatchNorm1d(width, affine=False)),
    )


def simsiam_predictor(width: int = 2048, hidden: int = 512) -> nn.Sequential:
    """``(B, width) -> (B, width)`` through a bottleneck (Chen & He 2021, section 3)."""
    return nn.Sequential(
        *(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        nn.Linear(hidden, width),
    )
