"""Passes through a network that stop at a layer, or begin at one; nothing of the network is changed for longer."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twinsight.errors import UserError

Arguments = tuple[Tensor, ...]


@dataclass
class Trace:
    """How one image went through a network.

    Attributes:
        outputs: what each module answered first, by path, in the order in which they finished: an empty tensor of its
            shape and type on the meta device, None where it was no tensor.
        runs: how often each module ran.
    """

    outputs: dict[str, Tensor | None] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def shape(self, layer: str, runs: int, argument: str) -> tuple[int, ...]:
        """The shape of what ``layer`` answers.

        Raises:
            UserError: it does not run as often as ``runs``, or gives no tensor.
        """
        if self.runs.get(layer, 0) != runs:
            raise UserError(
                f"`{argument}={layer}` runs {self.runs.get(layer, 0)} times in one pass: choose one that runs "
                + ("once" if runs == 1 else f"{runs} times, once for each view")
            )
        output = self.outputs[layer]
        if output is None:
            raise UserError(f"`{argument}={layer}` must give a tensor: choose a layer inside it, or around it")
        return tuple(output.shape)

    def dtype(self, layer: str) -> torch.dtype:
        """The type of what ``layer`` answers."""
        output = self.outputs[layer]
        assert output is not None
        return output.dtype

    def before(self, layer: str) -> dict[str, Tensor]:
        """Modules that have finished when ``layer`` has, outermost alone, with their outputs; none inside ``layer``.

        None whose output has no place for the batch in front, or that ran more often than the layer.
        """
        found: dict[str, Tensor] = {}
        for path, output in self.outputs.items():
            if path == layer:
                break
            if output is None or output.ndim == 0 or len(output) != 1 or self.runs[path] != self.runs[layer]:
                continue
            if not path.startswith(f"{layer}."):
                found[path] = output
        return {path: output for path, output in found.items() if not any(path.startswith(f"{o}.") for o in found)}


def traced(network: nn.Module, arguments: Arguments) -> Trace:
    """The trace of a pass of one image."""
    trace = Trace()

    def finished(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            trace.runs[path] = trace.runs.get(path, 0) + 1
            trace.outputs.setdefault(path, output.to("meta") if isinstance(output, Tensor) else None)

        return hook

    with ExitStack() as hooks:
        for path, module in network.named_modules():
            if path:
                hooks.callback(module.register_forward_hook(finished(path)).remove)
        network(*arguments)
    return trace


def read(network: nn.Module, arguments: Arguments, layer: str, run: int = 0) -> Tensor:
    """What ``layer`` answers in its run number ``run``; the pass ends there."""
    seen = 0

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == run + 1:
            raise _Reached(output)

    handle = network.get_submodule(layer).register_forward_hook(hook)
    try:
        network(*arguments)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise UserError(
        f"`{layer}` runs {seen} times in one pass, not {run + 1}: choose a layer that every pass goes through"
    )


def resumed(
    network: nn.Module,
    blank: Arguments,
    trace: Trace,
    layer: str,
    output: Tensor,
    run: int = 0,
    until: str | None = None,
) -> Any:
    """What the network answers where ``layer`` answers ``output`` in its run ``run``; nothing before it is computed.

    Args:
        blank: images in place of the real ones.
        trace: of the network.
        until: a module whose answer in that run is wanted instead of the network's; the pass ends there.
    """
    like = trace.outputs[layer]
    assert like is not None
    with ExitStack() as stand_ins:
        for path, found in trace.before(layer).items():
            stand_ins.enter_context(_standing_in(network.get_submodule(path), _blanks(found, output)))
        other = _blanks(like, output)
        stand_ins.enter_context(
            _standing_in(network.get_submodule(layer), lambda seen: output if seen == run else other(seen))
        )
        return network(*blank) if until is None else read(network, blank, until, run)


def entered(
    network: nn.Module, blank: Arguments, trace: Trace, layer: str, given: Tensor, until: str | None = None
) -> Any:
    """What the network answers where ``layer`` is given ``given``; nothing before is computed. As :func:`resumed`."""
    with ExitStack() as stand_ins:
        for path, found in trace.before(layer).items():
            stand_ins.enter_context(_standing_in(network.get_submodule(path), _blanks(found, given)))
        hook = network.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: (given, *inputs[1:]))
        stand_ins.callback(hook.remove)
        return network(*blank) if until is None else read(network, blank, until)


def given_to(network: nn.Module, arguments: Arguments, layer: str) -> Tensor:
    """What ``layer`` is given first; the pass ends there."""

    def hook(module: nn.Module, inputs: Any) -> None:
        raise _Reached(inputs[0])

    handle = network.get_submodule(layer).register_forward_pre_hook(hook)
    try:
        network(*arguments)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise UserError(f"`{layer}` does not run: choose a layer that every pass takes")


def decisive(
    network: nn.Module, arguments: Arguments, trace: Trace, embedding: Callable[[Arguments], Tensor]
) -> list[tuple[str, Tensor]]:
    """Layers that run once and whose output the embedding depends on, the last first, with the gradients there.

    None where the embedding has no gradient, since the network cuts it off.
    """
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, Tensor) and output.requires_grad:
                kept[path] = output
                return output.clone()  # the next layer may work in place
            return None

        return hook

    candidates = [path for path, output in trace.outputs.items() if output is not None and trace.runs[path] == 1]
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as hooks:
        for path in candidates:
            hooks.callback(network.get_submodule(path).register_forward_hook(keep(path)).remove)
        images = tuple(image.clone().requires_grad_() for image in arguments)
        z = embedding(tuple(image.clone() for image in images)).float()
        if not z.requires_grad:
            return []
        weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
        gradients = torch.autograd.grad((z * weights).sum(), list(kept.values()), allow_unused=True)
    found = zip(kept, gradients, strict=True)
    return [(path, gradient) for path, gradient in reversed(list(found)) if gradient is not None and gradient.any()]


def _blanks(like: Tensor, batch: Tensor) -> Callable[[int], Tensor]:
    return lambda run: torch.zeros(len(batch), *like.shape[1:], dtype=like.dtype, device=batch.device)


class _Reached(Exception):
    """Carries an output out of a pass that need not go on."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@contextmanager
def _standing_in(module: nn.Module, answer: Callable[[int], Tensor]) -> Iterator[None]:
    """Inside the block ``module`` computes nothing and answers ``answer(run)``; hooks on it are not told."""
    seen = 0

    def forward(*arguments: Any, **options: Any) -> Tensor:
        nonlocal seen
        seen += 1
        return answer(seen - 1)

    names = ("forward", "_forward_hooks", "_forward_pre_hooks")
    own = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        vars(module).update(forward=forward, _forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(own)
