"""Guided backpropagation: gradients lose their negative part at every ReLU (Springenberg et al. 2015)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from twinsight.errors import NotApplicable, unknown
from twinsight.models import TwoViewModel, evaluating, ways_of

Guided = Literal["none", "modules", "all"]
GUIDED = ("none", "modules", "all")
_RELUS = frozenset(["relu", "relu6"])
_OTHERS = frozenset(
    [
        *("celu", "elu", "gelu", "glu", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu", "rrelu"),
        *("selu", "silu", "softplus", "softsign", "threshold", "tanh", "hardsigmoid", "softshrink", "hardshrink"),
        "tanhshrink",
    ]
)


@contextmanager
def guiding(model: nn.Module, guided: Guided) -> Iterator[None]:
    """What the network computes inside the block has guided gradients; what it computes is the same.

    Inside, each ReLU clamps the gradient that arrives at its output to be non-negative. ``"modules"`` guides ReLUs
    inside ``nn.ReLU`` modules only, ``"all"`` whichever way they are written: as modules, functions, methods, in place,
    ReLU6, or a clamp at zero from below. (Not those inside scripted or compiled code, which Python does not see.) The
    guiding belongs to the graph that is built: backward passes may follow after the block. Hooks that tell modules are
    gone afterwards, also when something raises.

    >>> network, x = nn.Sequential(nn.ReLU(), nn.Linear(1, 1)), torch.ones(1, requires_grad=True)
    >>> _ = nn.init.constant_(network[1].weight, -2.0)
    >>> with guiding(network, "all"):
    ...     y = network(x)
    >>> torch.autograd.grad(y, x)
    (tensor([0.]),)
    """
    if guided == "none":
        yield
        return
    with _Guide(model, guided):
        yield


def check_guided(model: TwoViewModel, guided: Guided) -> None:
    """Refuse to guide networks whose gradients that would not make guided; costs a forward pass of one image.

    Raises:
        UserError: an unknown value.
        NotApplicable: an activation other than ReLU; no ReLU, or none in a module where modules are asked for. Sigmoids
            pass, since gates use them, and so does what is put together from them by hand.
    """
    if guided not in GUIDED:
        raise unknown("`guided`", guided, GUIDED)
    if guided == "none":
        return
    image = model.probe()
    with evaluating(model), torch.inference_mode(False), torch.no_grad(), _Guide(model, guided) as guide:
        for view in ways_of(model):
            model(image.clone(), view)
    if guide.others:
        names = ", ".join(sorted(guide.others))
        raise NotApplicable(
            f"`guided={guided}` needs ReLUs, and this network has others too ({names}): use guided=none"
        )
    if not guide.relus:
        raise NotApplicable(f"`guided={guided}` needs ReLUs, and this network has none: use guided=none")
    if not guide.guided:
        raise NotApplicable(
            "`guided=modules` needs nn.ReLU modules, and this network's ReLUs are functions: use guided=all or none"
        )


class _Guide(TorchFunctionMode):
    """Watches every function of PyTorch that is called, and guides the ReLUs among them.

    Attributes:
        relus: ReLUs that were called.
        guided: those of them whose gradients are guided.
        others: names of further activations.
    """

    def __init__(self, model: nn.Module, guided: Guided) -> None:
        super().__init__()
        self.relus = 0
        self.guided = 0
        self.others: set[str] = set()
        self._everywhere = guided == "all"
        self._modules = [] if self._everywhere else [part for part in model.modules() if isinstance(part, nn.ReLU)]
        self._inside = 0
        self._hooks = ExitStack()

    def __enter__(self) -> "_Guide":
        with ExitStack() as hooks:
            for module in self._modules:
                hooks.callback(module.register_forward_pre_hook(self._go_in).remove)
                hooks.callback(module.register_forward_hook(self._come_out, always_call=True).remove)
            super().__enter__()
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def _go_in(self, module: nn.Module, inputs: Any) -> None:
        self._inside += 1

    def _come_out(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._inside -= 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")  # relu_ is in place, and threshold is called _threshold
        if not _is_relu(name, args, kwargs):
            if name in _OTHERS:
                self.others.add(name)
            return func(*args, **kwargs)
        self.relus += 1
        if not (self._everywhere or self._inside):
            return func(*args, **kwargs)
        self.guided += 1
        return _guided(func, args, kwargs)


def _guided(func: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    x, rest = (args[0], args[1:]) if args else (kwargs["input"], args)
    others = {name: value for name, value in kwargs.items() if name != "input"}
    in_place = func.__name__.endswith("_") or kwargs.get("inplace") or any(value is True for value in rest)
    if not in_place:
        return _clamping(func(x, *rest, **others))
    # On a copy, then written back: were the hook on a view, gradients would pass it by on their way to its base.
    return x.copy_(_clamping(func(x.clone(), *rest, **others)))


def _clamping(y: Tensor) -> Tensor:
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient.clamp(min=0))  # lives and dies with the graph
    return y


def _is_relu(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is a ReLU, perhaps bounded above."""

    def argument(position: int, keyword: str) -> Any:
        return args[position] if len(args) > position else kwargs.get(keyword)

    if name in _RELUS:
        return True
    if name in ("clamp", "clamp_min", "clip"):
        return _is_zero(argument(1, "min"))
    if name == "hardtanh":
        return _is_zero(argument(1, "min_val"))
    return name == "threshold" and _is_zero(argument(1, "threshold")) and _is_zero(argument(2, "value"))


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0
