"""Networks with seeded random weights; not in `__main__`, which processes that are spawned do not import."""

from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

from twinsight.models import TwoViewModel, projection_head
from twinsight.models.resnet import barlow_twins_projector, resnet_trunk
from twinsight.models.two_view import IMAGENET_NORMALIZATION


def resnet50() -> TwoViewModel:
    """ResNet-50 with SimCLR's head, seeded random weights."""
    return _model(partial(projection_head, 2048, 2048, 128))


def resnet50_with_wide_head() -> TwoViewModel:
    """ResNet-50 with Barlow Twins' projector of 8192, seeded random weights."""
    return _model(barlow_twins_projector)


def vgg16() -> TwoViewModel:
    """The convolutions of VGG-16 without a head, seeded random weights."""
    torch.manual_seed(0)
    return TwoViewModel(torchvision.models.vgg16(weights=None).features, normalization=IMAGENET_NORMALIZATION).eval()


def _model(head: Any) -> TwoViewModel:
    torch.manual_seed(0)
    projector: nn.Module = head()
    return TwoViewModel(resnet_trunk(), projector, normalization=IMAGENET_NORMALIZATION).eval()
