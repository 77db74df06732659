"""What is left to do when jobs have ended that a scheduler started elsewhere."""

import json
import os
import signal

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from toy_studies import TWO, assert_as_plain, planned
from twinsight.study import driver
from twinsight.study.driver import show_end
from twinsight.study.job import Order, finish_job, has_work, run_job
from twinsight.study.locks import Lock
from twinsight.study.remote import conclude
from twinsight.study.shards import WHOLE, Shard, shard_lock
from twinsight.study.status import read_status, write_status


@pytest.fixture
def study(tmp_path, photos):
    return planned(tmp_path, photos, *TWO)


def order(study, job=0, shard=WHOLE):
    return Order(str(study.root), study.name, job, shard)


def leave_a_lock_behind(cell, shard=WHOLE):
    """As a process does that is killed while it works on a cell."""
    pid = os.fork()
    if pid == 0:
        Lock(shard_lock(cell.folder, shard)).take()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.faults
def test_a_cell_whose_process_is_gone_is_reported_and_the_next_run_goes_on_with_it(study):
    cell = study.cells[0]
    leave_a_lock_behind(cell)
    write_status(cell.folder, "running", pairs=5, done=2, pid=1)
    assert show_end(study)  # nobody lives who could end it
    conclude(study, {order(study): "see job.log"})
    status = cell.status()
    assert status["state"] == "failed"
    assert "died without a word" in status["error"]
    assert "see job.log" in status["error"]
    assert has_work(cell)


def test_a_cell_that_never_began_is_reported_and_those_of_other_jobs_are_left(study):
    conclude(study, {order(study): "see job.log"})
    assert [cell.status()["state"] for cell in study.cells] == ["failed", "planned", "planned", "planned"]
    assert "ended before it began" in study.cells[0].status()["error"]


def test_what_jobs_raise_elsewhere_is_reported_by_who_gave_them(study, caplog, monkeypatch):
    """Launchers of Hydra return what a job raised, and tell nobody."""

    class Elsewhere:
        def launch(self, words, initial_job_idx):
            return [self.end(*each) for each in words]

        def end(self, name, job):
            if job == "job=1":
                return JobReturn(status=JobStatus.FAILED, _return_value=OSError("the node has no disk"))
            run_job(Order.parse(master, [name, job]))
            return JobReturn(status=JobStatus.COMPLETED)

    monkeypatch.setattr(driver, "configure_log", lambda *given: None)  # which would take caplog's handler away
    here = {"paths": {"output_root": str(study.root)}, "retry_failed": False, "shard": None}
    master = OmegaConf.create({**here, "hydra": {"job_logging": {}, "verbose": False}})
    assert driver._Driver(study, Elsewhere(), master).drive_remotely()
    assert "study=toy job=1: OSError: the node has no disk" in caplog.text
    assert [cell.status()["state"] for cell in study.cells] == ["done", "failed", "done", "done"]
    assert "OSError: the node has no disk" in study.cells[1].status()["error"]


def test_a_cell_that_somebody_works_on_is_left_to_him(study, monkeypatch):
    monkeypatch.setattr("twinsight.study.shards._POLL_SECONDS", 0.1)
    monkeypatch.setattr("twinsight.study.locks.BEAT_SECONDS", 0.2)
    cell = study.cells[0]
    lock = Lock(shard_lock(cell.folder, Shard(0, 1)))
    assert lock.take()
    write_status(cell.folder, "running", pairs=5, done=2)
    conclude(study, {order(study): "see job.log"})
    assert cell.status()["state"] == "running"
    lock.release()


@pytest.mark.faults
def test_a_shard_that_was_killed_beside_one_that_ended_is_reported(study):
    cell = study.cells[0]
    assert run_job(order(study, shard=Shard(0, 2))) == 0
    assert read_status(cell.folder)["state"] == "interrupted"
    leave_a_lock_behind(cell, Shard(1, 2))
    conclude(study, {order(study, shard=Shard(index, 2)): "see job.log" for index in range(2)})
    status = cell.status()
    assert (status["state"], status["done"]) == ("failed", 3)
    assert "died without a word" in status["error"]


@pytest.mark.faults
def test_what_a_job_died_before_is_done_after_all(study, plain, monkeypatch):
    """All pairs are recorded, but the last shard was killed before it merged, drew and logged."""
    jobs = [order(study, job, Shard(index, 2)) for job in study.jobs for index in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr("twinsight.study.run._close", lambda *given: False)
        assert [run_job(job) for job in jobs] == [0] * 8
    assert not list(study.root.rglob("records.parquet"))
    conclude(study, dict.fromkeys(jobs, ""))
    assert_as_plain(study, plain)
    assert all((cell.folder / "metrics.json").exists() for cell in study.cells)


def test_nothing_is_explained_and_no_device_asked_for_when_a_job_is_finished(study):
    for cell in study.cells:  # planned for a machine with GPUs
        text = cell.frozen.read_text()
        assert "accelerator: cpu" in text
        cell.frozen.write_text(text.replace("accelerator: cpu", "accelerator: gpu"))
    assert finish_job(order(study)) == 0
    assert study.cells[0].status()["state"] == "planned"
    run_on_cpu = study.cells[1]
    run_on_cpu.frozen.write_text(run_on_cpu.frozen.read_text().replace("accelerator: gpu", "accelerator: cpu"))
    assert run_job(order(study, 1)) == 0
    (run_on_cpu.folder / "metrics.json").unlink()
    run_on_cpu.frozen.write_text(run_on_cpu.frozen.read_text().replace("accelerator: cpu", "accelerator: gpu"))
    assert finish_job(order(study, 1)) == 0
    assert json.loads((run_on_cpu.folder / "metrics.json").read_text())["pairs"] == 5
