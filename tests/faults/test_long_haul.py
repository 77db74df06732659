"""A cell of 2000 pairs: what a process holds of the system does not grow with the pairs it has explained."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toy_studies import planned, run
from twinsight.study.evaluation import Evaluation
from twinsight.study.records import read

pytestmark = [pytest.mark.faults, pytest.mark.slow]

PAIRS, EVERY, SETTLED = 2000, 50, 1000
"""Measured every so many pairs, once allocators and caches have taken what they take."""

NAMES = ("file descriptors", "threads", "hooks")


def resident_kib():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def hooks():
    """On all modules that are alive, whoever they belong to, and those that torch calls for every module."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    alive = [each for each in gc.get_objects() if isinstance(each, torch.nn.Module)]
    everywhere = [getattr(torch.nn.modules.module, f"_global{name}") for name in names]
    return sum(len(getattr(module, name)) for module in alive for name in names) + sum(map(len, everywhere))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_two_thousand_pairs_leave_a_process_as_it_was_after_the_first_hundreds(tmp_path, monkeypatch, record_property):
    photos = tmp_path / "photos"
    photos.mkdir()
    draw = np.random.default_rng(0)
    for number in range(PAIRS):
        pixels = draw.integers(0, 256, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:04}.png", compress_level=0)
    held, genuine = [], Evaluation.predict_step

    def measured(self, batch, index):
        if index >= SETTLED and index % EVERY == 0:
            held.append((index, resident_kib(), descriptors(), threading.active_count(), hooks()))
        return genuine(self, batch, index)

    monkeypatch.setattr(Evaluation, "predict_step", measured)
    study = planned(tmp_path / "out", photos, "explainer=gradcam")
    assert run(study) == [0]
    assert len(read(study.cells[0].folder)) == PAIRS

    pairs, memory, *counts = zip(*held, strict=True)
    assert pairs[-1] == PAIRS - EVERY
    growth = np.polyfit(pairs, memory, 1)[0]
    figures = [f"{min(count)} to {max(count)} {name}" for count, name in zip(counts, NAMES, strict=True)]
    record_property("figure", f"{PAIRS} pairs: memory grows by {growth:.2f} KiB a pair; " + ", ".join(figures))
    assert growth < 1, held  # one map that is kept of each pair would be 4 KiB
    for count in counts:
        assert max(count) - min(count) <= 1, held  # a file may just be being written
