"""Studies on a real Slurm, as a user types them; ``make test-slurm`` starts one of a single node."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from toy_cells import assert_same_results, rows
from toy_studies import SLOW, TWO, assert_as_plain, ended, typed, words
from twinsight.errors import UserError
from twinsight.requeued import until_time_is_up
from twinsight.study import Study
from twinsight.study import on_slurm as slurm

ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=debug")


@pytest.fixture(autouse=True)
def _a_slurm(request):
    if request.node.get_closest_marker("slurm") and subprocess.run(["sinfo"], capture_output=True).returncode != 0:
        pytest.fail("no Slurm answers: make test-slurm starts one")


@pytest.fixture(scope="module")
def late(tmp_path_factory, photos):
    """A cell that takes longer than the two minutes that its job is given; submitted before the other tests begin."""
    root = tmp_path_factory.mktemp("late")
    limits = ("hydra.launcher.time=2", "hydra.launcher.signal_delay_s=15")
    ended(typed(*words(root, photos, *SLOW, *ON_SLURM, *limits, "seed=3"), TOY_SECONDS=25))
    return Study.open(root, "typed")


def submitted(study: Study) -> dict[int, str]:
    """Numbers at Slurm, by that of the job in the plan."""
    lines = map(json.loads, (study.folder / "slurm" / "submitted.jsonl").read_text().splitlines())
    return {line["job"]: line["id"] for line in lines}


def said(study: Study, number: str) -> str:
    return (study.folder / "slurm" / f"{number}_0_log.out").read_text()


@pytest.mark.slurm
@pytest.mark.usefixtures("late")
def test_an_array_of_cells_ends_as_cells_run_one_by_one(tmp_path, photos, plain, capsys):
    cells = ("explainer=gradcam", "seed=0,1", "shard=2")
    output = ended(typed(*words(tmp_path, photos, *cells, *ON_SLURM, "hydra.launcher.wait=true")))
    assert "submitted 4 jobs to Slurm" in output
    assert "study typed: 2 done" in output
    study = Study.open(tmp_path, "typed")
    assert_as_plain(study, {name: folder for name, folder in plain.items() if "-gradcam-" in name})
    assert all((cell.folder / "metrics.json").exists() for cell in study.cells)
    sent = (study.folder / "slurm" / "submitted.jsonl").stat().st_mtime
    cell = study.cells[0]
    work = sum(row["explain_seconds"] + row["metrics_seconds"] for row in rows(cell.folder, "timings"))
    with capsys.disabled():
        whole = (cell.folder / "status.json").stat().st_mtime - sent
        print(f"\na cell was done {whole:.0f} s after four jobs were submitted, of which {work:.1f} s were its work")
    # What is done is not submitted again.
    assert "submitted" not in ended(typed("study", "run", "typed", *ON_SLURM, "--root", tmp_path))


@pytest.mark.slurm
def test_a_cell_on_two_ranks_has_the_records_of_one(tmp_path, photos, plain):
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    output = ended(typed(*words(tmp_path, photos, "explainer=gradcam", *two, *ON_SLURM, "hydra.launcher.wait=true")))
    assert "study typed: 1 done" in output
    (cell,) = Study.open(tmp_path, "typed").cells
    assert_same_results(cell.folder, plain[cell.name])
    assert {row["rank"] for row in rows(cell.folder, "timings")} == {0, 1}


@pytest.mark.slurm
def test_jobs_that_are_requeued_signalled_or_killed_lose_nothing(tmp_path, photos, slow):
    """Three slow cells: one requeued by hand, one told that time is up, one killed."""
    struck = tmp_path / "struck"  # until then cells take so long that all three are midway
    given = {"TOY_SECONDS": 15, "TOY_UNTIL": struck}
    output = ended(typed(*words(tmp_path, photos, *SLOW, *ON_SLURM, "seed=0,1,2"), **given))
    assert "look how it goes: twinsight study status" in output  # and the terminal is free again
    study = Study.open(tmp_path, "typed")
    numbers = submitted(study)
    waiting = typed("study", "run", "typed", *ON_SLURM, "hydra.launcher.wait=true", "--root", tmp_path)
    pids = {cell.job: _after_two_pairs(cell) for cell in study.cells}
    subprocess.run(["scontrol", "requeue", numbers[0]], check=True)
    subprocess.run(["scancel", "--signal=USR2", numbers[1]], check=True)
    os.kill(pids[2], signal.SIGKILL)
    struck.touch()
    output = ended(waiting, code=1)
    assert "3 jobs are in Slurm's queue already" in output
    states = [cell.status()["state"] for cell in study.cells]
    assert states == ["done", "done", "failed"]
    assert "died without a word: killed" in study.cells[2].status()["error"]
    assert f"{numbers[2]}_0_log.out" in study.cells[2].status()["error"]
    shown = ended(typed("study", "status", "typed", "--root", tmp_path))
    assert f"failed {study.cells[2].name}: process {pids[2]} on " in shown
    for cell in study.cells[:2]:
        assert re.search(rf"computing {cell.name}: [234] of 5 pairs are done", said(study, numbers[cell.job]))
    # The killed one goes on as if nothing had been.
    ended(typed("study", "run", "typed", *ON_SLURM, "hydra.launcher.wait=true", "--root", tmp_path))
    assert_as_plain(study, {cell.name: slow[cell.name] for cell in study.cells})


def _after_two_pairs(cell) -> int:
    """The process of a cell, once two pairs are done."""
    deadline = time.monotonic() + 600
    while (status := cell.status())["state"] != "running" or status["done"] < 2:
        assert time.monotonic() < deadline, status
        assert status["state"] in ("planned", "running"), status
        time.sleep(0.2)
    return status["pid"]


@pytest.mark.slurm
def test_a_job_that_runs_out_of_time_comes_back_and_goes_on(late, slow):
    (cell,) = late.cells
    deadline = time.monotonic() + 500
    while cell.status()["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline, cell.status()
        time.sleep(1)
    number = submitted(late)[cell.job]
    assert "this job is timed-out" in said(late, number)
    assert re.search(rf"computing {cell.name}: [1234] of 5 pairs are done", said(late, number))
    assert_same_results(cell.folder, slow[cell.name])


@pytest.mark.slurm
def test_what_slurm_refuses_is_said_once(tmp_path, photos):
    refused = (*TWO, "hydra/launcher=slurm", "hydra.launcher.partition=nosuch")
    output = ended(typed(*words(tmp_path, photos, *refused)), code=2)
    assert "error: Slurm does not take the jobs: " in output
    assert "invalid partition" in output


def test_a_job_has_a_process_per_device_of_its_trainer():
    def shape(**trainer):
        return tuple(slurm.Shape.of(trainer))

    assert shape(devices=1) == (1, 1, 0)
    assert shape(devices="auto", accelerator="auto") == (1, 1, 0)
    assert shape(devices=4, accelerator="gpu", num_nodes=2) == (2, 4, 4)
    assert shape(devices=[0, 1], accelerator="cpu") == (1, 2, 0)
    with pytest.raises(UserError, match=r"`trainer\.devices` must be a number on Slurm"):
        shape(devices="all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"partitoin": "gpu"}}, "did you mean 'partition'"),
        ({"reducer": {"walltime": 3}}, r"option of hydra\.launcher\.reducer 'walltime'"),
        ({"task": "twinsight.pretrain.pretrain"}, "runs studies of explanations"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_anything_is_planned(monkeypatch, change, message):
    pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    config = OmegaConf.create({"task": {"_target_": change.get("task", "twinsight.study.explain")}})
    with pytest.raises(UserError, match=message):
        slurm.check(config, change.get("options", {}), change.get("reducer", {}))


def test_what_is_missing_for_slurm_is_named(monkeypatch):
    config = OmegaConf.create({"task": {"_target_": "twinsight.study.explain"}})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UserError, match=r'pip install "twinsight\[slurm\]"'):
            slurm.check(config, {}, {})
    pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        slurm.check(config, {}, {})


def test_work_is_put_down_before_a_job_is_requeued(monkeypatch):
    pytest.importorskip("submitit")
    heard = []

    def work():
        try:
            signal.raise_signal(signal.SIGUSR2)
        finally:
            heard.append("put down")
        return 0

    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append("requeued"))
    try:
        until_time_is_up(work, heard.append)
        assert heard == ["put down", "requeued"]

        def refuse(number, frame):
            raise RuntimeError("Job not requeued because: timed-out too many times.")

        signal.signal(signal.SIGUSR2, refuse)
        with pytest.raises(RuntimeError):
            until_time_is_up(work, heard.append)
        assert "ran out of time and was not started again (Job not requeued" in heard[-1]
    finally:
        signal.signal(signal.SIGUSR2, before)
    with pytest.raises(SystemExit) as stopped:
        until_time_is_up(lambda: 1, heard.append)
    assert stopped.value.code == 1
