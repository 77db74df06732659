"""A network as many images go through it fastest: batch norm folded into convolutions, what follows them fused in.

What is folded is a copy that shares every module that did not change; the network itself stays as it is.
"""

import copy
import logging
import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from twinsight.models.fused import FoldedConvolution, fused_kernels
from twinsight.models.packed import PackedLinear
from twinsight.models.state import watched_or_training
from twinsight.models.two_view import TwoViewModel, ways_of

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest deviation of an embedding from the network's own, relative to its largest value."""
_MANY_WEIGHTS = 2**20
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
"""Functions, and methods of tensors."""
_SUMS = (operator.add, torch.add, "add")
_SUMS_IN_PLACE = (operator.iadd, "add_")


def folded(model: TwoViewModel, images: Tensor, fuse: bool = True) -> TwoViewModel | None:
    """A copy of ``model`` for batches like ``images``, with its convolutions folded; None where that is not safe.

    Batch norms in evaluation mode become part of the convolutions before them, and so do the residual sums and ReLUs
    that follow. On CPU in single precision oneDNN computes each as one kernel, with weights laid out for this size of
    batch; so it does large linear layers. Gradients go back to images, not to weights. The copy is fastest over images
    in channels-last layout.

    Not safe is a network in training mode, one with hooks (somebody watches it or changes what it computes), one that
    cannot be traced, and one whose copy answers two random images differently.

    Args:
        model: the network; it is not changed.
        images: ``(n, C, H, W)``; its shape, type and device count, not its values.
        fuse: use oneDNN's fused kernels where there are any; they know no autocast.

    >>> from twinsight.models import small_two_view
    >>> model, images = small_two_view().eval(), torch.rand(4, 3, 64, 64)
    >>> fast = folded(model, images)
    >>> any(isinstance(module, nn.BatchNorm2d) for module in fast.trunk.modules())
    False
    >>> with torch.no_grad():
    ...     torch.allclose(fast(images), model(images), atol=1e-5)
    True
    """
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not weights or watched_or_training(model.modules()):
        return None
    if any((weight.dtype, weight.device) != (images.dtype, images.device) for weight in weights):
        return None
    trial = torch.rand((2, *images.shape[1:]), generator=torch.Generator().manual_seed(0)).to(images)
    try:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            fast = _copied(model)
            if not _agree(model, fast, trial):
                return None
            if not (fuse and images.device.type == "cpu" and images.dtype == torch.float32 and fused_kernels()):
                return fast
            for module in fast.modules():
                if isinstance(module, FoldedConvolution):
                    module.pack(len(images))
            return _with_packed_head(model, fast, trial, len(images)) if _agree(model, fast, trial) else None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tracing runs code of others, which may raise whatever it likes
        log.debug("convolutions are not folded: %s: %s", type(error).__name__, error)
        return None


