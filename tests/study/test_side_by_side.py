"""Processes beside each other on one study, and what is left when one of them goes."""

import logging
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import pytest
from test_locks import foreign

from toy_cells import ROOT, TINY, rows, write_photo
from toy_studies import TWO, assert_as_plain, planned, run
from twinsight.errors import UserError
from twinsight.study import shards
from twinsight.study.aggregate import tabulate_study
from twinsight.study.driver import note_the_end_of_a_child
from twinsight.study.evaluation import Evaluation
from twinsight.study.job import Order, has_work, run_job
from twinsight.study.locks import Lock, Observer
from twinsight.study.prune import prune
from twinsight.study.shards import WHOLE, Shard, alone, shard_lock
from twinsight.study.status import read_status, write_status


@pytest.fixture
def study(tmp_path, photos):
    return planned(tmp_path, photos, *TWO)


def order(study, job=0, shard=WHOLE):
    return Order(str(study.root), study.name, job, shard)


def test_of_two_processes_one_publishes_a_cell(study):
    cell = study.cells[0]
    with alone(cell.folder, "publish"):
        assert run_job(order(study)) == 0
        assert not (cell.folder / "metrics.json").exists()
        assert has_work(cell)
    assert run_job(order(study)) == 0
    assert not has_work(cell)
    assert not (cell.folder / "locks").exists()


def test_a_process_that_comes_to_publish_a_cell_after_another_has_leaves_it(study, monkeypatch):
    monkeypatch.setattr("twinsight.study.job.publish", lambda *given: pytest.fail("again"))
    monkeypatch.setattr("twinsight.study.job.is_published", lambda folder: True)
    monkeypatch.setattr("twinsight.study.job.has_work", lambda *given: True)
    assert run_job(order(study)) == 0


def test_a_job_takes_over_from_a_holder_on_another_machine_that_stands_still(study, plain, monkeypatch):
    monkeypatch.setattr(shards, "Observer", partial(Observer, patience=0.5))
    cell = study.cells[0]
    foreign(shard_lock(cell.folder, WHOLE))
    assert run(study) == [0, 0, 0, 0]
    assert_as_plain(study, plain)


def test_a_shard_waits_for_no_other_shard_of_its_kind(study, monkeypatch):
    monkeypatch.setattr(shards, "time", SimpleNamespace(sleep=lambda seconds: pytest.fail("it waited")))
    foreign(shard_lock(study.cells[0].folder, Shard(1, 2)))
    assert run_job(order(study, shard=Shard(0, 2))) == 0
    assert len(list((study.cells[0].folder / "fragments" / "records").iterdir())) == 1


def test_a_shard_that_ends_while_another_merges_waits_and_finds_the_cell_done(study, plain):
    for index in range(2):
        with alone(study.cells[0].folder, "merge"):
            job = threading.Thread(target=run_job, args=(order(study, shard=Shard(index, 2)),))
            job.start()
            job.join(timeout=3)
            assert job.is_alive()
        job.join(timeout=60)
        assert not job.is_alive()
    assert study.cells[0].status()["state"] == "done"


def test_a_process_that_lost_its_cell_writes_nothing_more_about_it(study, monkeypatch, caplog):
    """It was asleep for so long that another took over, which is at work on the cell now."""
    cell, genuine = study.cells[0], Evaluation.predict_step

    def taken_over(self, batch, index):
        result = genuine(self, batch, index)
        if index == 1:
            place = shard_lock(cell.folder, WHOLE)
            foreign(place, generation=Lock(place).holder().generation + 1)
            write_status(cell.folder, "running", host="far", done=0)
        return result

    monkeypatch.setattr(Evaluation, "predict_step", taken_over)
    with caplog.at_level(logging.WARNING):
        assert run_job(order(study)) == 0
    assert "was taken over by another process" in caplog.text
    assert (read_status(cell.folder)["state"], read_status(cell.folder)["host"]) == ("running", "far")
    assert not (cell.folder / "records.parquet").exists()


