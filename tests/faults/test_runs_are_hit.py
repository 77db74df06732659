"""What a run stands on goes away under it: its folder, its clock, a process of its own, memory, a number."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from toy_cells import COLUMNS, assert_same_results, composed, only_cell, rows
from toy_studies import TWO, assert_as_plain, planned, run
from twinsight.complaints import explain_error
from twinsight.engine import NonFiniteEmbedding
from twinsight.engine.execution import FastNetwork
from twinsight.errors import UserError
from twinsight.explainers import GradCAM
from twinsight.models import TwoViewModel
from twinsight.study import Evaluation, explain
from twinsight.study.locks import Holder, Lock, Observer

pytestmark = pytest.mark.faults

GRADCAM = "explainer=gradcam"


@contextmanager
def before(batch, act):
    """Inside the block, something happens before a batch of every run."""
    genuine = Evaluation.predict_step

    def step(self, given, index):
        if index == batch:
            act()
        return genuine(self, given, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "predict_step", step)
        yield


@contextmanager
def at_the_end(act):
    """Inside the block, something happens once the last pair is explained and before the last is written."""
    genuine = Evaluation.flush

    def flush(self):
        act()
        genuine(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "flush", flush)
        yield


@pytest.fixture
def flushing(monkeypatch):
    """A fragment for every pair."""
    monkeypatch.setattr("twinsight.study.records._FLUSH_SECONDS", 0.0)


@contextmanager
def next_process():
    """Inside the block, whoever holds a lock is known to be gone: a run that has ended so lies in another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holder, "dead", True)
        yield


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    config = composed(GRADCAM, f"data.root={photos}", f"paths.output_root={tmp_path_factory.mktemp('undisturbed')}")
    assert explain(config) == 0
    return only_cell(config)


# The output folder


@pytest.mark.parametrize("moment", [partial(before, 2), at_the_end], ids=["half way", "at the end"])
def test_a_folder_that_is_removed_is_said_to_be_and_the_next_run_makes_all_of_it(tiny, undisturbed, moment):
    config = tiny(GRADCAM)
    root = Path(config.paths.output_root)
    with (
        moment(lambda: shutil.rmtree(root)),
        pytest.raises(UserError, match="was removed while it was worked on") as raised,
    ):
        explain(config)
    assert str(root) in str(raised.value)
    assert explain(config) == 0
    assert_same_results(only_cell(config), undisturbed)


@pytest.mark.slow
def test_a_study_whose_cell_is_moved_away_calls_it_failed_and_goes_on_where_that_is_asked_for(tmp_path, photos, plain):
    study = planned(tmp_path / "out", photos, *TWO)
    first = study.cells[0].folder

    def move():
        if not (tmp_path / "away").exists():
            shutil.move(first, tmp_path / "away")

    with before(2, move):
        assert run(study) == [1, 0, 0, 0]
    assert "was removed while it was worked on" in study.cells[0].status()["error"]
    assert run(study, retry_failed=True) == [0]
    assert_as_plain(study, plain)


@pytest.mark.slow
def test_a_file_in_the_place_of_the_folder_ends_the_run_and_nothing_written_is_lost(tiny, undisturbed, flushing):
    config = tiny(GRADCAM)
    root, away = Path(config.paths.output_root), Path(f"{config.paths.output_root}-away")

    def replace():
        shutil.move(root, away)
        root.touch()

    with before(2, replace), pytest.raises(UserError, match="was removed while it was worked on"):
        explain(config)
    root.unlink()
    away.rename(root)
    assert len(list(only_cell(config).glob("fragments/records/*"))) == 2
    with next_process():
        assert explain(config) == 0
    assert_same_results(only_cell(config), undisturbed)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_turns_read_only_is_named_and_nothing_written_is_lost(tiny, undisturbed, flushing):
    config = tiny(GRADCAM)
    root = Path(config.paths.output_root)
    root.mkdir()
    refusal = rf"{root}/\S+: read-only file system: change its rights, or write elsewhere .*"
    if os.system(f"mount -t tmpfs tmpfs {root} 2>/dev/null") != 0:
        pytest.skip("this machine lets nobody mount")
    try:
        with (
            before(2, lambda: os.system(f"mount -o remount,ro {root}")),
            pytest.raises(OSError, match="Read-only") as raised,
        ):
            explain(config)
        assert re.fullmatch(refusal, explain_error(raised.value))
        with next_process(), pytest.raises(OSError, match="Read-only") as raised:
            explain(config)  # nor can one begin
        assert re.fullmatch(refusal, explain_error(raised.value))
        os.system(f"mount -o remount,rw {root}")
        assert len(list(only_cell(config).glob("fragments/records/*"))) == 2
        with next_process():
            assert explain(config) == 0
        assert_same_results(only_cell(config), undisturbed)
    finally:
        os.system(f"umount {root}")


# The clock


@pytest.fixture
def clock_runs_back(monkeypatch):
    """Whoever asks what time it is hears an hour less than the last time."""
    now = [time.time()]

    def earlier():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", earlier)


def test_a_clock_that_runs_back_changes_nothing(tiny, undisturbed, flushing, clock_runs_back):
    config, seconds = tiny(GRADCAM), []

    def look():
        folder = only_cell(config)
        for path in folder.rglob("*"):
            os.utime(path, (0, 0))
        seconds.append(json.loads((folder / "status.json").read_text())["seconds"])
        assert len(list(folder.glob("fragments/records/*"))) == 3

    with before(3, look):
        assert explain(config) == 0
    assert all(0 <= each < 60 for each in seconds)
    assert_same_results(only_cell(config), undisturbed)


