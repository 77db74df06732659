"""A network as many images go through it fastest: batch norm folded into convolutions, what follows them fused in.

What is folded is a copy that shares every module that did not change; the network itself stays as it is.
"""

import copy
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from twinsight.models.two_view import FOLDED_COPY, TwoViewModel

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest deviation of an embedding from the network's own, relative to its largest value or to 1."""
_FEW_CHANNELS = 4
_MANY_WEIGHTS = 2**20
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, torch.add, "add")
_SUMS_IN_PLACE = (operator.iadd, "add_")
_NOT_TOLD = frozenset(vars(nn.Module())) | {FOLDED_COPY}
"""Attributes of every module, which are looked at one by one, and the place of the copy itself."""
_keeping_nan: ContextVar[bool] = ContextVar("keeping_nan", default=False)


@contextmanager
def keeping_nan() -> Iterator[None]:
    """Let NaN through, of which a ReLU within a fused kernel makes 0; for passes whose result is looked at for NaN."""
    token = _keeping_nan.set(True)
    try:
        yield
    finally:
        _keeping_nan.reset(token)


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
    if not weights or _watched_or_training(model):
        return None
    if any((weight.dtype, weight.device) != (images.dtype, images.device) for weight in weights):
        return None
    trial = torch.rand((2, *images.shape[1:]), generator=torch.Generator().manual_seed(0)).to(images)
    views = (1,) if model.symmetric else (1, 2)
    try:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            fast = _copied(model)
            if not all(_agree(model, fast, trial, view) for view in views):
                return None
            if not (fuse and images.device.type == "cpu" and images.dtype == torch.float32 and _fused_kernels()):
                return fast
            for module in fast.modules():
                if isinstance(module, FoldedConvolution):
                    module.pack(len(images))
            if not all(_agree(model, fast, trial, view) for view in views):
                return None
            packed: Any = _with_packed_linears(fast, len(images))
            return packed if packed is not fast and all(_agree(model, packed, trial, view) for view in views) else fast
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tracing runs code of others, which may raise whatever it likes
        log.debug("convolutions are not folded: %s: %s", type(error).__name__, error)
        return None


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
        modules, tensors = tuple(model.modules()), (*model.parameters(), *model.buffers())
        self._held = (*modules, *tensors)
        versions = [0 if each.is_inference() else each._version for each in tensors]
        self._plain = (_watched_or_training(model), versions, [each.data_ptr() for each in tensors])
        self._closely: tuple[str, list[str]] | None = None
        self._told: list[Any] = []
        if closely:
            told = [item for each in modules for item in vars(each).items() if item[0] not in _NOT_TOLD]
            sums = [_some_rows(each).sum(dtype=torch.float64) for each in tensors]
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


