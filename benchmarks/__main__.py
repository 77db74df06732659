"""How fast, beside what the published code does and beside other libraries: `make bench` or `python -m benchmarks`.

On two cores under 25 minutes, with `--quick` under 5. Writes docs/results/benchmarks.json and .md (`--output`).
Seconds depend on the machine and its load, ratios much less: all sides take turns in one process.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.approximations import MAPS, approximations
from benchmarks.items import SIDE, Item, by_cones, insertion_and_deletion, items, occlusion_by_cones, setting_for
from benchmarks.measure import interleaved, matrix_product_peak, operations
from benchmarks.networks import resnet50, resnet50_with_wide_head, vgg16
from benchmarks.peers import installed, peer_items
from benchmarks.precision import precisions
from benchmarks.scaling import ranks, slopes
from twinsight.data import DemoPhotos, PairDataModule, SimCLRViews
from twinsight.engine import CHUNK_SIZE, PRECISIONS, Execution
from twinsight.engine.execution import EXACT
from twinsight.models import TwoViewModel
from twinsight.models.two_view import IMAGENET_NORMALIZATION


def main() -> None:
    arguments, started = _arguments(), time.monotonic()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: no GPU is at hand; nothing was measured")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    execution = Execution(arguments.precision, arguments.compile)
    views = _views(device)
    peak = matrix_product_peak(device)
    found: dict[str, Any] = {"facts": None, "rows": [], "failed": [], "slopes": [], "ranks": None, "precisions": None}
    found["approximations"] = None

    def minutes() -> float:
        return (time.monotonic() - started) / 60

    def write(finished: bool) -> None:
        about = {"repeats": arguments.repeats, "quick": arguments.quick, "chunk_size": arguments.chunk_size}
        about |= {"precision": execution.precision, "compile": execution.compile}
        found["facts"] = {
            **report.facts(device, peak, about, {} if arguments.quick else installed()),
            "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
            "load": os.getloadavg()[2] if hasattr(os, "getloadavg") else None,
            "minutes": minutes(),
            "finished": finished,
        }
        report.write(arguments.output, found)

    def measure(network: str, model: TwoViewModel, each: Item, flops: float) -> None:
        nonlocal peak
        timings, beside = interleaved(each.works, arguments.repeats, device)
        peak = max(peak, beside)
        for compared in each.rows:
            found["rows"].append(report.row(network, compared, timings, flops, beside))
            print(f"{minutes():4.1f} min", report.summary(found["rows"][-1]), flush=True)
        write(finished=False)  # what was measured should not be lost to what comes last

    narrow = resnet50().to(device)
    flops = operations(narrow, views[0])
    setting = setting_for(narrow, views, arguments.chunk_size, arguments.quick, execution)
    for each in items(setting):
        measure("ResNet-50", narrow, each, flops)
    found["rows"] += [report.paper_table(found["rows"], approximate) for approximate in (False, True)]
    for each in [] if arguments.quick else peer_items(setting):
        try:
            measure("ResNet-50", narrow, each, flops)
        except Exception as error:  # what other libraries raise must not cost the measurements
            found["failed"].append(f"{each.rows[0].name}: {type(error).__name__}: {error}")
            print(found["failed"][-1], flush=True)
    cones = by_cones(setting, True)
    del setting
    wide = resnet50_with_wide_head().to(device)
    measure(
        "ResNet-50, 8192-wide head",
        wide,
        insertion_and_deletion(setting_for(wide, views, arguments.chunk_size, arguments.quick, execution), aim=6.0),
        operations(wide, views[0]),
    )
    del wide
    if cones:
        vgg = vgg16().to(device)
        sequential = setting_for(vgg, views, arguments.chunk_size, arguments.quick, execution)
        measure("VGG-16", vgg, occlusion_by_cones(sequential, aim=2.5), operations(vgg, views[0]))
        del sequential, vgg
    found["slopes"] = slopes(narrow, device, arguments.quick)
    write(finished=False)
    if device.type == "cpu":
        found["ranks"] = ranks(resnet50, 32 if arguments.quick else 64, 3 if arguments.quick else 9)
    if device.type == "cuda" and execution == EXACT:
        found["precisions"] = precisions(narrow, device, 4 if arguments.quick else 32)
    elif device.type == "cpu":
        print("no GPU: reduced precision, compilation with CUDA graphs and their aims are not measured")
    found["approximations"] = approximations(1, MAPS[:2]) if arguments.quick else approximations(6)
    write(finished=True)
    print(report.page(found))


def _views(device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views of one of the bundled photos."""
    pairs = PairDataModule(DemoPhotos(limit=1), SimCLRViews(SIDE), IMAGENET_NORMALIZATION)
    batch = next(iter(pairs.predict_dataloader()))
    return batch.view1.to(device), batch.view2.to(device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, short slices, no peers: under 5 minutes")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--repeats", type=int, help="rounds at least after the one that warms up; 3, with --quick 1")
    parser.add_argument("--chunk-size", type=int, default=CHUNK_SIZE, help=f"as engine.chunk_size; {CHUNK_SIZE}")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of our side; fp32")
    parser.add_argument("--compile", action="store_true", help="our side with engine.compile=true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "benchmarks")
    arguments = parser.parse_args()
    if arguments.repeats is None:
        arguments.repeats = 1 if arguments.quick else 3
    return arguments


if __name__ == "__main__":
    main()