def _agree(model: TwoViewModel, fast: TwoViewModel, trial: Tensor) -> bool:
    return all(
        deviation(fast(trial.clone(memory_format=torch.channels_last), view), model(trial.clone(), view)) <= TOLERANCE
        for view in ways_of(model)
    )


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two tensors over the largest value of ``expected``; infinity where they do not compare.

    >>> deviation(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0])), deviation(torch.ones(1), torch.ones(2))
    (0.25, inf)
    """
    if found.shape != expected.shape:
        return math.inf
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if error == 0:
        return 0.0
    return error / largest if largest > 0 and math.isfinite(error) else math.inf


def _copied(model: TwoViewModel) -> TwoViewModel:
    """``model`` with each of its parts folded that holds convolutions; everything else is shared."""
    fast = copy.copy(model)
    fast.__dict__["_modules"] = {name: _part(part) for name, part in model._modules.items()}
    return fast


def _part(part: nn.Module | None) -> nn.Module | None:
    if part is None or not any(isinstance(module, nn.Conv2d) for module in part.modules()):
        return part
    # At the root a convolution would be traced into its own code.
    traced = fx.symbolic_trace(nn.Sequential(part) if isinstance(part, nn.Conv2d) else part)
    modules = dict(traced.named_modules())
    for index, node in enumerate(list(traced.graph.nodes)):
        convolution = _module(node, modules)
        if type(convolution) is nn.Conv2d and _is_plain(convolution) and len(node.args) == 1:
            _fold(traced, node, convolution, modules, f"folded{index}")
    _overwrite_summands(traced)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _with_packed_head(model: TwoViewModel, fast: TwoViewModel, trial: Tensor, count: int) -> TwoViewModel:
    """``fast`` with large linear layers packed too, where that is right."""
    try:
        packed: Any = _with_packed_linears(fast, count)
        return packed if packed is not fast and _agree(model, packed, trial) else fast
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a head that asks its layers for more than their weights
        log.debug("linear layers are not packed: %s: %s", type(error).__name__, error)
        return fast


def _with_packed_linears(module: nn.Module | None, count: int) -> nn.Module | None:
    """``module``, or a copy that shares all but what leads to large linear layers."""
    if type(module) is nn.Linear and module.weight.numel() >= _MANY_WEIGHTS:
        return PackedLinear(module, count)
    if module is None or isinstance(module, fx.GraphModule):
        return module
    children = {name: _with_packed_linears(child, count) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    other = copy.copy(module)
    other.__dict__["_modules"] = children
    return other


def _fold(
    traced: fx.GraphModule, node: fx.Node, convolution: nn.Conv2d, modules: Mapping[str, nn.Module], name: str
) -> None:
    """One module in the place of a convolution and what follows it, as far as nobody else asks for what is between."""
    replaced, norm, summand, relu = [node], None, None, False
    after = _only_user(node)
    if after is not None and _is_fixed_norm(_module(after, modules)):
        norm = _module(after, modules)
        replaced.append(after)
        after = _only_user(after)
    if after is not None and (summand := _summand(after, replaced[-1])) is not None:
        replaced.append(after)
        after = _only_user(after)
    if after is not None and is_relu(after, _module(after, modules)):
        replaced.append(after)
        relu = True
    traced.add_module(name, FoldedConvolution(convolution, norm, relu))  # type: ignore[arg-type]
    with traced.graph.inserting_before(replaced[-1]):
        new = traced.graph.call_module(name, (node.args[0], *([] if summand is None else [summand])))
    replaced[-1].replace_all_uses_with(new)
    for done in reversed(replaced):
        traced.graph.erase_node(done)


def _overwrite_summands(traced: fx.GraphModule) -> None:
    """Let sums take the place of what another convolution gave, where they are the last to ask for it.

    Others who ask for it are convolutions: whatever else might hand its memory on, as views do.
    """
    places = {node: place for place, node in enumerate(traced.graph.nodes)}
    modules = dict(traced.named_modules())
    folded = {node: module for node in places if isinstance(module := _module(node, modules), FoldedConvolution)}
    for node, module in folded.items():
        x, summand = (*node.args, None)[:2]
        if summand in folded and summand is not x:
            module.overwrites = all(
                user is node or (user in folded and places[user] < places[node]) for user in summand.users
            )
            module.overwrites_in_graphs = _only_user(summand) is node and not folded[summand].relu


def _module(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def is_relu(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node is a ReLU; ``module`` is what it calls, where it calls one, by whatever name."""
    return isinstance(module, nn.ReLU) if node.op == "call_module" else node.target in _RELUS


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_plain(convolution: nn.Conv2d) -> bool:
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


def _is_fixed_norm(module: nn.Module | None) -> bool:
    return type(module) is nn.BatchNorm2d and module.running_mean is not None


def _summand(node: fx.Node, mine: fx.Node) -> fx.Node | None:
    """The other summand where ``node`` adds one tensor to ``mine`` and overwrites nothing else."""
    in_place = node.target in _SUMS_IN_PLACE
    sums = node.op != "call_module" and (in_place or node.target in _SUMS)
    if not sums or len(node.args) != 2 or node.kwargs:
        return None
    if in_place and node.args[0] is not mine:
        return None
    others = [argument for argument in node.args if argument is not mine]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None
