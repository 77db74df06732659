"""Studies on a real Slurm, as a user types them; ``make test-slurm`` starts one of a single node."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from toy_cells import assert_same_results, rows
from toy_studies import SLOW, TWO, assert_as_plain, ended, typed, words
from twinsight.study import Study

ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=debug")


@pytest.fixture(autouse=True)
def _a_slurm(request):
    if request.node.get_closest_marker("slurm") and subprocess.run(["sinfo"], capture_output=True).returncode != 0:
        pytest.fail("no Slurm answers: make test-slurm starts one")


def submitted(study: Study) -> dict[int, str]:
    """Numbers at Slurm, by that of the job in the plan."""
    lines = map(json.loads, (study.folder / "slurm" / "submitted.jsonl").read_text().splitlines())
    return {line["job"]: line["id"] for line in lines}


def said(study: Study, number: str) -> str:
    return (study.folder / "slurm" / f"{number}_0_log.out").read_text()


@pytest.mark.slurm
def test_an_array_of_cells_ends_as_cells_run_one_by_one(tmp_path, photos, plain, capsys):
    output = ended(typed(*words(tmp_path, photos, *TWO, *ON_SLURM, "hydra.launcher.wait=true", "shard=2")))
    assert "submitted 8 jobs to Slurm" in output
    assert "study typed: 4 done" in output
    study = Study.open(tmp_path, "typed")
    assert_as_plain(study, plain)
    assert all((cell.folder / "metrics.json").exists() for cell in study.cells)
    sent = (study.folder / "slurm" / "submitted.jsonl").stat().st_mtime
    cell = study.cells[0]
    work = sum(row["explain_seconds"] + row["metrics_seconds"] for row in rows(cell.folder, "timings"))
    with capsys.disabled():
        whole = (cell.folder / "status.json").stat().st_mtime - sent
        print(f"\na cell beside seven other jobs: {whole:.0f} s after its submission, {work:.1f} s of them its work")
    # What is done is not submitted again.
    assert "submitted" not in ended(typed("study", "run", "typed", "--root", tmp_path, *ON_SLURM))


@pytest.mark.slurm
def test_a_cell_on_two_ranks_has_the_records_of_one(tmp_path, photos, plain):
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    output = ended(typed(*words(tmp_path, photos, "explainer=gradcam", *two, *ON_SLURM, "hydra.launcher.wait=true")))
    assert "study typed: 1 done" in output
    (cell,) = Study.open(tmp_path, "typed").cells
    assert_same_results(cell.folder, plain[cell.name])
    assert {row["rank"] for row in rows(cell.folder, "timings")} == {0, 1}


@pytest.mark.slurm
def test_jobs_that_are_requeued_signalled_late_or_killed_lose_nothing(tmp_path, photos, slow):
    """Four slow cells: one requeued by hand, one told that time is up, one killed; a fourth with a minute's limit."""
    options = (*SLOW, *ON_SLURM)
    sending = [
        typed(*words(tmp_path, photos, *options, "seed=0,1,2"), TOY_SECONDS=5),
        typed(
            *words(tmp_path, photos, *options, "seed=3", study="late"),
            *("hydra.launcher.time=1", "hydra.launcher.signal_delay_s=15"),
            TOY_SECONDS=12,
        ),
    ]
    for process in sending:
        assert "look how it goes: twinsight study status" in ended(process)  # and the terminal is free again
    study, late = Study.open(tmp_path, "typed"), Study.open(tmp_path, "late")
    numbers = submitted(study)
    waiting = typed("study", "run", "typed", "--root", tmp_path, *ON_SLURM, "hydra.launcher.wait=true")
    pids = {cell.job: _after_two_pairs(cell) for cell in study.cells}
    subprocess.run(["scontrol", "requeue", numbers[0]], check=True)
    subprocess.run(["scancel", "--signal=USR2", numbers[1]], check=True)
    os.kill(pids[2], signal.SIGKILL)
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
    ended(typed("study", "run", "typed", "--root", tmp_path, *ON_SLURM, "hydra.launcher.wait=true"))
    assert_as_plain(study, {cell.name: slow[cell.name] for cell in study.cells})
    # The late one has run out of its minute, and gone on.
    deadline = time.monotonic() + 300
    (cell,) = late.cells
    while cell.status()["state"] != "done":
        assert time.monotonic() < deadline, cell.status()
        time.sleep(1)
    (number,) = submitted(late).values()
    assert "this job is timed-out" in said(late, number)
    assert re.search(rf"computing {cell.name}: [1234] of 5 pairs are done", said(late, number))
    assert_same_results(cell.folder, slow[cell.name])


def _after_two_pairs(cell) -> int:
    """The process of a cell, once two pairs are done."""
    deadline = time.monotonic() + 300
    while (status := cell.status())["state"] != "running" or status["done"] < 2:
        assert time.monotonic() < deadline, status
        assert status["state"] in ("planned", "running"), status
        time.sleep(0.2)
    return status["pid"]


@pytest.mark.slurm
def test_what_slurm_refuses_is_said_once(tmp_path, photos):
    refused = (*TWO, "hydra/launcher=slurm", "hydra.launcher.partition=nosuch")
    output = ended(typed(*words(tmp_path, photos, *refused)), code=2)
    assert "error: Slurm does not take the jobs: " in output
    assert "invalid partition" in output
