"""What loggers get of a cell, read back from what Weights & Biases keeps on disk. No test touches the network."""

import csv
import json
import logging
import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image

from toy_cells import COLUMNS, cells, composed, only_cell, rows
from toy_wandb import configuration, digest, history, logged_records, run_folder, table
from twinsight.errors import UserError
from twinsight.study import explain
from twinsight.study.records import unpacked_array
from twinsight.study.study import commit
from twinsight.tracking import logged_in, wandb_logger

SET = ("explainers=[gradcam,conditional_occlusion]", "explainers.options.conditional_occlusion.stride=8")
VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "NETRC")


class Server:
    """Stands where W&B's server would be, and counts who calls."""

    def __init__(self):
        self.calls = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        try:
            while True:
                self.socket.accept()[0].close()
                self.calls += 1
        except OSError:  # closed
            return


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A user who has never heard of W&B: an empty home folder, no key; and a server that should stay alone."""
    home, server = tmp_path_factory.mktemp("home"), Server()
    wandb.teardown()  # a service that other tests started knows another home
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_BASE_URL", server.url)
        yield home
        wandb.teardown()
    server.socket.close()
    assert server.calls == 0


@pytest.fixture(scope="module")
def logged(stranger, photos, tmp_path_factory):
    """Output folder of two cells of three pairs, with one picture each, logged offline."""
    root = tmp_path_factory.mktemp("logged")
    environment = dict(os.environ)
    config = composed(
        f"data.root={photos}",
        f"paths.output_root={root}",
        "data.limit=3",
        "pictures.limit=1",
        "logger=wandb",
        "logger.wandb.group=a study",
        *SET,
    )
    assert explain(config) == 0
    os.environ.clear()
    os.environ.update(environment)
    return root


def test_each_cell_is_a_run_of_its_own_named_by_its_hash(logged):
    folders = sorted(path.name.split("-")[-1] for path in (logged / "wandb").glob("offline-run-*"))
    assert folders == sorted(digest(cell)[:16] for cell in cells(logged).values())
    for cell in cells(logged).values():
        (run,) = (record.run for record in logged_records(run_folder(logged, cell)) if record.HasField("run"))
        assert (run.run_id, run.display_name) == (digest(cell)[:16], cell.name)
        assert (run.project, run.run_group) == ("twinsight", "a study")


def test_the_run_knows_the_identity_and_the_commit(logged):
    for cell in cells(logged).values():
        found = configuration(run_folder(logged, cell))
        identity = yaml.safe_load((cell / "config.yaml").read_text())["identity"]
        assert {key: found[key] for key in identity} == identity
        assert found["cell"] == digest(cell)
        assert found["commit"] == commit()


def test_the_means_are_logged_as_numbers(logged):
    for cell in cells(logged).values():
        found, summary = history(run_folder(logged, cell)), json.loads((cell / "metrics.json").read_text())
        assert (found[("pairs",)], found[("skipped",)]) == (3, 0)
        for name in ("score", *COLUMNS):
            assert found[(name,)] == pytest.approx(summary["metrics"][name]["mean"], abs=1e-12)


def test_the_table_has_a_row_per_pair_with_its_scores(logged):
    for cell in cells(logged).values():
        found = table(run_folder(logged, cell), "pairs_table")
        assert found["columns"][:3] == ["pair_id", "picture", "score"]
        assert set(found["columns"]) >= set(COLUMNS)
        records = rows(cell)
        assert [row[0] for row in found["data"]] == [row["pair_id"] for row in records]
        for values, record in zip(found["data"], records, strict=True):
            for name, value in zip(found["columns"][2:], values[2:], strict=True):
                assert value == record[name]


def test_the_table_has_the_pictures_and_they_wait_below_the_output_folder(logged):
    for cell in cells(logged).values():
        folder = run_folder(logged, cell)
        assert [row[1] is None for row in table(folder, "pairs_table")["data"]] == [False, True, True]
        staged = [entry for record in logged_records(folder) for entry in record.artifact.manifest.contents]
        pictures = [Path(entry.local_path) for entry in staged if entry.path.endswith("00000-ant.png")]
        assert pictures
        for path in pictures:
            assert path.is_relative_to(logged)
            with Image.open(path) as one, Image.open(cell / "pictures" / "00000-ant.png") as other:
                assert np.array_equal(np.asarray(one), np.asarray(other))


def test_the_curves_are_a_chart_of_their_means_over_pairs(logged):
    for cell in cells(logged).values():
        folder = run_folder(logged, cell)
        found = table(folder, "insertion_deletion")
        assert found["columns"] == ["step", "lineKey", "lineVal"]
        for name in ("SI", "SD", "CI1", "CI2", "CD1", "CD2"):
            points = [(step, value) for step, key, value in found["data"] if key == name]
            assert [step for step, _ in points] == pytest.approx(np.linspace(0, 1, 9))
            curves = np.array([unpacked_array(row, f"curve_{name.lower()}") for row in rows(cell, "arrays")])
            assert [value for _, value in points] == pytest.approx(curves.mean(axis=0), abs=1e-6)
        chart = configuration(folder)["_wandb/visualize/insertion_deletion"]
        assert chart["panel_config"]["panelDefId"] == "wandb/lineseries/v0"


def test_nothing_is_written_to_the_home_folder(logged, stranger):
    assert not [path for path in stranger.rglob("*") if path.is_file()]


def test_a_run_that_nobody_is_logged_in_for_stays_offline_and_says_how_to_upload_it(stranger, tiny, caplog):
    config = tiny("explainer=gradcam", "data.limit=1", "logger=wandb", "logger.wandb.mode=auto")
    with caplog.at_level(logging.INFO):
        assert explain(config) == 0
    (folder,) = Path(config.paths.output_root, "wandb").glob("offline-run-*")
    assert re.search(rf"wandb sync {re.escape(str(folder.parent))}$", caplog.text, re.MULTILINE)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert explain(config) == 0
    assert "wandb sync" not in caplog.text  # nothing was computed, nothing is logged again
    assert len(list(Path(config.paths.output_root, "wandb").glob("offline-run-*"))) == 1


def test_a_cell_without_metrics_or_second_map_is_logged_too(stranger, tiny):
    for options in ({"metrics": {}}, {"explainer": {"_target_": "toy_cells.OneMap"}}):
        config = tiny("explainer=gradcam", "data.limit=2", "logger=wandb", "logger.wandb.mode=offline", **options)
        assert explain(config) == 0
        (folder,) = Path(config.paths.output_root, "wandb").glob("offline-run-*")
        assert len(table(folder, "pairs_table")["data"]) == 2
        drawn = {key for _, key, _ in table(folder, "insertion_deletion")["data"]} if "explainer" in options else None
        assert drawn in (None, {"CI1", "CD1"})


def test_without_a_logger_there_is_no_wandb_folder(tiny):
    config = tiny("explainer=gradcam", "data.limit=1", "logger=none")
    assert explain(config) == 0
    assert [path.name for path in Path(config.paths.output_root).iterdir()] == ["cells"]


def test_the_csv_logger_writes_the_means(tiny):
    config = tiny("explainer=gradcam", "data.limit=2", "logger=csv")
    assert explain(config) == 0
    (path,) = Path(config.paths.output_root, "csv").rglob("metrics.csv")
    with path.open() as opened:
        (row,) = csv.DictReader(opened)
    summary = json.loads((only_cell(config) / "metrics.json").read_text())
    assert float(row["pairs"]) == 2
    assert {name: float(row[name]) for name in COLUMNS} == {
        name: pytest.approx(summary["metrics"][name]["mean"]) for name in COLUMNS
    }
    kept = yaml.safe_load((path.parent / "hparams.yaml").read_text())
    assert kept["explainer"]["name"] == "gradcam"


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """No key anywhere; the home folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_nobody_is_logged_in_without_a_key(nobody):
    assert not logged_in()


