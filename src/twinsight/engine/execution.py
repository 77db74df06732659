"""How passes through the network are run: in which precision, folded, compiled."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from twinsight.engine.incremental import Incremental
from twinsight.engine.perturbations import erased_windows
from twinsight.errors import UserError, unknown
from twinsight.models import (
    FOLDED_COPY,
    TOLERANCE,
    FoldedConvolution,
    State,
    TwoViewModel,
    deviation,
    device_of,
    evaluating,
    folded,
    full_precision,
    ways_of,
)

log = logging.getLogger(__name__)

CHUNK_SIZE = 16
"""Perturbed images per forward pass: on two cores as fast as 8 or 32, and a ResNet-50 stays below 300 MB."""
PRECISIONS = ("fp32", "tf32", "bf16")
CANDIDATES = (4, 8, 16, 32, 64, 128)
"""Chunk sizes that :func:`measured_chunk_size` tries."""

Pass = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Execution:
    """What a user may choose about how passes are run.

    Attributes:
        precision: ``"fp32"``: whole single precision, on GPUs too, where PyTorch alone would cut convolutions to tf32;
            ``"tf32"``: products of single precision numbers cut to 10 bits of mantissa, on GPUs that have it and
            without effect elsewhere; ``"bf16"``: autocast to bfloat16. Similarities are computed in fp32.
        compile: perturbed versions go through ``torch.compile``, on GPUs with CUDA graphs, since their chunks have one
            size; where it fails they go uncompiled, with a line in the log.
        incremental: of versions that differ within a window, compute only what the window reaches
            (:mod:`twinsight.engine.incremental`); exact but for rounding. None: on a CPU, where that saves enough.
            Without effect in bf16, compiled, and for networks that cannot be folded or compute feature maps in a way of
            their own.

    Raises:
        UserError: an unknown precision.

    >>> Execution("bf16").run(lambda x, view: x @ x, torch.rand(2, 2), 1).dtype
    torch.bfloat16
    """

    precision: str = "fp32"
    compile: bool = False
    incremental: bool | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("`engine.precision`", self.precision, PRECISIONS)

    def run(self, call: Pass, x: Tensor, view: int) -> Tensor:
        """``call(x, view)`` in this precision."""
        with self.products(x.device):
            if self.precision == "bf16":
                with torch.autocast(x.device.type, torch.bfloat16):
                    return call(x, view)
            return call(x, view)

    @contextmanager
    def products(self, device: torch.device) -> Iterator[None]:
        """Products of single precision numbers, as of backward passes, as exact as this precision says.

        On a GPU by cuDNN's deterministic algorithms only, none of them chosen by a race of timings: the same numbers
        each time. What was set before is set again afterwards.

        >>> with Execution("fp32").products(torch.device("cpu")):
        ...     pass
        """
        if device.type != "cuda":
            yield
            return
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        tf32 = self.precision == "tf32"
        wanted: tuple[tuple[Any, str, bool], ...] = (
            (products, "allow_tf32", tf32),
            (convolutions, "allow_tf32", tf32),
            (convolutions, "deterministic", True),
            (convolutions, "benchmark", False),
        )
        before = [getattr(backend, name) for backend, name, _ in wanted]
        try:
            for backend, name, value in wanted:
                setattr(backend, name, value)
            yield
        finally:
            for (backend, name, _), value in zip(wanted, before, strict=True):
                setattr(backend, name, value)


EXACT = Execution()


def fast_copy(model: TwoViewModel, images: Tensor, execution: Execution = EXACT, closely: bool = True) -> TwoViewModel:
    """What images go through that nobody watches on their way: ``model`` folded where that is safe, else itself.

    The last copy of a model is kept with it, for whoever asks next: folding takes a second. So is that there is none.

    Args:
        model: the network; it stays as it is.
        images: ``(n, C, H, W)`` like the chunks to come; their values do not count.
        execution: precision and compilation.
        closely: how to look whether the copy is still true (:class:`twinsight.models.state.State`).

    >>> from twinsight.models import small_two_view
    >>> model, images = small_two_view().eval(), torch.rand(2, 3, 64, 64)
    >>> fast_copy(model, images) is fast_copy(model, images), fast_copy(model.train(), images) is model
    (True, True)
    """
    mixed = torch.is_autocast_enabled(images.device.type)
    # Fused kernels know no autocast, and compilers fuse for themselves.
    fuse = not (mixed or execution.precision == "bf16" or execution.compile)
    kind = (images.shape, images.dtype, images.device, fuse)
    # Within the model's own dictionary: what refers to it in a circle goes when it does.
    kept: tuple[Any, State, TwoViewModel | None] | None = vars(model).get(FOLDED_COPY)
    if kept is None or kept[0] != kind or kept[1] != State(model, closely):
        forget_copy(model)  # makes room first
        # Copies are compared to 1e-5, and serve whoever builds a graph, whatever this caller does.
        with torch.inference_mode(False), EXACT.products(images.device):
            copy = folded(model, images, fuse)
        kept = vars(model)[FOLDED_COPY] = (kind, State(model, closely=True), copy)
    return model if kept[2] is None else kept[2]


def forget_copy(model: TwoViewModel) -> None:
    """Free the folded copy that is kept with ``model``."""
    vars(model).pop(FOLDED_COPY, None)


class FastNetwork:
    """What chunks of perturbed versions go through: compiled, or by the cones of their windows.

    Args:
        model: the network itself.
        network: its :func:`fast_copy`.
        images: ``(n, C, H, W)`` like the chunks to come.
        execution: precision and compilation.
    """

    def __init__(self, model: TwoViewModel, network: TwoViewModel, images: Tensor, execution: Execution) -> None:
        self.network = network
        self._compiled: Callable[..., Any] | None = None
        if execution.compile:
            self._compile(model, images, execution)
        own_way = type(model).features is not TwoViewModel.features or type(model).forward is not TwoViewModel.forward
        mixed = torch.is_autocast_enabled(images.device.type)
        exact = execution.precision != "bf16" and not mixed and self._compiled is None
        # On a GPU many small steps take longer than few large ones.
        wanted = images.device.type == "cpu" if execution.incremental is None else execution.incremental
        self._cones = wanted and exact and not own_way and network is not model
        self._only_where_it_pays = execution.incremental is None
        self._by_size: dict[tuple[int, int], bool] = {}
        self._valid: dict[Any, FoldedConvolution] = {}

    def __call__(self, images: Tensor, view: int) -> Tensor:
        if self._compiled is None:
            return self.network(images, view)
        return self._compiled(images, view).clone()  # the next pass of a CUDA graph writes over it

    def by_cones(self, image: Tensor, boxes: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What makes feature maps of versions of ``image`` (C, H, W) from them and their boxes; or None."""
        if not self._cones:
            return None
        trunk = self.network.trunk
        if not isinstance(trunk, fx.GraphModule):  # without a convolution it is not folded
            return None
        size = (int(boxes[0, 2]), int(boxes[0, 3]))
        if size not in self._by_size:
            self._by_size[size] = self._worthwhile(trunk, image, size)
        return Incremental(trunk, image, self._valid) if self._by_size[size] else None

    def _worthwhile(self, trunk: fx.GraphModule, image: Tensor, size: tuple[int, int]) -> bool:
        """Whether cones of windows of a size are right, which is tried on noise, and pay where they have to."""
        height, width = image.shape[-2:]
        boxes = torch.tensor([(0, 0, *size), (height - size[0], width - size[1], *size)])
        noise = torch.rand((2, *image.shape), generator=torch.Generator().manual_seed(0)).to(image)
        versions = erased_windows(noise[0], noise[1], boxes).versions(torch.arange(2, device=image.device))
        versions = versions.contiguous(memory_format=torch.channels_last)
        valid: dict[Any, FoldedConvolution] = {}
        try:
            cones = Incremental(trunk, noise[0], valid)
            expected = trunk(versions)
            error = deviation(cones(versions, boxes), expected)
            if error > TOLERANCE:
                raise RuntimeError(f"off by {error:.1e}")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # as for compilers: networks are not ours
            level = logging.DEBUG if self._only_where_it_pays else logging.WARNING
            log.log(level, "engine.incremental: whole passes instead (%s: %s)", type(error).__name__, error)
            return False
        worthwhile = cones.pays or not self._only_where_it_pays
        if worthwhile:
            self._valid |= valid
        return worthwhile

    def _compile(self, model: TwoViewModel, images: Tensor, execution: Execution) -> None:
        mode = "reduce-overhead" if images.device.type == "cuda" else "default"
        trial = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
        try:
            compiled = torch.compile(self.network, dynamic=False, mode=mode)
            with torch.no_grad():
                for view in ways_of(model):
                    laid_out = trial.clone(memory_format=torch.channels_last)
                    found = full_precision(execution.run(compiled, laid_out, view))
                    expected = full_precision(execution.run(model, trial[:2].clone(), view))
                    error = deviation(found[:2], expected)
                    if error > (TOLERANCE if execution.precision == "fp32" else 5e-2):
                        raise RuntimeError(f"the compiled network is off by {error:.1e}")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways: none at hand, a network they cannot follow
            reason = str(error).strip().splitlines() or [""]
            log.warning("engine.compile: running uncompiled (%s: %s)", type(error).__name__, reason[0][:200])
        else:
            self._compiled = compiled


