"""Torchvision's ResNets cut after their last feature map, and what Barlow Twins and SimSiam put on ResNet-50."""

from collections import OrderedDict

from torch import nn
from torchvision.models import get_model, get_model_builder, list_models

from twinsight.errors import unknown

RESNETS = sorted(name for name in list_models() if get_model_builder(name).__module__ == "torchvision.models.resnet")
"""Torchvision's names of its ResNets: depths, wide ones, ResNeXt."""


def resnet_trunk(name: str = "resnet50", small_stem: bool = False) -> nn.Sequential:
    """A ResNet of torchvision up to its last feature map, untrained, with torchvision's names of modules and weights.

    Args:
        name: one of ``RESNETS``.
        small_stem: for images of about 32 pixels, a 3x3 convolution of stride 1 as the first layer and no max-pooling
            (Chen et al. 2020, appendix B.9), so that the feature map is four times as wide and high.

    Shapes: ``(B, 3, H, W) -> (B, D, H / 32, W / 32)``, with the small stem ``(B, D, H / 8, W / 8)``; D is 512 for
    resnet18 and resnet34, 2048 for the others.

    Raises:
        UserError: unknown name.

    >>> import torch
    >>> with torch.device("meta"):
    ...     resnet_trunk("resnet50")(torch.rand(1, 3, 224, 224)).shape
    ...     resnet_trunk("resnet18", small_stem=True)(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 2048, 7, 7])
    torch.Size([1, 512, 4, 4])
    """
    if name not in RESNETS:
        raise unknown("torchvision ResNet", name, RESNETS)
    unused = ("avgpool", "fc", *(("maxpool",) if small_stem else ()))
    children = get_model(name, weights=None).named_children()
    trunk = nn.Sequential(OrderedDict((key, child) for key, child in children if key not in unused))
    if small_stem:
        trunk.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
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
