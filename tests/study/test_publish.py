"""What is shown and logged of a cell, and when a cell counts as finished."""

import json
import shutil

import pytest
import wandb
from rich.console import Console

from toy_cells import only_cell
from twinsight.errors import UserError
from twinsight.study import explain, loggers, publish
from twinsight.tracking import finish, settle_runs, wandb_logger


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_number_can_be_read_whatever_the_width_of_the_terminal(tiny, capsys, monkeypatch, width):
    monkeypatch.setattr(publish, "Console", lambda **_: Console(width=width, force_terminal=False))
    config = tiny("data.limit=1")
    assert explain(config) == 0
    shown = capsys.readouterr().out
    means = json.loads((only_cell(config) / "metrics.json").read_text())["metrics"]
    for name in ("score", "si", "sd", "ci", "cd", "sad", "sic", "cad", "cic"):
        assert f"{means[name]['mean']:.3f}" in shown
    assert "…" not in shown.split("pictures")[0]


@pytest.mark.parametrize("switch", ["+trainer.limit_predict_batches=2", "+trainer.fast_dev_run=true"])
def test_a_cell_whose_trainer_stopped_early_is_not_finished_and_goes_on_later(tiny, switch):
    config = tiny(switch)
    with pytest.raises(UserError, match=r"of 5 pairs were explained.*data\.limit"):
        explain(config)
    cell = only_cell(config)
    assert json.loads((cell / "status.json").read_text())["state"] == "interrupted"
    assert not (cell / "metrics.json").exists()
    config = tiny(f"paths.output_root={config.paths.output_root}")
    assert explain(config) == 0
    assert json.loads((cell / "metrics.json").read_text())["pairs"] == 5


def test_a_finished_cell_with_skipped_photos_is_refused_when_none_may_be_skipped(tiny, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "bee.png").write_bytes(b"no photo")
    config = tiny(f"data.root={folder}")
    assert explain(config) == 0
    config = tiny(f"data.root={folder}", f"paths.output_root={config.paths.output_root}", "data.on_error=raise")
    with pytest.raises(UserError, match=r"cannot read bee\.png.*data\.on_error=skip"):
        explain(config)


def test_a_cell_computed_without_a_logger_is_logged_when_one_is_chosen_and_only_once(tiny):
    config = tiny()
    root = config.paths.output_root
    assert explain(config) == 0
    for _ in range(2):
        assert explain(tiny(f"paths.output_root={root}", "logger=csv")) == 0
    assert len(list((only_cell(config).parents[1] / "csv").rglob("metrics.csv"))) == 1


def test_a_logger_that_fails_costs_neither_the_run_nor_the_next_chance(tiny, caplog, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("nobody there")

    config = tiny("logger=csv")
    with monkeypatch.context() as patch:
        patch.setattr(loggers, "build", unreachable)
        assert explain(config) == 0
    assert "could not be logged to csv: ConnectionError: nobody there" in caplog.text
    assert explain(tiny(f"paths.output_root={config.paths.output_root}", "logger=csv")) == 0
    assert list((only_cell(config).parents[1] / "csv").rglob("metrics.csv"))


def test_an_unreachable_server_means_offline_when_the_mode_is_automatic(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    modes = []
    start = wandb.init

    def init(**options):
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("timed out")
        return start(**options)

    monkeypatch.setattr(wandb, "init", init)
    logger = wandb_logger(save_dir=tmp_path)
    finish(logger)
    settle_runs()
    assert modes == ["online", "offline"]
    assert "the run is kept offline" in caplog.text


def test_online_needs_a_key_and_says_so_before_anything_is_computed(tiny, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    config = tiny("logger=wandb", "logger.wandb.mode=online")
    with pytest.raises(UserError, match=r"`logger\.wandb\.mode=online` needs a key: run `wandb login`"):
        explain(config)
    assert not (tmp_path / config.paths.output_root / "cells").exists()


@pytest.mark.parametrize("option", ["points=0", "step=0", "step=5000", "deletion_baseline=grey"])
def test_options_of_metrics_are_refused_before_anything_is_written(tiny, option, tmp_path):
    config = tiny(f"metrics.insertion_deletion.{option}")
    with pytest.raises(UserError, match=option.split("=")[0].replace("deletion_", "")):
        explain(config)
    assert not list(tmp_path.rglob("status.json"))