def measured_chunk_size(
    model: TwoViewModel, device: torch.device, execution: Execution = EXACT, candidates: Sequence[int] = CANDIDATES
) -> int:
    """The smallest chunk whose images take no more than 5 % longer than at the fastest; takes some seconds.

    Larger chunks are tried while they still gain. The model is on its own device again afterwards.

    Raises:
        UserError: not even the smallest fits into memory.

    >>> from twinsight.models import small_two_view
    >>> measured_chunk_size(small_two_view(), torch.device("cpu"), candidates=(2,))
    2
    """
    home = device_of(model)
    seconds: dict[int, float] = {}
    try:
        model.to(device)
        with evaluating(model), torch.no_grad():
            for size in candidates:
                try:
                    seconds[size] = _seconds_an_image(model, device, execution, size)
                except torch.OutOfMemoryError:
                    break
                if seconds[size] > 1.2 * min(seconds.values()):
                    break
    finally:
        forget_copy(model)  # which would stay on that device
        model.to(home)
    if not seconds:
        raise UserError(f"`engine.chunk_size=auto`: not even {candidates[0]} images fit into the memory of {device}")
    return next(size for size, each in seconds.items() if each <= 1.05 * min(seconds.values()))


def forwards_per_second(model: TwoViewModel, chunk_size: int = CHUNK_SIZE, execution: Execution = EXACT) -> float:
    """Image forwards a second that a model reaches in chunks on its device, measured on three chunks after a first."""
    with evaluating(model), torch.no_grad():
        return 1 / _seconds_an_image(model, device_of(model), execution, chunk_size)


def _seconds_an_image(model: TwoViewModel, device: torch.device, execution: Execution, size: int) -> float:
    images = torch.rand(size, 3, model.input_size, model.input_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    network = FastNetwork(model, fast_copy(model, images, execution), images, execution)
    times = []
    for _ in range(4):  # the first warms up
        started = _now(device)
        execution.run(network, images, 1)
        times.append(_now(device) - started)
    return min(times[1:]) / size


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
