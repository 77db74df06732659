"""What is explained: the two-view model, architectures, trained weights."""

from twinsight.models.modes import evaluating
from twinsight.models.registry import available_models, load_model, rounded, save_model, small_two_view, weights_digest
from twinsight.models.small_resnet import SmallResNet, projection_head
from twinsight.models.two_view import AveragePool, MaxPool, TwoViewModel

__all__ = [
    "AveragePool",
    "MaxPool",
    "SmallResNet",
    "TwoViewModel",
    "available_models",
    "evaluating",
    "load_model",
    "projection_head",
    "rounded",
    "save_model",
    "small_two_view",
    "weights_digest",
]