def _some_rows(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor[:: max(1, len(tensor) // 8)] if tensor.dim() > 1 else tensor


class FoldedConvolution(nn.Module):
    """``relu(convolution(x) + summand)`` with a batch norm inside the convolution; sum and ReLU where there were any.

    Args:
        convolution: from its own network; its weights are copied.
        norm: batch norm in evaluation mode after it, None where there is none.
        relu: whether a ReLU follows.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool) -> None:
        super().__init__()
        self.geometry: Any = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        self.kernel_size = convolution.kernel_size
        self.relu = relu
        weight, bias = convolution.weight, convolution.bias
        if norm is not None:
            weight, bias = _normed(weight, bias, norm)
        weight = weight.detach().clone(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.overwrites = False
        """Whether nobody asks for the summand afterwards, so that the sum may take its place without a graph."""
        self._shape: torch.Size | None = None
        self._sums = True
        self._packed: _LaidOut | None = None
        self._back: tuple[torch.Size, Callable[[Tensor], Tensor]] | None = None

    def forward(self, x: Tensor, summand: Tensor | None = None) -> Tensor:
        if self._packed is not None:
            graph = torch.is_grad_enabled() and (x.requires_grad or (summand is not None and summand.requires_grad))
            return _Fused.apply(x, summand, self) if graph else self.fused(x, summand, self.overwrites)
        y = F.conv2d(x, self.weight, self.bias, *self.geometry)
        self._shape = x.shape
        if summand is not None:
            self._sums = summand.shape == y.shape
            y = y + summand
        return F.relu(y, inplace=True) if self.relu else y

    def pack(self, count: int, shape: torch.Size | None = None) -> None:
        """Lay the weights out as oneDNN wants them for ``count`` inputs of ``shape``, or of that of the last pass."""
        shape = self._shape if shape is None else shape
        if shape is None or not self._sums:
            return
        self._packed = _LaidOut(self.weight, self.geometry, shape[1:], count)
        del self.weight

    def without_padding(self, shape: torch.Size) -> "FoldedConvolution":
        """The same for inputs of ``shape`` that bring what lies around them along."""
        other = copy.copy(self)
        other.__dict__["_parameters"] = dict(self._parameters)
        stride, _, dilation, groups = self.geometry
        other.geometry = (stride, (0, 0), dilation, groups)
        if self._packed is not None:
            other.weight = nn.Parameter(self._packed.plain(), requires_grad=False)
            other._packed, other._back = None, None
            other.pack(shape[0], shape)
        return other

    def fused(self, x: Tensor, summand: Tensor | None, overwrite: bool = False) -> Tensor:
        """The pass as one kernel, which may put the sum into the place of ``summand``; for what has been packed."""
        assert self._packed is not None
        weight = self._packed(len(x))
        stride, padding, dilation, groups = self.geometry
        geometry = (self.bias, padding, stride, dilation, groups)
        apart = self.relu and _keeping_nan.get()
        relu = "relu" if self.relu and not apart else None
        kernels: Any = torch.ops.mkldnn
        if summand is None:
            y = kernels._convolution_pointwise(x, weight, *geometry, relu or "none", [], "")
        elif overwrite and summand.is_contiguous(memory_format=torch.channels_last):
            y = kernels._convolution_pointwise_.binary(summand, x, weight, *geometry, "add", 1.0, relu, [], "")
        else:
            y = kernels._convolution_pointwise.binary(x, summand, weight, *geometry, "add", 1.0, relu, [], "")
        return y.relu_() if apart else y

    def taken_back(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Gradient at an input of ``size`` from that at the output of the convolution; for what has been packed."""
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if self._back is None or self._back[0] != size[1:]:
            assert self._packed is not None
            self._back = size[1:], _way_back(self._packed.plain(), self.geometry, gradient, size)
        return self._back[1](gradient)


class _LaidOut:
    """Weights of a convolution as oneDNN wants them for each number of images; one tensor where it wants the same.

    In another layout it would turn them round at each pass, which can take longer than the pass itself.

    Args:
        weight: plain.
        geometry: stride, padding, dilation and groups.
        size: ``(C, H, W)`` of an input.
        count: of inputs, to begin with.
    """

    def __init__(self, weight: Tensor, geometry: Any, size: torch.Size, count: int) -> None:
        self._geometry = geometry
        self._size = size
        self._for = {count: self._turned(weight, count)}

    def __call__(self, count: int) -> Tensor:
        """For ``count`` inputs."""
        if count not in self._for:
            with torch.inference_mode(False), torch.no_grad():
                new = self._turned(self.plain(), count)
                described: Any = torch.ops.mkldnn._get_mkldnn_serialized_md
                layout = described(new)
                alike = (known for known in list(self._for.values()) if torch.equal(described(known), layout))
                self._for[count] = next(alike, new)
        return self._for[count]

    def plain(self) -> Tensor:
        """The weights themselves."""
        return next(iter(self._for.values())).to_dense()

    def _turned(self, weight: Tensor, count: int) -> Tensor:
        stride, padding, dilation, groups = self._geometry
        turn: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        return turn(weight.to_mkldnn(), padding, stride, dilation, groups, [count, *self._size])


class _Fused(torch.autograd.Function):
    """A fused pass whose gradient needs nothing but its output."""

    @staticmethod
    def forward(context: Any, x: Tensor, summand: Tensor | None, module: FoldedConvolution) -> Tensor:
        y = module.fused(x, summand)
        context.module, context.size, context.summed = module, x.shape, summand is not None
        context.save_for_backward(*([y] if module.relu else []))
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if context.module.relu:
            (y,) = context.saved_tensors
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        to_x = context.module.taken_back(gradient, context.size) if context.needs_input_grad[0] else None
        return to_x, gradient if context.summed else None, None


class PackedLinear(nn.Module):
    """A linear layer of which oneDNN has the weights as it wants them for ``count`` inputs; its own serve gradients.

    Where the weights are larger than the caches, as of a head 8192 wide, a pass takes a quarter of the time.
    """

    def __init__(self, linear: nn.Linear, count: int) -> None:
        super().__init__()
        self.linear = linear
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), count)

    def forward(self, x: Tensor) -> Tensor:
        return _Packed.apply(x, self)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def packed(self, x: Tensor) -> Tensor:
        """The pass without a graph."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.linear.bias, "none", [], "")


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, module: PackedLinear) -> Tensor:
        context.module = module
        return module.packed(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ context.module.linear.weight, None


def _way_back(weight: Tensor, geometry: Any, gradient: Tensor, size: torch.Size) -> Callable[[Tensor], Tensor]:
    """What takes gradients like ``gradient`` at the output of a convolution back to its input of ``size``.

    A convolution itself where that is no slower than oneDNN's own way back, because its weights are laid out once: at
    stride 1, and to the few channels of images, which fill no vector of oneDNN's.
    """
    (stride, strides), padding, dilation, groups = geometry
    shuffled = stride == strides and (stride == 1 or weight.shape[1] <= _FEW_CHANNELS)
    if shuffled and groups == 1 and dilation == (1, 1) and all(map(operator.gt, weight.shape[2:], padding)):
        return _as_convolution(weight, stride, padding, gradient, size)
    laid_out: Any = {"memory_format": torch.channels_last}
    weight = weight.contiguous(**laid_out)

    def taken_back(gradient: Tensor) -> Tensor:
        # All three in channels-last layout; oneDNN else copies each to and fro, which takes as long as the product.
        like = torch.empty((len(gradient), *size[1:]), dtype=gradient.dtype, **laid_out)
        fixed = (None, (stride, strides), padding, dilation, False, (0, 0), groups, (True, False, False))
        return torch.ops.aten.convolution_backward(gradient, like, weight, *fixed)[0]

    return taken_back


def _as_convolution(
    weight: Tensor, stride: int, padding: tuple[int, int], gradient: Tensor, size: torch.Size
) -> Callable[[Tensor], Tensor]:
    """The way back as one convolution of stride 1, which makes a channel for each of ``stride**2`` places of an input.

    With ``y[o] = sum_t w[t] x[stride o + t - padding]``, the gradient at ``x[stride i + a]`` is
    ``sum_r w[stride r + a + padding] g[i - r]``: for each ``a`` a correlation of g with every stride-th weight, turned.
    """
    taps, before, around, cells = [], [], [], []
    for axis in (0, 1):
        kernel, pad, wanted = weight.shape[2 + axis], padding[axis], -(-size[2 + axis] // stride)
        last, first = (kernel - 1 - pad) // stride, -((stride - 1 + pad) // stride)
        at = stride * torch.arange(last, first - 1, -1) + torch.arange(stride).unsqueeze(1) + pad
        taps.append(torch.where((at >= 0) & (at < kernel), at, kernel))  # what is no tap is the zero put after them
        after = wanted + at.shape[1] - 1 - last - gradient.shape[2 + axis]
        before.append(last)
        around.append(max(last, after))
        cells.append(wanted)
    phases = F.pad(weight, (0, 1, 0, 1))[:, :, taps[0]][..., taps[1]]  # (out, in, stride, taps, stride, taps)
    phases = phases.permute(1, 2, 4, 0, 3, 5).flatten(0, 2)
    convolution = nn.utils.skip_init(nn.Conv2d, phases.shape[1], len(phases), phases.shape[2:], padding=tuple(around))
    convolution.weight, convolution.bias = nn.Parameter(phases, requires_grad=False), None
    layer = FoldedConvolution(convolution, None, relu=False)
    layer.pack(len(gradient), gradient.shape)
    top, left = (some - start for some, start in zip(around, before, strict=True))

    def taken_back(gradient: Tensor) -> Tensor:
        found = layer.fused(gradient, None)[..., top : top + cells[0], left : left + cells[1]]
        return found if stride == 1 else F.pixel_shuffle(found, stride)[..., : size[2], : size[3]]

    return taken_back


def _normed(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights in which a batch norm is included, multiplied out in double precision."""
    parts = (weight, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight64, bias64, mean, variance, gain, shift = (None if part is None else part.double() for part in parts)
    assert weight64 is not None
    assert mean is not None
    assert variance is not None
    fused = fuse_conv_bn_weights(weight64, bias64, mean, variance, norm.eps, gain, shift)
    return fused[0].to(weight), fused[1].to(weight)


@cache
def _fused_kernels() -> bool:
    """Whether this PyTorch has oneDNN's kernels, which it keeps for its own compiler, and they are right."""
    with torch.random.fork_rng(devices=[]):
        x, summand = torch.rand(2, 3, 4, 6, 6)
        module, linear = FoldedConvolution(nn.Conv2d(4, 4, 3, padding=1), None, relu=True), nn.Linear(6, 2)
    try:
        expected = module(x, summand)
        module.pack(1)
        right = torch.allclose(module(x, summand), expected, atol=1e-5)  # of another number of images than laid out for
        return right and torch.allclose(PackedLinear(linear, 1)(x[0, 0]), linear(x[0, 0]), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError) as error:
        log.debug("no fused convolutions: %s", error)
        return False


def _watched_or_training(model: nn.Module) -> bool:
    return any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "parametrizations")
        for module in model.modules()
    )


def _agree(model: TwoViewModel, fast: TwoViewModel, trial: Tensor, view: int) -> bool:
    expected = model(trial.clone(), view)
    found = fast(trial.clone(memory_format=torch.channels_last), view)
    bound = TOLERANCE * max(1.0, float(expected.abs().max()))
    return found.shape == expected.shape and bool((found - expected).abs().max() <= bound)  # False for NaN


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
    if after is not None and (isinstance(_module(after, modules), nn.ReLU) or after.target in _RELUS):
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


def _module(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_plain(convolution: nn.Conv2d) -> bool:
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


def _is_fixed_norm(module: nn.Module | None) -> bool:
    return type(module) is nn.BatchNorm2d and module.running_mean is not None


def _summand(node: fx.Node, mine: fx.Node) -> fx.Node | None:
    """The other summand where ``node`` adds one tensor to ``mine`` and overwrites nothing else."""
    in_place = node.target in _SUMS_IN_PLACE
    if not (in_place or node.target in _SUMS) or len(node.args) != 2 or node.kwargs:
        return None
    if in_place and node.args[0] is not mine:
        return None
    others = [argument for argument in node.args if argument is not mine]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None
