"""Studies on a real Ray of this machine, as a user types them."""

import json
import os
import signal
import sys
import time

import pytest
from omegaconf import OmegaConf

from toy_studies import SLOW, TWO, assert_as_plain, ended, typed, words
from twinsight.errors import UserError
from twinsight.study import Study, on_ray

ON_RAY = ("hydra/launcher=ray", "hydra.launcher.init.num_cpus=2")


@pytest.mark.ray
def test_four_cells_on_two_workers_end_as_cells_run_one_by_one(tmp_path, photos, plain):
    output = ended(typed(*words(tmp_path, photos, *TWO, *ON_RAY)))
    assert "4 jobs on Ray: 2 CPUs" in output
    assert "[4/4] done" in output
    assert "study typed: 4 done" in output
    assert_as_plain(Study.open(tmp_path, "typed"), plain)


@pytest.mark.ray
def test_neither_a_failing_cell_nor_a_killed_worker_stops_the_others(tmp_path, photos, slow):
    targets = "explainer._target_=toy_cells.Failing,toy_cells.Slow"
    command = words(tmp_path, photos, "explainer=lafam", targets, "seed=0,1", *ON_RAY)
    process = typed(*command, TOY_SECONDS=3)
    deadline = time.monotonic() + 600
    while not (tmp_path / "typed" / "plan.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    cells = {(cell.label, cell.config["seed"]): cell for cell in Study.open(tmp_path, "typed").cells}
    victim = cells["slow", 0]
    while (status := victim.status())["state"] != "running" or status["done"] < 1:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    os.kill(status["pid"], signal.SIGKILL)
    output = ended(process, code=1)
    states = {key: cell.status()["state"] for key, cell in cells.items()}
    assert states == {
        ("failing", 0): "failed",
        ("failing", 1): "failed",
        ("slow", 0): "failed",
        ("slow", 1): "done",
    }
    assert output.count("the method is broken") >= 2
    error = victim.status()["error"]
    assert f"process {status['pid']} on " in error
    assert "died without a word" in error
    assert "WorkerCrashedError" in error
    # The killed one goes on; those at fault are left.
    output = ended(typed("study", "run", "typed", *ON_RAY, "--root", tmp_path), code=1)
    assert "1 jobs on Ray" in output
    assert victim.status()["state"] == "done"
    done = Study.open(tmp_path, "typed")
    done.cells[:] = [cell for cell in done.cells if cell.label == "slow"]
    assert_as_plain(done, {cell.name: slow[cell.name] for cell in done.cells})


@pytest.mark.ray
def test_sigterm_reaches_the_jobs_which_keep_what_they_have(tmp_path, photos):
    process = typed(*words(tmp_path, photos, *SLOW, "seed=0,1", *ON_RAY), TOY_SECONDS=6)
    deadline = time.monotonic() + 600
    while not any(json.loads(path.read_text()).get("done") for path in tmp_path.glob("cells/*/status.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    ended(process, code=143, timeout=300)
    states = [cell.status() for cell in Study.open(tmp_path, "typed").cells]
    assert {status["state"] for status in states} <= {"interrupted", "planned"}
    assert any(status.get("done", 0) >= 1 for status in states)


@pytest.mark.ray
def test_what_ray_has_not_is_said_before_a_job_waits_for_it(tmp_path, photos):
    output = ended(typed(*words(tmp_path, photos, *TWO, *ON_RAY, "hydra.launcher.num_gpus=1")), code=2)
    assert "error: a job wants to hold 1 GPUs, and Ray has 0" in output


def test_a_job_leases_a_gpu_where_its_trainer_would_take_one():
    resources = {"num_cpus": 2, "num_gpus": None, "max_retries": 0}
    leases = [
        on_ray.lease(resources, {"accelerator": accelerator}, room)["num_gpus"]
        for accelerator in ("auto", "gpu", "cpu")
        for room in ({"CPU": 8}, {"CPU": 8, "GPU": 4})
    ]
    assert leases == [0, 1, 1, 1, 0, 0]
    assert on_ray.lease({**resources, "num_gpus": 0.5}, {"accelerator": "gpu"}, {})["num_gpus"] == 0.5


def test_what_ray_cannot_run_is_refused_before_anything_is_planned(monkeypatch):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="runs studies of explanations"):
        on_ray.check(OmegaConf.create({"task": {"_target_": "twinsight.pretrain.pretrain"}}))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "twinsight\[ray\]"'):
        on_ray.check(OmegaConf.create({"task": {"_target_": "twinsight.study.explain"}}))