def test_no_clock_on_the_wall_takes_a_lock_from_who_holds_it(tmp_path, clock_runs_back, monkeypatch):
    monkeypatch.setattr("twinsight.study.locks.BEAT_SECONDS", 3600)  # nothing but the clock moves
    elapsed = [0.0]
    held, observer = Lock(tmp_path), Observer(clock=lambda: elapsed[0])
    assert held.take()
    with monkeypatch.context() as patch:
        # So that only its beat speaks for it.
        patch.setattr("twinsight.study.locks._machine", lambda: "another machine")
        late = Lock(tmp_path)
        assert not late.take(observer)
        os.utime(tmp_path / "1.json", (0, 0))
        elapsed[0] = 59.0
        assert not late.take(observer)
        elapsed[0] = 61.0
        assert late.take(observer)
        late.release()
    held.release()


# Processes


def test_a_killed_process_that_reads_photos_is_one_clear_error_and_nothing_finished_is_lost(
    tiny, undisturbed, monkeypatch
):
    # PyTorch listens for the end of children from the first loader of a process on, Lightning to the end of a run.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    config = tiny(GRADCAM, "loader.num_workers=1")

    def kill():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(60)  # whoever hears of it raises out of here

    with before(3, kill), pytest.raises(RuntimeError) as raised:
        explain(config)
    message = explain_error(raised.value)
    assert message is not None
    assert re.match(r"a process that reads photos \(pid \d+\) was killed; .* loader\.num_workers=0$", message)
    status = json.loads((only_cell(config) / "status.json").read_text())
    assert (status["state"], status["done"]) == ("failed", 3)
    assert explain(config) == 0
    assert_same_results(only_cell(config), undisturbed)


# Memory


OCCLUSION = ("explainer=conditional_occlusion", "explainer.window=12", "explainer.stride=4")
"""36 windows for each view: passes of whole views, and passes of many images."""


def test_memory_that_runs_out_half_way_halves_the_chunk_once_and_the_records_say_so(tiny, explained, caplog):
    expected = rows(explained(*OCCLUSION))
    with caplog.at_level("WARNING"), pytest.MonkeyPatch.context() as patch:
        genuine, pairs = FastNetwork.__call__, []

        def limited(self, images, view):
            if len(images) > 8 and len(pairs) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return genuine(self, images, view)

        patch.setattr(FastNetwork, "__call__", limited)
        with before(2, lambda: pairs.append(None)):
            config = tiny(*OCCLUSION)
            assert explain(config) == 0
    assert caplog.text.count("out of device memory: chunks of 8 perturbed images from here on") == 1
    found = rows(only_cell(config))
    assert [row["chunk_size"] for row in found] == [16, 16, 8, 8, 8]
    assert found[:2] == expected[:2]
    for one, other in zip(found[2:], expected[2:], strict=True):
        assert one["score"] == other["score"]  # whole views go alone
        for name in COLUMNS:
            assert one[name] == pytest.approx(other[name], abs=1e-4)


@pytest.mark.slow
def test_memory_for_not_even_one_image_fails_the_cell_and_keeps_the_pairs_before(tiny, explained, caplog):
    undisturbed = explained(*OCCLUSION)
    config = tiny(*OCCLUSION)
    with pytest.MonkeyPatch.context() as patch:
        full = partial(patch.setattr, FastNetwork, "__call__", _no_memory)
        with before(3, full), pytest.raises(torch.OutOfMemoryError):
            explain(config)
    assert caplog.text.count("out of device memory") == 4  # 8, 4, 2, 1
    status = json.loads((only_cell(config) / "status.json").read_text())
    assert (status["state"], status["done"]) == ("failed", 3)
    assert explain(config) == 0
    assert_same_results(only_cell(config), undisturbed)


def _no_memory(self, images, view):
    raise torch.OutOfMemoryError("CUDA out of memory")


# Numbers


@pytest.mark.parametrize("flaw", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_a_flawed_map_is_degenerate_in_its_pair_and_the_others_are_untouched(tiny, undisturbed, flaw):
    expected = rows(undisturbed)
    genuine, calls = GradCAM.explain, []

    def flawed(self, pair):
        calls.append(pair)
        map1, map2 = genuine(self, pair)
        if len(calls) == 3:
            map1 = map1.clone()
            map1[0, 0] = flaw
        return map1, map2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradCAM, "explain", flawed)
        config = tiny(GRADCAM)
        assert explain(config) == 0
    found = rows(only_cell(config))
    assert [row["degenerate1"] for row in found] == [False, False, True, False, False]
    assert [row["degenerate2"] for row in found] == [False] * 5
    for place in (0, 1, 3, 4):
        assert found[place] == expected[place]
    summary = json.loads((only_cell(config) / "metrics.json").read_text())
    assert summary["flags"]["degenerate1"] == 1


def test_a_view_that_the_network_answers_with_nan_ends_the_cell_by_name_and_keeps_the_pairs_before(tiny, undisturbed):
    config, genuine, seen = tiny(GRADCAM), TwoViewModel.embed, []

    def stained(self, features, view=1):
        embedding = genuine(self, features, view)
        return embedding * torch.nan if seen else embedding

    message = r"pair cat\.png: the embedding of view 1 holds NaN"
    with pytest.MonkeyPatch.context() as patch, before(2, lambda: seen.append(None)):
        patch.setattr(TwoViewModel, "embed", stained)
        with pytest.raises(NonFiniteEmbedding, match=message):
            explain(config)
    status = json.loads((only_cell(config) / "status.json").read_text())
    assert (status["state"], status["done"]) == ("failed", 2)
    assert explain(config) == 0
    assert_same_results(only_cell(config), undisturbed)
