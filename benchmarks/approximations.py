"""What the approximate modes leave out and how far they are off: the demo network on pairs of the demo photos."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.items import TOLERANCE
from twinsight.data import DemoPhotos, PairDataModule, SimCLRViews
from twinsight.engine import PairBank
from twinsight.explainers import EXPLAINERS, ConditionalOcclusion, ContextAgnosticOcclusion
from twinsight.metrics.functional import insertion_deletion
from twinsight.metrics.functional.correlation import spearman
from twinsight.models import TwoViewModel, load_model

SIDE, WINDOW, STRIDE, COARSE = 64, 18, 2, 2
LOOSER = 3.4e-3
"""What takes a fifth of the points of these curves, which are rougher than those of larger networks."""
MAPS = ("gradcam", "interaction_cam", "random", "input_x_gradient", "smoothgrad", "conditional_occlusion")
CURVES = ("si", "sd", "ci1", "ci2", "cd1", "cd2")


def approximations(pairs: int, names: Sequence[str] = MAPS) -> dict[str, Any]:
    """Adaptive curves of some kinds of maps under both protocols, and adaptive occlusion, against all of it."""
    model = load_model("demo_simclr")
    module = PairDataModule(DemoPhotos(limit=pairs), SimCLRViews(SIDE), model.normalization, batch_size=pairs)
    batch = next(iter(module.predict_dataloader()))
    curves, maps = [], []
    for index in range(pairs):
        views = batch.view1[index : index + 1], batch.view2[index : index + 1]
        for name in names:
            map1, map2 = EXPLAINERS[name](model)(*views, seeds=torch.tensor([index])).resized((SIDE, SIDE))
            for protocol in ("paper", "sound"):
                whole, *others = (
                    insertion_deletion(model, *views, map1, map2, protocol=protocol, tolerance=tolerance)
                    for tolerance in (None, TOLERANCE, LOOSER)
                )
                curves += [
                    {
                        "maps": name,
                        "protocol": protocol,
                        "tolerance": tolerance,
                        "points": float(some.points_computed),
                        "errors": [float((getattr(some, each) - getattr(whole, each)).abs()) for each in CURVES],
                        "bound": float(some.error_bound),
                    }
                    for tolerance, some in zip((TOLERANCE, LOOSER), others, strict=True)
                ]
        for kind in (ConditionalOcclusion, ContextAgnosticOcclusion):
            maps += _occluded(kind, model, *views)
    return {"pairs": pairs, "coarse": COARSE, "curves": curves, "occlusion": maps}


def summary(found: dict[str, Any]) -> str:
    """In words."""
    windows, alike = ([each[key] for each in found["occlusion"]] for key in ("windows", "correlation"))
    coarse = f"`coarse={found['coarse']}`"
    pairs = f"{found['pairs']} pair{'s' * (found['pairs'] > 1)}"
    curves = " ".join(_curves(found["curves"], tolerance) for tolerance in (TOLERANCE, LOOSER))
    return (
        f"The demo network at {SIDE} pixels on {pairs}. {curves} Occlusion with {coarse}, {len(windows)} maps: "
        f"{1 - mean(windows):.0%} of the windows saved; rank correlation with the whole map "
        f"{mean(alike):.3f} on average, {min(alike):.3f} at least."
    )


def _curves(found: list[dict[str, Any]], tolerance: float) -> str:
    at_it = [each for each in found if each["tolerance"] == tolerance]
    points, errors = [each["points"] for each in at_it], [error for each in at_it for error in each["errors"]]
    within = mean(error <= TOLERANCE for error in errors)
    beyond = sum(max(each["errors"]) > each["bound"] for each in at_it)
    return (
        f"Curves at a tolerance of {tolerance}: {mean(points):.0%} of the points on average; areas off by "
        f"{mean(errors):.4f} on average and {max(errors):.4f} at most, {within:.1%} of {len(errors)} within "
        f"{TOLERANCE}; of {len(at_it)} sets of {len(CURVES)}, {beyond} with an area beyond its bound."
    )


def _occluded(
    kind: type[ConditionalOcclusion | ContextAgnosticOcclusion], model: TwoViewModel, view1: Tensor, view2: Tensor
) -> list[dict[str, Any]]:
    whole, some = (
        kind(model, window=WINDOW, stride=STRIDE, coarse=coarse)(view1, view2, bank=PairBank(model))
        for coarse in (None, COARSE)
    )
    return [
        {
            "maps": kind.name,
            "windows": float(some.details[f"windows_computed{view}"]),
            "correlation": spearman(getattr(some, f"map{view}"), getattr(whole, f"map{view}")),
        }
        for view in (1, 2)
    ]
