"""Maps brought to [0, 1], and which of them rank nothing."""

import torch
from torch import Tensor


def degenerate(values: Tensor) -> bool:
    """True for a map that ranks nothing: constant, or with NaN or infinity."""
    return not bool(torch.isfinite(values).all()) or bool(values.max() == values.min())


def min_max(values: Tensor) -> Tensor:
    """Values of any shape scaled to [0, 1] by their minimum and maximum; zeros where they are degenerate.

    >>> min_max(torch.tensor([[-1.0, 0.0, 3.0]]))
    tensor([[0.0000, 0.2500, 1.0000]])
    """
    if degenerate(values):
        return torch.zeros_like(values)
    return (values - values.min()) / (values.max() - values.min())
