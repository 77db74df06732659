"""Whether a copy that was made of a network is still true."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinsight.models.two_view import FOLDED_COPY

_NOT_TOLD = frozenset(vars(nn.Module())) | {FOLDED_COPY}
"""Attributes of every module, which are looked at one by one, and the place of the copy itself."""


def watched_or_training(modules: Iterable[nn.Module]) -> bool:
    """Whether some module has hooks, computes its weights anew each time, or is in training mode."""
    return any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "parametrizations" in module._modules
        for module in modules
    )


class State:
    """What a folded copy of ``model`` was made of; two of them are equal where a copy of one is a copy of the other.

    Its modules and tensors, their modes, and whether it has hooks. What is compared is held, so that nothing new can
    lie where something old lay.

    Args:
        model: a network.
        closely: look at what modules are told too (strides, functions), and at values of weights, since ``.data`` and
            arrays of NumPy are written to behind PyTorch's back: at sums over some rows of each, so what is written to
            a few weights alone may go unnoticed. Compared where both have looked closely.

    >>> layer = nn.Linear(2, 2)
    >>> before = State(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.zero_()
    >>> before == State(layer)
    False
    """

    def __init__(self, model: nn.Module, closely: bool = False) -> None:
        modules = tuple(model.modules())
        # Asked for by each chunk of passes: `parameters()` and `buffers()` would go through all modules once more each.
        owned = [tensor for each in modules for tensor in (*each._parameters.values(), *each._buffers.values())]
        tensors = [tensor for tensor in owned if tensor is not None]
        self._held = (*modules, *tensors)
        versions = [0 if each.is_inference() else each._version for each in tensors]
        self._plain = (watched_or_training(modules), versions, [each.data_ptr() for each in tensors])
        self._closely: tuple[str, list[str]] | None = None
        self._told: list[Any] = []
        if closely:
            told = [item for each in modules for item in vars(each).items() if item[0] not in _NOT_TOLD]
            sums = [_sum_of_some_rows(each) for each in tensors]
            # Brought over together: a GPU is waited for once.
            values = torch.stack([each.to(sums[0].device) for each in sums]).tolist() if sums else []
            self._closely = repr(values), [name for name, _ in told]
            self._told = [value for _, value in told]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State) or self._plain != other._plain or not _same(self._held, other._held):
            return False
        if self._closely is None or other._closely is None:
            return True
        return self._closely == other._closely and _same(self._told, other._told)


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _sum_of_some_rows(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    rows = tensor[:: max(1, len(tensor) // 8)] if tensor.dim() > 1 else tensor
    return rows.sum(dtype=torch.float32 if tensor.device.type == "mps" else torch.float64)  # which Apple's GPUs lack