def test_a_key_in_the_environment_is_a_login_unless_the_mode_says_offline(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in()
    for mode in ("offline", "disabled", "dryrun"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert not logged_in()
    monkeypatch.setenv("WANDB_MODE", "online")
    assert logged_in()


def test_a_key_in_the_netrc_file_is_a_login_for_its_own_server_only(nobody, monkeypatch):
    netrc = nobody / ".netrc"
    netrc.write_text("machine example.org login user password secret\n")
    netrc.chmod(0o600)
    assert not logged_in()
    netrc.write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/api")
    assert not logged_in()
    netrc.write_text(f"machine wandb.example.org login user password {'0' * 40}\n")
    assert logged_in()


def test_a_netrc_file_elsewhere_is_found_and_a_broken_one_is_no_login(nobody, monkeypatch, tmp_path):
    elsewhere = tmp_path / "keys"
    elsewhere.write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    elsewhere.chmod(0o600)
    monkeypatch.setenv("NETRC", str(elsewhere))
    assert logged_in()
    elsewhere.write_text("machine\nnonsense nonsense")
    assert not logged_in()


def test_an_unknown_mode_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match=r"unknown `logger\.wandb\.mode` 'ofline': did you mean 'offline'"):
        wandb_logger(mode="ofline")


def test_the_commit_is_that_of_the_checkout_and_none_without_git(monkeypatch, tmp_path):
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        expected = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        expected = None
    assert commit() == expected
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
