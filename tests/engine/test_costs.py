"""What work costs: passes and memory, not seconds."""

import gc
from pathlib import Path

import pytest
import torch

from toy import tiny_maps, tiny_model, tiny_pair
from toy_memory import resident
from twinsight.engine import PairBank, erased_windows
from twinsight.explainers import (
    AveragedTransforms,
    ConditionalOcclusion,
    ContextAgnosticOcclusion,
    GradCAM,
    InputXGradient,
    InteractionCAM,
    PairwiseOcclusion,
    SmoothGrad,
)
from twinsight.metrics.functional import average_drop, insertion_deletion
from twinsight.models import small_two_view

# SPEC, section 6, the column "least"; the views' 2 F are shared by all.
EXPLAINING = [
    ("conditional occlusion", lambda model: [ConditionalOcclusion(model, 8, 3)], 2 + 2 * 81, 0),
    (
        "context-agnostic after conditional",
        lambda model: [ConditionalOcclusion(model, 8, 3), ContextAgnosticOcclusion(model, 8, 3)],
        2 + 4 * 81,
        0,
    ),
    ("pairwise", lambda model: [PairwiseOcclusion(model)], 202, 0),
    (
        "four CAMs",
        lambda model: [
            GradCAM(model),
            *(InteractionCAM(model, reduction=kind) for kind in ("mean", "max", "attention")),
        ],
        2,
        0,
    ),
    ("input x gradient", lambda model: [InputXGradient(model)], 2, 2),
    ("SmoothGrad", lambda model: [SmoothGrad(model)], 102, 100),
    ("averaged transforms", lambda model: [AveragedTransforms(model)], 11, 11),
]


@pytest.mark.parametrize(("explainers", "forwards", "backwards"), [each[1:] for each in EXPLAINING])
def test_explaining_takes_the_least_passes(explainers, forwards, backwards):
    model, views = tiny_model(0), tiny_pair(0, 1)
    bank = PairBank(model)
    for explainer in explainers(model):
        explainer(*views, bank=bank)
    assert (bank.forwards, bank.backwards) == (forwards, backwards)


def test_scoring_takes_the_least_passes():
    model, views, maps = tiny_model(0), tiny_pair(0, 1), tiny_maps(0, 1)
    bank = PairBank(model)
    insertion_deletion(model, *views, *maps, step=16, bank=bank)
    assert bank.forwards == 4 * (64 - 1) + 4
    average_drop(model, *views, *maps, bank=bank)
    assert bank.forwards == 4 * (64 - 1) + 4 + 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell the peak of memory")
def test_memory_does_not_grow_with_the_number_of_perturbations():
    model = small_two_view(widths=(8, 16), blocks=1)
    image = torch.rand(3, 64, 64)
    bank = PairBank(model.eval(), chunk_size=16)

    def rise(count):
        boxes = torch.stack([torch.arange(count) % 50, torch.arange(count) // 50 % 50], dim=1)
        boxes = torch.cat([boxes, torch.full((count, 2), 12)], dim=1)
        bank.clear()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        bank.perturbed(erased_windows(image, torch.zeros_like(image), boxes))
        return resident("VmHWM") - before

    rise(16)
    # All images of 2000 perturbations at once would be 98 MB.
    assert rise(2000) - rise(100) < 20 * 2**20


def test_no_chunk_leaves_tensors_of_its_own():
    # Among what chunks free they would cut up memory: 20 MB more for 10 000 perturbations in a process of its own.
    alive = []

    def count(images):
        alive.append(sum(type(each) is torch.Tensor and each.shape[1:] == (8,) for each in gc.get_objects()))

    image = tiny_pair(0, 1)[0][0]
    boxes = torch.tensor([(index, index, 5, 5) for index in range(20)])
    bank = PairBank(tiny_model(0), chunk_size=4, before_pass=count)
    gc.collect()
    assert bank.perturbed(erased_windows(image, torch.zeros_like(image), boxes)).shape == (20, 8)
    assert len(alive) == 5
    assert alive[1:] == [alive[0] + 1] * 4
