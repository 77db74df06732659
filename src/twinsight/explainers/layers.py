"""Modules of a model by their path: checked, tapped, and the model cut after them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from twinsight.errors import UserError, unknown
from twinsight.models import TwoViewModel


def check_layer(model: TwoViewModel, layer: str | None, argument: str = "layer") -> None:
    """Refuse a ``layer`` that is no module of ``model``; None, the trunk's output, always is.

    Raises:
        UserError: it is none, with the valid ones.

    >>> from twinsight.models import small_two_view
    >>> check_layer(small_two_view(), "trunk.stages.1")
    """
    if layer is not None and layer not in dict(model.named_modules()):
        raise unknown(f"`{argument}`", layer, (name for name, _ in model.named_modules() if name))


@contextmanager
def tapped(model: TwoViewModel, layer: str, tap: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside the block the output of ``layer`` goes through ``tap``; what that returns, unless None, goes on.

    Raises:
        UserError: inside the block the layer ran not exactly once, or gave no tensor.
    """
    runs = 0

    def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        nonlocal runs
        runs += 1
        if not isinstance(output, Tensor):
            raise UserError(f"`layer={layer}` must give a tensor, got {type(output).__name__}")
        return tap(output)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if runs != 1:
        raise UserError(f"`layer={layer}` runs {runs} times in one pass: choose one that runs once")


def activations(model: TwoViewModel, images: Tensor, layers: Sequence[str | None], view: int = 1) -> list[Tensor]:
    """Outputs ``(n, ...)`` of each of ``layers`` for ``(n, C, H, W)`` images, in one whole pass; None is the trunk's.

    Raises:
        UserError: one of them runs not exactly once, or gives no tensor.

    >>> import torch
    >>> from twinsight.models import small_two_view
    >>> [tuple(found.shape) for found in activations(small_two_view(), torch.rand(2, 3, 64, 64), ["head.2", None])]
    [(2, 128), (2, 128, 8, 8)]
    """
    found: dict[str | None, Tensor] = {}

    def keep(layer: str) -> Callable[[Tensor], None]:
        # A copy: a following in-place ReLU must not overwrite the activation.
        return lambda output: found.update({layer: output.clone()})

    with ExitStack() as taps:
        for layer in dict.fromkeys(layers):
            if layer is not None:
                taps.enter_context(tapped(model, layer, keep(layer)))
        found[None] = model.features(images, view)
        model.embed(found[None].clone(), view)
    return [found[layer] for layer in layers]


def activation(model: TwoViewModel, images: Tensor, layer: str | None, view: int = 1) -> Tensor:
    """Output ``(n, ...)`` of ``layer`` alone: the pass ends there, so that neither it nor its gradient costs more.

    A layer that runs several times gives its first output: let :func:`activations` refuse it before.
    """
    if layer is None:
        return model.features(images, view)

    def stop(output: Tensor) -> None:
        raise _Reached(output)

    try:
        with tapped(model, layer, stop):
            model(images, view)
    except _Reached as reached:
        return reached.output
    raise AssertionError("tapped() refuses layers that do not run")


class _Reached(Exception):
    """Carries an activation out of a pass that need not go on."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
