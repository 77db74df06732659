"""Other loggers than W&B, alone and in lists: what a cell leaves in the files of each."""

import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from toy_cells import COLUMNS, only_cell
from toy_studies import planned, run
from twinsight.errors import UserError
from twinsight.study import explain
from twinsight.study.dashboard import log_cells
from twinsight.tracking import check_loggers, chosen_loggers


def means(cell):
    facts = json.loads((cell / "metrics.json").read_text())["metrics"]
    return {name: pytest.approx(facts[name]["mean"]) for name in COLUMNS}


@pytest.fixture(scope="module")
def logged(photos, tmp_path_factory):
    """A study of one cell and its records with every local logger; logged twice, as after a kill."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    root = tmp_path_factory.mktemp("logged")
    words = ("explainer=gradcam", "data.limit=2", "pictures.limit=1", "logger=[csv,tensorboard,mlflow]")
    study = planned(root, photos, *words)
    assert run(study) == [0]
    (cell,) = study.cells
    assert set(json.loads((cell.folder / "logged.json").read_text())) == {"csv/toy", "tensorboard/toy", "mlflow/toy"}
    (cell.folder / "logged.json").unlink()
    log_cells(study.cells, "toy")
    return cell


def test_csv_has_the_means_below_study_and_cell(logged):
    (path,) = (logged.folder.parents[1] / "csv").rglob("metrics.csv")
    assert path.parts[-3:-1] == ("toy", logged.name)
    with path.open() as opened:
        (row,) = csv.DictReader(opened)
    assert {name: float(row[name]) for name in COLUMNS} == means(logged.folder)


def test_tensorboard_has_means_curves_pictures_and_options(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = logged.folder.parents[1] / "tensorboard" / "toy" / logged.name
    assert len(list(folder.glob("events.*"))) == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert {name: events.Scalars(name)[-1].value for name in COLUMNS} == means(logged.folder)
    assert [event.step for event in events.Scalars("curves/SI")] == [0, 12, 25, 38, 50, 62, 75, 88, 100]
    assert tags["images"] == ["pairs/ant.png"] or len(tags["images"]) == 1
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_mlflow_has_one_run_with_means_options_and_pictures(logged):
    from mlflow.tracking import MlflowClient

    root = logged.folder.parents[1]
    client = MlflowClient(f"sqlite:///{root}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("twinsight")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (logged.name, "FINISHED")
    assert {name: found.data.metrics[name] for name in COLUMNS} == means(logged.folder)
    assert found.data.params["explainer/name"] == "gradcam"
    assert (found.data.tags["study"], found.data.params["cell"]) == ("toy", logged.digest)
    pictures = (root / "mlflow" / "artifacts" / found.info.run_id).rglob("*.png")
    assert [path.name for path in pictures if path.is_file()] == ["00000-ant.png"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["logger=none"], []),
        (["logger=csv"], ["csv"]),
        (["logger=[wandb,csv]", "logger.wandb.mode=offline"], ["wandb", "csv"]),
        (["logger=[csv,tensorboard]"], ["csv", "tensorboard"]),
    ],
)
def test_loggers_are_chosen_by_name_alone_or_in_a_list(tiny, words, names):
    assert list(chosen_loggers(tiny(*words))) == names


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_a_logger_whose_package_is_missing_names_the_extra_before_anything_runs(tiny, monkeypatch, name):
    config = tiny(f"logger={name}")
    monkeypatch.setattr("twinsight.errors.find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf'`logger={name}` needs {name}: pip install "twinsight\[{name}\]"'):
        explain(config)
    assert not Path(config.paths.output_root).exists()


def test_what_is_no_logger_is_refused():
    with pytest.raises(UserError, match=r"`logger\.mode` is no logger"):
        check_loggers(OmegaConf.create({"logger": {"mode": "offline"}}))


def test_a_cell_is_logged_to_a_logger_that_was_not_chosen_before(tiny):
    config = tiny("explainer=gradcam", "data.limit=1", "logger=csv")
    assert explain(config) == 0
    again = tiny(
        f"paths.output_root={config.paths.output_root}", "data.limit=1", "explainer=gradcam", "logger=[csv,tensorboard]"
    )
    pytest.importorskip("tensorboard")
    assert explain(again) == 0
    assert set(json.loads((only_cell(config) / "logged.json").read_text())) == {"csv/", "tensorboard/"}
