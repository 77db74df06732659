"""Optuna searches: every trial a cell, continued after anything, failures and all."""

import json
import math
import os
import signal
import time
from types import SimpleNamespace

import hydra
import pyarrow.parquet as pq
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from toy_cells import TINY
from toy_studies import ended as output_of
from toy_studies import run, typed, words
from twinsight.config import conf_folder, register_schema
from twinsight.errors import UserError
from twinsight.study import Study, explain, search
from twinsight.study.evaluation import Evaluation

optuna = pytest.importorskip("optuna")

WINDOWS = ("explainer=conditional_occlusion", "explainer.window=range(8,33,8)", "explainer.stride=choice(8,16)")
SMALL = ("data.limit=1", "sweep=optuna")


@pytest.fixture
def searching(photos, tmp_path, monkeypatch):
    """``searching(*words)``: a search in this process; the study."""
    register_schema()
    monkeypatch.setattr(search, "driving", lambda *given: lambda study: run(study) is not None)

    def go(*given, name="found"):
        asked = [*TINY, f"data.root={photos}", f"paths.output_root={tmp_path}", f"study={name}", *SMALL, *given]
        with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            master = loader.load_configuration("config", asked, run_mode=RunMode.MULTIRUN)
            search.search(master, asked, SimpleNamespace(config_loader=loader), None)
        return Study.open(tmp_path, name)

    return go


def trials(study):
    return pq.read_table(study.folder / "trials.parquet").to_pylist()


def best(study):
    return yaml.safe_load((study.folder / "best.yaml").read_text())


def mean(study, cell, metric):
    return json.loads((study.root / "cells" / cell / "metrics.json").read_text())["metrics"][metric]["mean"]


def test_every_trial_is_a_cell_and_the_best_one_is_the_best(searching):
    study = searching(*WINDOWS, "sweep.trials=6")
    rows = trials(study)
    assert [row["trial"] for row in rows] == list(range(6))
    assert {row["cell"] for row in rows} == {cell.name for cell in study.cells}
    for row in rows:
        (cell,) = (cell for cell in study.cells if cell.name == row["cell"])
        assert (cell.config["explainer"]["window"], cell.config["explainer"]["stride"]) == (
            row["explainer.window"],
            row["explainer.stride"],
        )
        assert cell.config["sweep"] is None
        assert row["ci"] == mean(study, row["cell"], "ci")
    (found,) = best(study)["best"]
    assert found["values"]["ci"] == max(row["ci"] for row in rows)
    assert found["overrides"] == [
        f"explainer.{key}={rows[found['trial']][f'explainer.{key}']}" for key in ("window", "stride")
    ]
    assert len({tuple(command) for command in study.facts()["commands"]}) == 1


def test_a_metric_of_which_less_is_better_is_made_small(searching):
    study = searching(*WINDOWS, "sweep.trials=5", "sweep.metrics=[cd]")
    (found,) = best(study)["best"]
    assert found["values"]["cd"] == min(row["cd"] for row in trials(study))


def test_several_metrics_give_those_that_nothing_beats_in_all(searching):
    study = searching(*WINDOWS, "sweep.trials=8", "sweep.metrics=[ci,cost]")
    rows = trials(study)
    for row in rows:
        steps = 1 + math.ceil((32 - row["explainer.window"]) / row["explainer.stride"])  # the last one is flush
        assert row["cost"] == 2 + 2 * steps**2  # each view whole, and without each window
        beaten = any(
            (other["ci"] >= row["ci"] and other["cost"] <= row["cost"])
            and (other["ci"] > row["ci"] or other["cost"] < row["cost"])
            for other in rows
        )
        twin = next(one for one in rows if one["cell"] == row["cell"])
        assert row["best"] == (not beaten and row is twin)
    assert [one["cell"] for one in best(study)["best"]] == [row["cell"] for row in rows if row["best"]]


def test_more_trials_go_on_with_those_that_are_there(searching, monkeypatch):
    before = trials(searching(*WINDOWS, "sweep.trials=3"))
    after = trials(searching(*WINDOWS, "sweep.trials=5"))
    assert after[:3] == [{**row, "best": after[place]["best"]} for place, row in enumerate(before)]
    assert len(after) == 5
    # As many as there are: nothing is computed.
    monkeypatch.setattr(search, "driving", lambda *given: lambda study: pytest.fail("something was run"))
    assert trials(searching(*WINDOWS, "sweep.trials=5")) == after


def test_cells_of_a_search_are_those_of_any_study(searching, photos, tmp_path):
    from toy_studies import planned

    study = searching(*WINDOWS, "sweep.trials=2")
    row = trials(study)[0]
    chosen = [f"explainer.{key}={row[f'explainer.{key}']}" for key in ("window", "stride")]
    other = planned(tmp_path, photos, "data.limit=1", WINDOWS[0], *chosen, name="other")
    assert [cell.name for cell in other.cells] == [row["cell"]]
    assert other.cells[0].status()["state"] == "done"


