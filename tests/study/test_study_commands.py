"""Studies as a user types them: -m, again, with faults, beside each other; and what can be asked of them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from toy_cells import ROOT, TINY, assert_same_results
from toy_studies import SLOW, TWO, assert_as_plain, ended, planned, typed, words
from twinsight.study import Study
from twinsight.study.command import main
from twinsight.study.job import Order, has_work, run_job

COMPUTING = (
    *("explainer=conditional_occlusion", "explainer.window=8", "explainer.stride=1"),
    "metrics.insertion_deletion.points=128",
)
"""Goes through the network for longer than a signal takes."""


def finish(root, name="typed"):
    """The rest of a study, in this process."""
    study = Study.open(root, name)
    for job in study.jobs:
        run_job(Order(str(root), name, job, retry_failed=True))
    return study


def states(study):
    return [cell.status()["state"] for cell in study.cells]


def test_a_study_runs_once_and_no_edit_of_a_file_reaches_what_is_planned(tmp_path, photos, plain):
    checkout, root = tmp_path / "checkout", tmp_path / "out"
    for part in ("src", "conf"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__", "photos"))
    shutil.copy(ROOT / "run.py", checkout)
    command = words(root, photos, *TWO)
    # Planned, and the first cell run; then the files change under the others.
    process = typed(*command, at=checkout)
    deadline = time.monotonic() + 300
    while not list(root.glob("cells/*/status.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    edited = checkout / "conf" / "metrics" / "default.yaml"
    edited.write_text(edited.read_text().replace("granularity: 1", "granularity: 4"))
    (checkout / "conf" / "config.yaml").write_text("not: [valid")
    output = ended(process)
    assert "study typed: 4 done" in output
    study = Study.open(root, "typed")
    assert_as_plain(study, plain)
    shutil.copy(ROOT / "conf" / "config.yaml", checkout / "conf")
    again = ended(typed(*command, at=checkout))
    assert "was planned with these words on" in again
    assert "[1/" not in again
    assert len(list((root / "cells").iterdir())) == 4


@pytest.mark.faults
def test_a_failing_cell_stops_nothing_and_is_listed_at_the_end(tmp_path, photos, capsys):
    failing = "explainer._target_=toy_cells.Failing,twinsight.explainers.LaFAM"
    output = ended(typed(*words(tmp_path, photos, "explainer=lafam", failing)), code=1)
    study = Study.open(tmp_path, "typed")
    assert states(study) == ["failed", "done"]
    assert "study typed: 1 failed, 1 done" in output
    assert f"  failed {study.cells[0].name}: RuntimeError: the method is broken" in output
    assert "retry_failed=true" in output
    assert main(["status", "typed", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 cells: 1 done, 1 failed" in shown
    assert "5 of 10 pairs (50%)" in shown


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code", "slow"), [(signal.SIGTERM, 143, COMPUTING), (signal.SIGINT, 130, SLOW)])
def test_a_signal_ends_a_study_in_order_and_it_goes_on_later(tmp_path, photos, number, code, slow):
    process = typed(*words(tmp_path, photos, *slow, "loader.batch_size=1", "seed=0,1"), TOY_SECONDS=2)
    deadline = time.monotonic() + 300
    while "running" not in "".join(path.read_text() for path in tmp_path.glob("cells/*/status.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    ended(process, code, timeout=300)
    study = Study.open(tmp_path, "typed")
    assert set(states(study)) <= {"interrupted", "planned", "done"}
    assert not list(tmp_path.rglob("*.partial"))
    assert set(states(finish(tmp_path))) == {"done"}


@pytest.mark.faults
def test_two_drivers_do_no_cell_twice(tmp_path, photos, plain):
    planned(tmp_path, photos, *TWO, name="typed")
    command = ["-m", "study=typed", f"paths.output_root={tmp_path}", "hydra.verbose=[twinsight.study.run]"]
    outputs = [ended(process) for process in [typed(*command), typed(*command)]]
    study = Study.open(tmp_path, "typed")
    assert_as_plain(study, plain)
    for cell in study.cells:
        assert sum(output.count(f"computing {cell.name}: 0 of 5") for output in outputs) == 1


@pytest.mark.faults
@pytest.mark.slow
def test_a_study_killed_ten_times_at_random_moments_ends_as_an_undisturbed_one(tmp_path, photos, plain):
    draw = random.Random(2)
    command = words(tmp_path, photos, *TWO, "loader.batch_size=1")
    for _ in range(10):
        process = typed(*command)
        time.sleep(draw.uniform(8, 40))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    ended(typed(*command, "retry_failed=true"))
    assert_as_plain(Study.open(tmp_path, "typed"), plain)


def test_a_dry_run_says_what_a_study_costs_and_writes_nothing(tmp_path, photos):
    output = ended(typed("study", "plan", *words(tmp_path / "out", photos, *TWO)[1:]))
    assert "study typed would have 4 cells, 0 of them planned before" in output
    assert "explainer=gradcam, seed=0: 5 pairs, 160 forwards" in output
    assert "forwards: 640" in output
    assert "forwards a second" in output
    assert "disk: at most" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("study=typed",), "`study=typed` is for many cells: add -m"),
        (("shard=2",), "`shard=2` is for many cells: add -m"),
        (("replan=true",), "`replan=True` is for many cells: add -m"),
        (("-m", "study=cells", "seed=0,1"), "cannot name a study"),
        (("-m", "study=typed", "seed=0,1", "trainer.devices=2"), "use trainer.devices=1 with -m"),
        (("-m", "study=typed", "seed=0,1", "trainer.devices=[0,1]"), "use trainer.devices=1 with -m"),
        (("-m", "study=typed", "seed=0,1", "shard=none"), "`shard` must be auto or a number of parts"),
        (("study", "status", "nosuch"), "no study has been planned below"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(monkeypatch, capfd, tmp_path, photos, command, message):
    from twinsight.__main__ import main as command_line

    place = ("--root", str(tmp_path)) if command[0] == "study" else words(tmp_path, photos)[2:]
    monkeypatch.setattr(sys, "argv", ["run.py", *command, *place])
    assert command_line() == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("error: ") == 1
    assert not list(tmp_path.glob("*/plan.jsonl"))


def test_what_can_be_asked_of_a_study(monkeypatch, capsys, tmp_path, photos):
    planned(tmp_path, photos, *TWO, name="typed")
    study = finish(tmp_path)
    place = ["--root", str(tmp_path)]
    assert main(["table", "typed", *place, "--by", "explainer", "--by", "seed"]) == 0
    assert "| explainer | seed | pairs |" in capsys.readouterr().out
    assert {path.name for path in (study.folder / "tables").iterdir()} == {
        f"table-by-explainer-seed.{ending}" for ending in ("md", "csv", "parquet")
    }
    assert main(["export", "typed", *place, "--output", str(tmp_path / "all.csv")]) == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 21
    assert main(["plan", "typed", *place]) == 0
    assert "4 cells, 4 of them done" in capsys.readouterr().out
    assert main(["prune", "typed", *place, "--yes"]) == 0
    assert "removed: results of 4 cells" in capsys.readouterr().out
    assert main(["plan", "typed", *place]) == 0
    assert "forwards a second (measured now" in capsys.readouterr().out
    monkeypatch.setattr("twinsight.__main__.run_words", lambda given: print(" ".join(given)) or 0)
    assert main(["run", "typed", "shard=2", *place, "retry_failed=true"]) == 0
    assert capsys.readouterr().out.endswith(f"paths.output_root={tmp_path} shard=2 retry_failed=true\n")
    monkeypatch.setattr("twinsight.study.driver.dry_run", lambda given: [" ".join(given)])
    assert main(["plan", "seed=0,1", *place]) == 0
    assert capsys.readouterr().out == f"seed=0,1 paths.output_root={tmp_path}\n"
    with pytest.raises(SystemExit):
        main(["status", "typed", *place, "retry_failed=true"])
    assert json.loads((study.folder / "study.json").read_text())["name"] == "typed"
    assert all(has_work(cell) for cell in study.cells)


@pytest.mark.faults
@pytest.mark.slow
def test_a_run_of_which_one_rank_dies_ends_and_goes_on_later(tmp_path, photos):
    """Lightning ends such a run by SIGKILL: nothing can be written then, and the next run finds the holder dead."""
    slow = ("explainer=conditional_occlusion", "explainer.window=8", "explainer.stride=1", "loader.batch_size=1")
    cell = [*TINY, f"data.root={photos}", *slow]
    process = typed(*cell, f"paths.output_root={tmp_path}", "trainer.devices=2", "trainer.strategy=ddp")
    deadline = time.monotonic() + 300
    while not (fragments := list(tmp_path.glob("cells/*/status.json"))) or "running" not in fragments[0].read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    other = []
    while not other:
        assert time.monotonic() < deadline
        ranks = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "run.py"], capture_output=True, text=True)
        other = [int(pid) for pid in ranks.stdout.split()]
    time.sleep(12)  # so that it has joined
    os.kill(other[0], signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    ended(typed(*cell, f"paths.output_root={tmp_path}"))
    ended(typed(*cell, f"paths.output_root={tmp_path / 'undisturbed'}"))
    (found,), (expected,) = ((root / "cells").iterdir() for root in (tmp_path, tmp_path / "undisturbed"))
    assert_same_results(found, expected)