def test_pruning_leaves_a_cell_that_somebody_begins_with(study, monkeypatch):
    run(study)
    cell, beginner = study.cells[0], Lock(shard_lock(study.cells[0].folder, Shard(0, 2)))
    with monkeypatch.context() as patch:
        patch.setattr("twinsight.study.prune._why_kept", lambda *given: beginner.take() and None)  # after the look
        prune(study, remove=True)
    assert (cell.folder / "records.parquet").exists()
    beginner.release()
    prune(study, remove=True)
    assert not cell.folder.exists()
    assert not list((study.root / "cells").iterdir())


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        (-9, "failed", "its process was killed by SIGKILL (memory may have run out)"),
        (3, "failed", "its process ended with exit code 3 and without a word"),
        (143, "interrupted", "it was told to stop"),
    ],
)
def test_whoever_outlives_a_job_says_how_it_ended(study, code, state, error):
    first, second = study.cells[:2]
    write_status(second.folder, "done", pairs=5, done=5)
    for job in (0, 1):
        note_the_end_of_a_child(order(study, job), code)
    assert (first.status()["state"], first.status()["error"]) == (state, error)
    assert has_work(first) == (code != 3)  # a job that was killed is tried again, one that broke is not
    assert second.status()["state"] == "done"


def test_a_cell_that_another_works_on_is_not_called_failed_by_who_cannot_build_it(study, monkeypatch):
    cell = study.cells[0]
    write_status(cell.folder, "running", host="here")
    monkeypatch.setattr("twinsight.study.job.Planner.plan", lambda *given: 1 / 0)
    with alone(cell.folder, "whole"):
        assert run_job(order(study)) == 1
        assert cell.status()["state"] == "running"
    assert run_job(order(study)) == 1
    assert cell.status()["state"] == "failed"


@pytest.mark.parametrize("table", ["records", "arrays"])
def test_a_finished_cell_whose_file_was_cut_short_is_computed_again(study, plain, table):
    run(study)
    path = study.cells[0].folder / f"{table}.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    if table == "records":
        missing = tabulate_study(study).missing
        assert "its records cannot be read" in missing[study.cells[0].name]
    assert run(study) == [0]
    assert_as_plain(study, plain)


def test_a_disk_that_fills_up_at_the_end_of_one_cell_leaves_the_others_of_its_job_done(tmp_path, photos, monkeypatch):
    from twinsight.study import run as module

    study, genuine = planned(tmp_path, photos, "explainers=[gradcam,lafam]"), module.compact

    def full(folder, metadata):
        if "-gradcam-" in folder.name:
            raise OSError(28, "No space left on device")
        genuine(folder, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(module, "compact", full)
        assert run(study) == [1]
    assert [cell.status()["state"] for cell in study.cells] == ["failed", "done"]
    assert "No space left" in study.cells[0].status()["error"]
    assert run(study, retry_failed=True) == [0]
    assert len(rows(study.cells[0].folder)) == 5


def test_cells_that_no_key_tells_apart_are_told_apart_by_what_else_they_are_of(tmp_path, photos):
    study = planned(tmp_path / "out", photos, "explainer=gradcam", "trainer.precision=32-true,bf16-mixed")
    assert [cell.axes for cell in study.cells] == [
        {"trainer.precision": precision} for precision in ("32-true", "bf16-mixed")
    ]
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        write_photo(folder / f"{index}.png", index)
    planned(tmp_path / "out", folder, "explainer=gradcam", name="photos")
    write_photo(folder / "0.png", 99)
    twice = planned(tmp_path / "out", folder, "explainer=gradcam", name="photos")
    assert [list(cell.axes) for cell in twice.cells] == [["photos"], ["photos"]]


def test_a_table_names_cells_that_have_no_maps(tmp_path, photos):
    study = planned(tmp_path, photos, "explainer=gradcam,feature_visualization")
    for cell in study.cells:
        write_status(cell.folder, "done", pairs=5, done=5)
    run_job(order(study))
    without = next(cell for cell in study.cells if not cell.line.maps)
    write_status(without.folder, "done", pairs=5, done=5)
    with pytest.raises(UserError, match="no cell of study toy is done"):
        tabulate_study(study, where=["explainer=feature_visualization"])
    assert tabulate_study(study).missing[without.name] == "its explainer makes no maps"


@pytest.mark.slow
def test_ranks_that_torchrun_starts_end_where_another_process_has_the_cell(tmp_path, photos):
    """Rank 0 alone looks at locks; the others must not wait for it in a collective that never comes."""
    study = planned(tmp_path, photos, "explainer=gradcam")
    words = [*TINY, f"data.root={photos}", f"paths.output_root={tmp_path}", "explainer=gradcam"]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(ROOT / "run.py")]
    with alone(study.cells[0].folder, "whole"):
        end = subprocess.run(
            [*ranks, *words, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"],
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert end.returncode != 0
    assert end.stderr.count("is being computed by process") >= 1
    assert not (study.cells[0].folder / "records.parquet").exists()
