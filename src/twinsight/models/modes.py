"""Modes of a network, borrowed and given back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside the block; every module's own state afterwards, even on errors.

    >>> layer = nn.Linear(2, 2)
    >>> with evaluating(layer):
    ...     layer.training, layer.weight.requires_grad
    (False, False)
    >>> layer.training, layer.weight.requires_grad
    (True, True)
    """
    trainings = [(child, child.training) for child in module.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        for child, _ in trainings:
            child.training = False
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for child, training in trainings:
            child.training = training
        for parameter, required in gradients:
            parameter.requires_grad_(required)
