"""How much faster than the literal definitions: `python -m benchmarks`, a minute on two cores.

Each item is run by the package and by the slow oracle of the test suite, alternately and in one process, on one demo
pair; the table shows medians and their ratio. Seconds depend on the machine and its load, ratios much less.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from twinsight.data import DemoPhotos, PairDataModule, SimCLRViews
from twinsight.explainers import ConditionalOcclusion, InteractionCAM
from twinsight.metrics.functional import insertion_deletion
from twinsight.models import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oracles import cam, occlusion
from oracles import insertion_deletion as curves


def main(repeats: int = 5) -> None:
    model = load_model("demo_simclr")
    pairs = PairDataModule(DemoPhotos(limit=1), SimCLRViews(model.input_size), model.normalization)
    batch = next(iter(pairs.predict_dataloader()))
    view1, view2 = batch.view1, batch.view2
    map1, map2 = InteractionCAM(model)(view1, view2).resized((64, 64))
    assert map2 is not None
    zero = torch.zeros_like(view1)
    items: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "conditional occlusion, 2 x 576 windows": (
            lambda: ConditionalOcclusion(model, protocol="paper")(view1, view2),
            lambda: occlusion.conditional_occlusion(model, view1, view2, zero, zero, (18, 18), (2, 2)),
        ),
        "insertion and deletion, 216 steps": (
            lambda: insertion_deletion(model, view1, view2, map1, map2, protocol="paper"),
            lambda: curves.insertion_deletion(model, view1, view2, map1[0], map2[0], 19, "paper"),
        ),
        "Interaction-CAM": (
            lambda: InteractionCAM(model, protocol="paper")(view1, view2),
            lambda: cam.interaction_cam(model, view1, view2, "mean", invariance_weight=True),
        ),
    }
    table = Table(title=f"{torch.get_num_threads()} threads, median of {repeats}", title_justify="left")
    for column in ("", "twinsight, s", "literal, s", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for name, (ours, literal) in items.items():
        seconds = [(_seconds(ours), _seconds(literal)) for _ in range(repeats + 1)][1:]  # the first warms up
        fast, slow = (statistics.median(column) for column in zip(*seconds, strict=True))
        table.add_row(name, f"{fast:.4f}", f"{slow:.4f}", f"{slow / fast:.2f}")
    Console().print(table)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
