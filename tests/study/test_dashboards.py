"""What dashboards get of studies: a run per cell, failed ones too, and one of the whole; never twice, no waiting."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import wandb
from omegaconf import OmegaConf
from PIL import Image

from toy_cells import COLUMNS, cells, only_cell
from toy_studies import planned, run
from toy_wandb import KEY, WANDB, configuration, described, exit_code, history, runs, stranger, table
from twinsight.study import Study, explain
from twinsight.study.dashboard import dashboards, log_cells
from twinsight.study.evaluation import Evaluation
from twinsight.study.locks import Lock
from twinsight.study.loggers import log_cell
from twinsight.tracking import Uploads, chosen_loggers, waiting_runs
from twinsight.tracking.uploads import mark_finished

__all__ = ["stranger"]


def broken(monkeypatch, label="gradcam"):
    """From now on, cells of this label fail."""
    genuine = Evaluation._run

    def fail(self, cell, writer, batch):
        if cell.label == label:
            raise RuntimeError("a fault of ours\nwith a second line")
        genuine(self, cell, writer, batch)

    monkeypatch.setattr(Evaluation, "_run", fail)


def driven(study):
    """A study, run and logged as ``-m`` does, in this process."""
    with dashboards(study):
        run(study)
    return study


def names(study):
    return {cell.name: f"{study.name}-{cell.digest[:16]}" for cell in study.cells}


@pytest.fixture(scope="module")
def logged(photos, tmp_path_factory):
    """A study of three cells, one of which failed, logged offline."""
    root = tmp_path_factory.mktemp("logged")
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        broken(patch, "lafam")
        study = driven(planned(root, photos, "explainer=gradcam,random,lafam", *WANDB))
    os.environ.clear()
    os.environ.update(environment)
    return study


def test_every_cell_is_a_run_and_the_study_is_one_more(logged):
    found = runs(logged.root)
    assert set(found) == {*names(logged).values(), "toy-study"}
    for cell in logged.cells:
        run = described(found[names(logged)[cell.name]])
        assert (run.display_name, run.run_group, run.job_type) == (cell.name, "toy", "cell")
        assert set(run.tags) == {"mine", "image_folder", "small_two_view", cell.label}
    whole = described(found["toy-study"])
    assert (whole.display_name, whole.run_group, whole.job_type) == ("toy", "toy", "study")


def test_runs_end_with_an_exit_code_and_a_failed_cell_says_why(logged):
    found = runs(logged.root)
    codes = {cell.label: exit_code(found[names(logged)[cell.name]]) for cell in logged.cells}
    assert codes == {"gradcam": 0, "random": 0, "lafam": 1}
    assert exit_code(found["toy-study"]) == 1
    for cell in logged.cells:
        config = configuration(found[names(logged)[cell.name]])
        failed = cell.label == "lafam"
        assert config["state"] == ("failed" if failed else "done")
        assert config["error"] == ("RuntimeError: a fault of ours" if failed else "")
        assert (config["cell"], config["study"]) == (cell.digest, "toy")
        assert config["axes"] == {"explainer": cell.label}


def test_runs_of_cells_have_their_tables_and_pictures(logged):
    found = runs(logged.root)
    for cell in logged.cells[:2]:
        folder = found[names(logged)[cell.name]]
        assert [row[1] is None for row in table(folder, "pairs_table")["data"]] == [False, True]
        assert {key for _, key, _ in table(folder, "insertion_deletion")["data"]} >= {"SI", "SD"}


def test_the_run_of_the_study_has_results_intervals_bars_and_parallel_coordinates(logged):
    folder = runs(logged.root)["toy-study"]
    results = table(folder, "results")
    rows = {row[0]: dict(zip(results["columns"], row, strict=True)) for row in results["data"]}
    assert set(rows) == set(names(logged))
    for cell in logged.cells:
        row = rows[cell.name]
        assert row["explainer"] == cell.label
        if cell.label == "lafam":
            assert (row["state"], row["error"], row["ci"]) == ("failed", "RuntimeError: a fault of ours", None)
            continue
        means = json.loads((cell.folder / "metrics.json").read_text())["metrics"]
        assert {name: row[name] for name in COLUMNS} == {name: means[name]["mean"] for name in COLUMNS}
    by_metric = {(row[0], row[1]): row[2] for row in table(folder, "table")["data"]}
    assert by_metric["gradcam", "ci"] == pytest.approx(rows[logged.cells[0].name]["ci"])
    bars = table(folder, "bars/ci")
    assert bars["columns"] == ["row", "ci"]
    assert {row[0]: row[1] for row in bars["data"]} == {
        label: pytest.approx(by_metric[label, "ci"]) for label in ("gradcam", "random")
    }
    chart = configuration(folder)["_wandb/visualize/bars/ci"]
    assert chart["panel_config"]["panelDefId"] == "wandb/bar/v0"
    (picture,) = (folder / "files" / "media" / "images").glob("parallel_coordinates_*.png")
    with Image.open(picture) as image:
        assert np.asarray(image.convert("L")).std() > 5
    counts = history(folder)
    assert (counts[("cells",)], counts[("done",)], counts[("failed",)]) == (3, 2, 1)


def test_the_documented_command_finds_every_run(logged):
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(logged.root / "wandb")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = {line.split("run-")[-1].removesuffix(".wandb") for line in found.stderr.splitlines() if ".wandb" in line}
    assert listed == set(runs(logged.root))


def test_what_is_logged_stays_as_it_is_until_something_changes(photos, tmp_path):
    study = driven(planned(tmp_path, photos, "explainer=gradcam,lafam", *WANDB))
    before = runs(tmp_path)
    assert driven(Study.open(tmp_path, "toy"))
    assert runs(tmp_path) == before
    # Another member: the study's run is made anew, those of the cells are not.
    driven(planned(tmp_path, photos, "explainer=random", *WANDB))
    after = runs(tmp_path)
    assert {name for name, folder in after.items() if before.get(name) != folder} == {
        "toy-study",
        *(set(names(Study.open(tmp_path, "toy")).values()) - set(names(study).values())),
    }


@pytest.mark.faults
def test_a_run_that_was_killed_before_it_was_noted_is_not_doubled(photos, tmp_path):
    study = driven(planned(tmp_path, photos, "explainer=gradcam", *WANDB))
    (cell,) = study.cells
    (cell.folder / "logged.json").unlink()
    driven(Study.open(tmp_path, "toy"))
    assert set(runs(tmp_path)) == {*names(study).values(), "toy-study"}  # and none twice
    assert len(waiting_runs(tmp_path / "wandb")) == 2


def test_a_cell_that_another_process_logs_is_left_to_it(photos, tmp_path):
    study = planned(tmp_path, photos, "explainer=gradcam", *WANDB)
    run(study)
    (cell,) = study.cells
    (cell.folder / "logged.json").unlink()
    shutil.rmtree(tmp_path / "wandb")
    other = Lock(cell.folder / "logging")
    assert other.take()
    assert log_cells(study.cells, "toy") == [cell]
    assert not list((tmp_path / "wandb").glob("offline-run-*"))
    other.release()
    assert log_cells(study.cells, "toy") == []
    assert set(runs(tmp_path)) == set(names(study).values())


def test_a_cell_of_two_studies_is_a_run_in_each(photos, tmp_path):
    one = driven(planned(tmp_path, photos, "explainer=gradcam", *WANDB, name="one"))
    other = driven(planned(tmp_path, photos, "explainer=gradcam", *WANDB, name="other"))
    assert [cell.name for cell in one.cells] == [cell.name for cell in other.cells]
    assert set(runs(tmp_path)) == {*names(one).values(), *names(other).values(), "one-study", "other-study"}
    assert {described(folder).run_group for folder in runs(tmp_path).values()} == {"one", "other"}


def test_a_cell_that_succeeds_at_last_turns_its_run_round(photos, tmp_path, monkeypatch):
    study = planned(tmp_path, photos, "explainer=gradcam", *WANDB)
    with monkeypatch.context() as patch:
        broken(patch)
        driven(study)
    (name,) = names(study).values()
    assert exit_code(runs(tmp_path)[name]) == 1
    run(study, retry_failed=True)
    folder = runs(tmp_path)[name]
    assert (exit_code(folder), configuration(folder)["state"], configuration(folder)["error"]) == (0, "done", "")


@pytest.mark.faults
def test_a_cell_whose_process_was_killed_is_logged_as_failed_at_the_end(photos, tmp_path):
    study = planned(tmp_path, photos, "explainer=gradcam", *WANDB)
    (cell,) = study.cells
    with dashboards(study):
        cell.folder.mkdir(parents=True)
        status = {"state": "failed", "error": "its process was killed by SIGKILL", "done": 1, "signal": "SIGKILL"}
        (cell.folder / "status.json").write_text(json.dumps(status))
    folder = runs(tmp_path)[names(study)[cell.name]]
    assert (exit_code(folder), configuration(folder)["error"]) == (1, "its process was killed by SIGKILL")


@pytest.mark.faults
def test_a_run_that_raises_half_way_is_finished_as_failed_and_made_anew(photos, tmp_path, monkeypatch, caplog):
    study = planned(tmp_path, photos, "explainer=gradcam", *WANDB)
    with monkeypatch.context() as patch:
        patch.setattr("twinsight.study.loggers._log_tables", lambda *_: 1 / 0)
        run(study)
    assert "could not be logged to wandb: ZeroDivisionError" in caplog.text
    (name,) = names(study).values()
    assert exit_code(runs(tmp_path)[name]) == 1
    assert log_cells(study.cells, "toy") == []
    assert exit_code(runs(tmp_path)[name]) == 0


def test_a_single_run_that_fails_is_shown_as_failed(tiny):
    config = tiny(*WANDB, explainer={"_target_": "toy_cells.Failing"})
    with pytest.raises(RuntimeError, match="the method is broken"):
        explain(config)
    ((_, folder),) = runs(only_cell(config).parents[1]).items()
    assert (exit_code(folder), configuration(folder)["error"]) == (1, "RuntimeError: the method is broken")


@pytest.fixture
def agent(monkeypatch, tmp_path):
    """What the agent of a W&B sweep tells the program that it starts."""
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("wandb_version: 1\nexplainer.window:\n  value: 8\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen0")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(parameters))
    return "chosen0"


def test_under_an_agent_the_run_is_the_agents_and_knows_the_hash(tiny, agent):
    config = tiny("explainer=gradcam", *WANDB)
    assert explain(config) == 0
    cell = only_cell(config)
    ((name, folder),) = runs(cell.parents[1]).items()
    assert name == agent
    assert described(folder).sweep_id == "sweep0"
    assert configuration(folder)["cell"].startswith(cell.name.rpartition("-")[2])
    assert configuration(folder)["explainer.window"] == 8
    assert os.environ["WANDB_RUN_ID"] == agent
    # The same cell chosen once more is another run of the sweep.
    os.environ["WANDB_RUN_ID"] = "chosen1"
    wandb.teardown()
    assert explain(config) == 0
    assert set(runs(cell.parents[1])) == {"chosen0", "chosen1"}


def test_under_an_agent_further_cells_keep_out_of_the_sweep(tiny, agent):
    config = tiny("explainers=[gradcam,lafam]", *WANDB)
    assert explain(config) == 0
    found = runs(only_root(config))
    assert len(found) == 2
    assert {name: described(folder).sweep_id for name, folder in found.items()} == {
        agent: "sweep0",
        next(name for name in found if name != agent): "",
    }


def only_root(config):
    return next(iter(cells(config.paths.output_root).values())).parents[1]


def test_under_an_agent_a_study_is_the_agents_run_and_its_cells_are_not(photos, tmp_path, agent):
    study = driven(planned(tmp_path, photos, "explainer=gradcam,lafam", *WANDB))
    found = runs(tmp_path)
    assert set(found) == {*names(study).values(), agent}
    means = [json.loads((cell.folder / "metrics.json").read_text())["metrics"]["ci"]["mean"] for cell in study.cells]
    assert history(found[agent])[("ci",)] == pytest.approx(np.mean(means))
    assert {described(folder).sweep_id for name, folder in found.items() if name != agent} == {""}


# W&B that is slow or away


@contextmanager
def silent_server():
    """Accepts everybody and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def closed_port():
    """Nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.faults
@pytest.mark.parametrize(("server", "mode"), [(silent_server, "auto"), (closed_port, "online")])
def test_a_server_that_is_silent_or_away_costs_a_bounded_wait_and_no_run(server, mode, tiny, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = tiny("explainer=gradcam", *WANDB, f"logger.wandb.mode={mode}", "logger.wandb.upload_seconds=2")
    with server() as url, caplog.at_level("INFO"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert explain(config) == 0  # in seconds; left alone, wandb sync would try for hours
    (folder,) = waiting_runs(only_cell(config).parents[1] / "wandb")
    assert exit_code(folder) == 0
    assert f"wandb sync {folder.parent}" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in (folder.parent / "upload.log").read_text()
    with (folder.parent / "upload.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the upload has ended, and nothing of it is left
    assert json.loads((only_cell(config) / "logged.json").read_text()) == {"wandb/": "done"}


def fake_wandb(tmp_path, monkeypatch, script):
    """Stands for ``python -m wandb``, since no test may reach the real server."""
    package = tmp_path / "fake" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import pathlib, sys, time\n" + script)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


UPLOADED = """
for folder in map(pathlib.Path, sys.argv[2:]):
    (folder / "run-x.wandb.synced").touch()
