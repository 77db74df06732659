"""How time and memory grow with pairs, perturbations, side and ranks."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measure import matrix_product_peak, now, rise_of_memory
from twinsight.engine import PairBank, erased_windows
from twinsight.explainers import GradCAM
from twinsight.metrics.functional import insertion_deletion
from twinsight.models import TwoViewModel, load_model


def slopes(model: TwoViewModel, device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Log-log slopes: 1 is proportional, 0 is flat."""
    demo = load_model("demo_simclr").to(device)
    many = (100, 400, 1600) if quick else (100, 1000, 10000)
    some = (32, 64) if quick else (100, 400)
    pairs = (1, 2, 4) if quick else (1, 2, 4, 8, 16)
    sides = (112, 224) if quick else (96, 128, 160, 224)
    return [
        _slope("perturbations, demo network at 64", many, lambda n: _occluded(demo, 64, n, device), device),
        _slope("perturbations, ResNet-50 at 224", some, lambda n: _occluded(model, 224, n, device), device),
        _slope("pairs, demo network at 64", pairs, lambda n: _scored(demo, n, device), device),
        _slope("side, ResNet-50", sides, lambda n: _occluded(model, n, 32, device), device),
    ]


def _slope(of: str, counts: Sequence[int], prepare: Callable[[int], Callable[[], object]], device: torch.device) -> Any:
    seconds, memory = [], []
    for count in counts:
        work = prepare(count)
        work()
        with rise_of_memory(device) as rise:
            started = now(device)
            work()
            seconds.append(now(device) - started)
        memory.append(rise[0] if rise else 0)
    logs = np.log(counts)
    # Below a megabyte the allocator's pages are counted, not the work's.
    sizes = np.log(np.maximum(memory, 2**20))
    return {
        "of": of,
        "counts": list(counts),
        "seconds": seconds,
        "memory": memory,
        "time_slope": float(np.polyfit(logs, np.log(seconds), 1)[0]),
        "memory_slope": float(np.polyfit(logs, sizes, 1)[0]),
    }


def _occluded(model: TwoViewModel, side: int, count: int, device: torch.device) -> Callable[[], object]:
    """``count`` versions of one image through an emptied bank."""
    bank = PairBank(model)
    image = torch.rand((3, side, side), generator=torch.Generator().manual_seed(0)).to(device)
    places = torch.arange(count) * 7919  # a prime, so that windows differ
    edge = side * 2 // 7
    boxes = torch.stack([places % (side - edge), places // side % (side - edge)], dim=1)
    boxes = torch.cat([boxes, torch.full((count, 2), edge)], dim=1)

    def work() -> None:
        bank.clear()
        bank.perturbed(erased_windows(image, torch.zeros_like(image), boxes))

    return work


def _scored(model: TwoViewModel, count: int, device: torch.device) -> Callable[[], object]:
    """Grad-CAM, insertion and deletion of ``count`` pairs."""
    view1, view2 = torch.rand((2, count, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(device)

    def work() -> None:
        bank = PairBank(model)
        map1, map2 = GradCAM(model)(view1, view2, bank=bank).resized((64, 64))
        insertion_deletion(model, view1, view2, map1, map2, points=64, bank=bank)

    return work


def ranks(build: Callable[[], TwoViewModel], count: int, rounds: int) -> dict[str, float]:
    """A pair's worth of perturbations by one process of one core, and by two of them at a time, in turn.

    Returns:
        seconds of each, and how many times faster two are for twice the work; the same of matrix products, which say
        what the machine leaves to two processes. Medians of ``rounds``.
    """
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(2, timeout=600), context.Queue()
    shares = [(build, count, rounds, rank, ready, told) for rank in range(2)]
    workers = [context.Process(target=_share, args=each, daemon=True) for each in shares]
    for worker in workers:
        worker.start()
    found = [told.get(timeout=1800) for _ in workers]  # one that died says nothing
    for worker in workers:
        worker.join()
    alone, both, products_alone, products_both = (
        [max(each) for each in zip(*turns, strict=True)] for turns in zip(*found, strict=True)
    )
    return {
        "one_seconds": statistics.median(alone),
        "two_seconds": statistics.median(both),
        "speedup": _speedup(alone, both),
        "products_speedup": _speedup(products_alone, products_both),
    }


def _speedup(alone: Sequence[float], both: Sequence[float]) -> float:
    return statistics.median(2 * one / two for one, two in zip(alone, both, strict=True))


def _share(build: Callable[[], TwoViewModel], count: int, rounds: int, rank: int, ready: Any, told: Any) -> None:
    """Tells seconds of turns in which the first process works alone and in which both do, then those of products."""
    torch.set_num_threads(1)
    explaining = _occluded(build(), 224, count, torch.device("cpu"))
    works = (explaining, lambda: matrix_product_peak(torch.device("cpu"), repeats=2))
    seconds: list[list[float]] = []
    for work in works:
        work()
        alone: list[float] = []
        both: list[float] = []
        for _ in range(rounds):
            for found, busy in ((alone, rank == 0), (both, True)):
                ready.wait()
                started = time.perf_counter()
                if busy:
                    work()
                found.append(time.perf_counter() - started)
        seconds += [alone, both]
    told.put(seconds)
