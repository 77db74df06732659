"""What is explained: the two-view model, architectures, trained weights."""

from twinsight.models.dino import DINOHead, StudentTeacher, dino_model
from twinsight.models.folding import TOLERANCE, deviation, folded, is_relu
from twinsight.models.fused import FoldedConvolution, keeping_nan, shifted
from twinsight.models.hooked import HookedModel
from twinsight.models.modes import evaluating
from twinsight.models.networks import from_module, huggingface_model, timm_model, torchvision_model
from twinsight.models.published import build_model, published_models
from twinsight.models.registry import (
    available_models,
    load_model,
    rounded,
    save_model,
    saved_input_size,
    small_two_view,
    weights_digest,
)
from twinsight.models.simclrv2 import SimCLRv2ResNet, simclrv2_head
from twinsight.models.simsiam import SimSiam
from twinsight.models.small_resnet import SmallResNet, projection_head
from twinsight.models.ssl_checkpoints import LoadReport, build_head, checkpoint_model, fill_network
from twinsight.models.state import State
from twinsight.models.torchvision_resnet import torchvision_resnet
from twinsight.models.two_view import (
    FOLDED_COPY,
    AveragePool,
    MaxPool,
    TwoViewModel,
    device_of,
    full_precision,
    ways_of,
)

__all__ = [
    "FOLDED_COPY",
    "TOLERANCE",
    "AveragePool",
    "DINOHead",
    "FoldedConvolution",
    "HookedModel",
    "LoadReport",
    "MaxPool",
    "SimCLRv2ResNet",
    "SimSiam",
    "SmallResNet",
    "State",
    "StudentTeacher",
    "TwoViewModel",
    "available_models",
    "build_head",
    "build_model",
    "checkpoint_model",
    "deviation",
    "device_of",
    "dino_model",
    "evaluating",
    "fill_network",
    "folded",
    "from_module",
    "full_precision",
    "huggingface_model",
    "is_relu",
    "keeping_nan",
    "load_model",
    "projection_head",
    "published_models",
    "rounded",
    "save_model",
    "saved_input_size",
    "shifted",
    "simclrv2_head",
    "small_two_view",
    "timm_model",
    "torchvision_model",
    "torchvision_resnet",
    "ways_of",
    "weights_digest",
]