"""


def finished_run(folder, name):
    path = folder / f"offline-run-20260101_000000-{name}"
    path.mkdir(parents=True)
    mark_finished(path)
    return path


def test_finished_runs_are_uploaded_and_others_left_alone(tmp_path, monkeypatch, caplog):
    fake_wandb(tmp_path, monkeypatch, UPLOADED)
    old = finished_run(tmp_path, "old")
    (tmp_path / "offline-run-20260101_000000-unfinished").mkdir()
    with caplog.at_level("INFO"), Uploads(tmp_path, online=True, seconds=60):
        new = finished_run(tmp_path, "new")
    assert waiting_runs(tmp_path) == []
    assert [len(list(path.glob("*.synced"))) for path in (old, new)] == [1, 1]
    assert not list(tmp_path.glob("*-unfinished/*"))
    assert "2 W&B runs uploaded" in caplog.text


def test_nothing_is_uploaded_offline_and_only_new_runs_are_spoken_of(tmp_path, monkeypatch, caplog):
    fake_wandb(tmp_path, monkeypatch, UPLOADED)
    finished_run(tmp_path, "old")
    with caplog.at_level("INFO"):
        with Uploads(tmp_path, online=False):
            pass
        assert not caplog.text
        with Uploads(tmp_path, online=False):
            finished_run(tmp_path, "new")
    assert f"2 W&B runs kept offline; to upload them: wandb sync {tmp_path}" in caplog.text
    assert len(waiting_runs(tmp_path)) == 2


def test_two_processes_do_not_upload_one_folder_at_once(tmp_path, monkeypatch):
    fake_wandb(tmp_path, monkeypatch, "time.sleep(60)\n")
    finished_run(tmp_path, "one")
    first, second = Uploads(tmp_path, online=True), Uploads(tmp_path, online=True)
    assert first._step()
    assert not second._step()
    first._stop()
    assert second._step()
    second._stop()


def test_ctrl_c_does_not_wait_for_uploads(tmp_path, monkeypatch):
    fake_wandb(tmp_path, monkeypatch, "time.sleep(600)\n")
    finished_run(tmp_path, "one")
    uploads = Uploads(tmp_path, online=True, seconds=300)
    with uploads:
        assert uploads._step()
        process = uploads._process
        uploads.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert process.poll() is not None
        shutil.rmtree(tmp_path / "offline-run-20260101_000000-one")


def test_what_one_logger_of_a_list_does_wrong_costs_the_others_nothing(photos, tmp_path, caplog):
    study = planned(tmp_path, photos, "explainer=gradcam", *WANDB, "logger=[csv,wandb]")
    run(study)
    (cell,) = study.cells
    assert json.loads((cell.folder / "logged.json").read_text()) == {"csv/toy": "done", "wandb/toy": "done"}
    (cell.folder / "logged.json").unlink()
    loggers = chosen_loggers(OmegaConf.create(cell.config))
    loggers["csv"]._target_ = "nowhere.Logger"
    assert log_cell(cell, loggers, "toy")
    assert "could not be logged to csv" in caplog.text
    assert json.loads((cell.folder / "logged.json").read_text()) == {"wandb/toy": "done"}
