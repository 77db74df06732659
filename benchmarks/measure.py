"""Seconds, floating-point operations and memory of a piece of work."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

SHORT_SECONDS, MOST_ROUNDS = 8, 5
"""For each round that was asked for: below how many seconds in all there are more rounds, and how many at most."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Passes:
    """Images through the network: forward, and back to pixels (or, where parameters have gradients, to those too)."""

    forwards: float
    backwards: float = 0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forwards + other.forwards, self.backwards + other.backwards)

    def __mul__(self, times: float) -> "Passes":
        return Passes(self.forwards * times, self.backwards * times)

    @property
    def total(self) -> float:
        return self.forwards + self.backwards

    def __str__(self) -> str:
        return f"{self.forwards:,.0f} F" + (f" + {self.backwards:,.0f} b" if self.backwards else "")


@dataclass
class Work:
    """Something to time.

    Attributes:
        run: does a slice of it and says how many passes that took.
        whole: passes of all of it; seconds of the slice are scaled by the passes. None: what is run is all of it, and
            how many passes that takes is for the run to say.
        padded: passes of the slice and of the whole counted as they are computed, chunks being filled up, without those
            of ``once``; None where nothing is filled up.
        once: what the slice and the whole do just once, timed by itself so that it is not scaled; None where it is too
            little to matter.
    """

    run: Callable[[], Passes]
    whole: Passes | None
    padded: tuple[float, float] | None = None
    once: Callable[[], Passes] | None = None

    def scale(self, done: Passes, once: Passes) -> float:
        """How many times longer the whole takes than the slice, both without what is done once."""
        if self.whole is None:
            return 1.0
        if self.padded is not None:
            return self.padded[1] / self.padded[0]
        return (self.whole.total - once.total) / (done.total - once.total)


@dataclass
class Timing:
    """What came out for one :class:`Work`.

    Attributes:
        seconds: of the whole, scaled where ``sampled`` is below 1; one for each round.
        passes: of the whole.
        sampled: share of the whole that was run.
        memory: bytes by which the process, or the device, grew at most during the first run.
    """

    seconds: list[float] = field(default_factory=list)
    passes: Passes = Passes(0)
    sampled: float = 1.0
    memory: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(works: Mapping[str, Work], repeats: int, device: torch.device) -> tuple[dict[str, Timing], float]:
    """Each work in turn, ``repeats`` times, after a first round that warms up and has its memory measured.

    The speed of a shared machine doubles and halves within seconds, so that short works take more rounds
    (``SHORT_SECONDS``, ``MOST_ROUNDS``).

    Beside them what matrix products reach, in floating-point operations a second; the median.
    """
    timings = {name: Timing() for name in works}
    peaks = []
    for name, work in works.items():
        with rise_of_memory(device) as rise:
            work.run()
        timings[name].memory = rise[0] if rise else None
    begun, rounds = now(device), 0
    while rounds < repeats or (rounds < MOST_ROUNDS * repeats and now(device) - begun < SHORT_SECONDS * repeats):
        rounds += 1
        peaks.append(matrix_product_peak(device, repeats=2))
        for name, work in works.items():
            once, seconds_once = (Passes(0), 0.0) if work.once is None else _timed(work.once, device)
            done, seconds = _timed(work.run, device)
            scale = work.scale(done, once)
            timings[name].passes = done if work.whole is None else work.whole
            timings[name].seconds.append(seconds_once + (seconds - seconds_once) * scale)
            timings[name].sampled = min(1.0, 1 / scale)
    return timings, statistics.median(peaks)


def _timed(run: Callable[[], Passes], device: torch.device) -> tuple[Passes, float]:
    started = now(device)
    done = run()
    return done, now(device) - started


def now(device: torch.device) -> float:
    """Seconds, when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def operations(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Floating-point operations of one image's forward pass, a multiplication and an addition counting two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return float(counter.get_total_flops())


def matrix_product_peak(device: torch.device, side: int = 2048, repeats: int = 5) -> float:
    """Most floating-point operations per second that products of square single-precision matrices reach."""
    a, b = torch.rand(2, side, side, device=device)
    best = 0.0
    for _ in range(repeats + 1):
        started = now(device)
        _ = a @ b
        best = max(best, 2 * side**3 / (now(device) - started))
    return best


class rise_of_memory:
    """Bytes by which memory rises at most inside the block, over what it held before: the only item of the list.

    On CPU the resident memory of the process, where Linux says it; the list is empty elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: list[int] = []

    def __enter__(self) -> list[int]:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif _STATUS.exists():
            _give_back_freed_memory()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            self.before = _resident("VmRSS")
        return self.found

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.found.append(torch.cuda.max_memory_allocated(self.device) - self.before)
        elif _STATUS.exists():
            self.found.append(_resident("VmHWM") - self.before)


def _resident(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _give_back_freed_memory() -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