def test_failed_trials_are_noted_and_the_search_goes_on(searching, monkeypatch):
    genuine = Evaluation._run

    def fail(self, cell, writer, batch):
        if tuple(cell.explainer.options["window"]) == (16, 16):
            raise RuntimeError("a fault of ours")
        genuine(self, cell, writer, batch)

    monkeypatch.setattr(Evaluation, "_run", fail)
    # 16 fails when it is computed, 40 cannot be planned: it is larger than the view.
    grid = ("sweep.sampler._target_=optuna.samplers.BruteForceSampler", "explainer.stride=8")
    study = searching(WINDOWS[0], "explainer.window=8,16,40", *grid, "sweep.trials=3")
    errors = {row["explainer.window"]: row["error"] for row in trials(study)}
    assert errors[8] is None
    assert "a fault of ours" in errors[16]
    assert "larger than the image" in errors[40]
    assert best(study)["best"][0]["overrides"] == ["explainer.window=8"]
    # They count, and are not tried again.
    assert len(trials(searching(WINDOWS[0], "explainer.window=8,16,40", *grid, "sweep.trials=3"))) == 3


def test_a_trial_that_died_goes_on_as_another(searching):
    study = searching(*WINDOWS, "sweep.trials=2")
    backend = optuna.storages.journal.JournalFileBackend(str(study.folder / "optuna.journal"))
    lost = optuna.load_study(study_name="found", storage=optuna.storages.JournalStorage(backend))
    left = lost.ask({"explainer.window": optuna.distributions.IntDistribution(8, 32, step=8),
                     "explainer.stride": optuna.distributions.CategoricalDistribution([8, 16])})  # fmt: skip
    (study.folder / "optuna.journal.lock").touch()  # killed while it wrote
    rows = trials(searching(*WINDOWS, "sweep.trials=3"))
    assert [row["trial"] for row in rows] == [0, 1, 3]
    assert {key: rows[-1][key] for key in left.params} == left.params


def test_no_trial_that_could_be_completed_is_exit_code_1_and_a_mistake_in_the_words_is_said_at_once(
    searching, tmp_path
):
    with pytest.raises(UserError, match=r"unknown key 'explainer\.windw'|windw"):
        searching(WINDOWS[0], "+explainer.windw=8,16")
    assert not (tmp_path / "found" / "optuna.journal").exists()
    with pytest.raises(Exception, match="larger than the image"):
        searching(WINDOWS[0], "explainer.window=40,48")
    # Nothing came of it: the name is free for better words.
    assert len(trials(searching(*WINDOWS, "sweep.trials=1"))) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("explainer=gradcam",), "nothing to choose"),
        ((*WINDOWS, "sweep.metrics=[cj]"), r"unknown metric in `sweep\.metrics` 'cj'.*Valid"),
        ((*WINDOWS, "sweep.metrics=[ci,ci]"), r"`sweep\.metrics` must name metrics, each once, got \['ci', 'ci'\]"),
        ((*WINDOWS, "sweep.trials=0"), r"`sweep\.trials` must be at least 1"),
        ((*WINDOWS, "sweep.metrics=[ms]"), "computed by none of the chosen metrics"),
        (("explainers=[gradcam,lafam]", "seed=0,1"), "optimises one explainer"),
    ],
)
def test_what_makes_no_sense_is_refused(searching, given, message):
    with pytest.raises(Exception, match=message) as caught:
        searching(*given)
    assert isinstance(caught.value.__cause__ or caught.value, UserError)


def test_a_name_is_for_one_search(searching):
    searching(*WINDOWS, "sweep.trials=1")
    with pytest.raises(UserError, match=r"searches with other words.*name another, study=NAME"):
        searching(*WINDOWS[:2], "explainer.stride=choice(4,8)", "sweep.trials=2")


def test_without_optuna_the_message_names_the_extra(searching, monkeypatch):
    monkeypatch.setattr("twinsight.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs Optuna: pip install "twinsight\[optuna\]"'):
        searching(*WINDOWS)


def test_hydras_words_are_spaces_of_optuna():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    register_schema()
    given = ["a=1", "b=range(8,33,8)", "c=choice(4,8)", "d=x,null,true", "e=interval(0,1)", "f=int(interval(2,9))",
             "g=tag(log, interval(0.001,1))", "+h=range(0.5,2,0.5)"]  # fmt: skip
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        fixed, space = search.space_of(given, GlobalHydra.instance().config_loader())
    assert fixed == ["a=1"]
    assert space == {
        "b": IntDistribution(8, 32, step=8),
        "c": CategoricalDistribution([4, 8]),
        "d": CategoricalDistribution(["x", "null", "True"]),
        "e": FloatDistribution(0.0, 1.0),
        "f": IntDistribution(2, 9),
        "g": FloatDistribution(0.001, 1.0, log=True),
        "+h": FloatDistribution(0.5, 1.5, step=0.5),
    }


def test_typed_killed_and_typed_again(tmp_path, photos):
    """As a user does it: from the command line, with a SIGKILL in between."""
    command = words(tmp_path, photos, *SMALL, *WINDOWS, "sweep.trials=4", "sweep.metrics=[ci,cost]", study="typed")
    process = typed(*command)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("cells/*/records.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    said = output_of(typed(*command))
    assert "4 trials, 0 failed" in said
    assert "best in ci and cost:" in said
    study = Study.open(tmp_path, "typed")
    assert len(trials(study)) == 4
    assert all(cell.status()["state"] == "done" for cell in study.cells)


def test_without_m_there_is_nothing_to_search(tiny):
    with pytest.raises(UserError, match="add -m"):
        explain(tiny("sweep=optuna"))
