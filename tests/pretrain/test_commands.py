"""Pretraining from the command line: the shipped recipes, torchvision's networks, and explaining what came out."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from twinsight import __main__ as command_line
from twinsight.models import load_model
from twinsight.pretrain import BarlowTwins, SimCLR, Supervised

RUN = Path(__file__).parents[2] / "run.py"
QUIET = ("trainer=cpu", "+trainer.enable_progress_bar=false", "+trainer.enable_model_summary=false")
ONE_EPOCH = ("task.epochs=1", "task.batch_size=16", "task.watch.photos.limit=1", "loader.num_workers=0")
SMALL = ("model.widths=[8,16,16]", "model.blocks=1", "model.input_size=32")
CHEAPEST = ("explainer=gradcam", "metrics=none", "data.limit=1", "pictures.limit=0", "logger=none")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs a command line in this process, from a folder of its own; returns that folder."""

    def run(*words, code=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["run.py", *words, *QUIET])
            handlers, level = logging.root.handlers[:], logging.root.level
            try:
                assert command_line.main() == code
            finally:
                logging.root.handlers[:] = handlers
                logging.root.setLevel(level)
        return folder

    folder = tmp_path_factory.mktemp("commands")
    return run


@pytest.fixture(scope="module")
def watched(shapes, command):
    """The folder in which a small network was trained for two epochs that were kept."""
    data = ("data=image_folder", f"data.root={shapes}", "logger=none")
    return command("task=pretrain", *data, *SMALL, *ONE_EPOCH, "task.epochs=2", "task.watch.every=1")


def cells(root):
    """What the cells below an output folder were, by folder."""
    return {file.parent: yaml.safe_load(file.read_text()) for file in root.glob("outputs/cells/*/config.yaml")}


def explained(command, *words):
    """The cells that a command added."""
    before = cells(command("--version"))
    return {folder: cell for folder, cell in cells(command(*words, *CHEAPEST)).items() if folder not in before}


# The shipped recipes


@pytest.mark.parametrize(
    ("recipe", "method", "file", "width"),
    [
        ("simclr", SimCLR, "simclr", 64),
        ("barlow_twins", BarlowTwins, "barlow_twins", 512),
        ("supervised", Supervised, "supervised", 128),
    ],
)
def test_a_recipe_runs_from_photos_to_weights_figures_and_pictures(shapes, command, recipe, method, file, width):
    words = (f"experiment=pretrain_cifar10_{recipe}", f"data.root={shapes}", *ONE_EPOCH)
    folder = command(*words, f"paths.output_root={recipe}") / recipe / "pretrain"
    model = load_model("pretrained", checkpoint=folder / f"{file}.safetensors")
    figures = json.loads((folder / f"{file}.json").read_text())
    assert figures == dict(model.figures)
    assert (figures["method"], figures["data"], figures["epochs"]) == (method.__name__, "CIFAR10", 1)
    assert 0 <= figures["knn_accuracy"] <= 1
    assert math.isfinite(figures["history"][0]["loss"])
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, width)
    assert model.trunk(torch.rand(1, 3, 64, 64)).shape == (1, 128, 8, 8)
    written = {str(path.relative_to(folder / file)) for path in (folder / file).rglob("*") if path.is_file()}
    assert {"learning/views.png", "learning/epoch-0001.png", "weights/epoch-0001.safetensors", "last.ckpt"} < written
    assert [Path(name).parts[0] for name in written if name.endswith(".gif")] == ["explanations"]
    (metrics,) = (folder.parent / "csv").rglob("metrics.csv")
    assert {"loss_epoch", "knn_accuracy"} < set(metrics.read_text().splitlines()[0].split(","))


def test_mixed_precision_computes_the_network_in_bfloat16_the_loss_in_float32_and_learns(shapes, command, monkeypatch):
    seen = {"network": set(), "loss": set()}

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, method, batch, batch_idx):
            if batch_idx == 0 and trainer.current_epoch == 0:
                method.model.trunk.stages.register_forward_hook(lambda _, __, out: seen["network"].add(out.dtype))

    step, make = SimCLR.training_step, pl.Trainer.__init__

    def noting(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        seen["loss"].add(loss.dtype)
        return loss

    monkeypatch.setattr(SimCLR, "training_step", noting)
    monkeypatch.setattr(
        pl.Trainer,
        "__init__",
        lambda self, **given: make(self, **{**given, "callbacks": [Watch(), *given["callbacks"]]}),
    )
    gentle = ("views.scale=[0.5,1.0]", "views.jitter=0", "views.greyscale=0", "task.method.learning_rate=0.01")
    words = ("experiment=pretrain_cifar10_simclr", f"data.root={shapes}", *SMALL, *ONE_EPOCH, *gentle)
    folder = command(*words, "task.epochs=8", "task.watch=null", "logger=none", "paths.output_root=mixed")
    model = load_model("pretrained", checkpoint=folder / "mixed/pretrain/simclr.safetensors")
    losses = [row["loss"] for row in model.figures["history"] if "loss" in row]
    assert torch.bfloat16 in seen["network"]
    assert seen["loss"] == {torch.float32}
    assert losses[-1] < 0.9 * losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# Explaining what was trained


def test_weights_of_ones_own_are_explained_at_the_size_they_were_made_for(watched, command):
    (cell,) = explained(command, "model=pretrained", "model.checkpoint=outputs/pretrain/simclr.safetensors").values()
    assert cell["identity"]["model"]["options"]["input_size"] == cell["identity"]["views"]["size"] == 32


def test_a_sweep_over_saved_epochs_gives_a_cell_for_each(watched, command):
    listed = "ls outputs/pretrain/simclr/weights/*.safetensors | paste -sd,"  # as README has it
    files = subprocess.run(listed, shell=True, cwd=watched, capture_output=True, text=True, check=True).stdout.strip()
    assert files.count("epoch-") == 2
    found = explained(command, "-m", "model=pretrained", f"model.checkpoint={files}")
    swept = {cell["config"]["model"]["checkpoint"]: cell["identity"]["model"]["weights"] for cell in found.values()}
    assert sorted(swept) == files.split(",")
    assert len(set(swept.values())) == 2
    assert all((folder / "records.parquet").is_file() for folder in found)


def test_a_network_without_its_file_is_refused_in_one_line(command, capsys):
    command("model=pretrained", *CHEAPEST, code=2)
    assert capsys.readouterr().err == (
        "error: `checkpoint` of model 'pretrained' is missing: "
        "give a .safetensors file that `task=pretrain` wrote, as `checkpoint=FILE`\n"
    )
    command("model=pretrained", "model.checkpoint=nowhere.safetensors", *CHEAPEST, code=2)
    assert capsys.readouterr().err == "error: `checkpoint=nowhere.safetensors`: no such file\n"


def test_a_network_of_torchvision_is_trained_saved_and_explained(shapes, command):
    resnet = ("model=torchvision_resnet", "model.small_stem=true", "model.normalization=cifar10", "model.input_size=32")
    words = ("task=pretrain", *resnet, "data=image_folder", f"data.root={shapes}", "logger=none", *ONE_EPOCH)
    small = ("task.watch=null", "task.test_split=test", "data.limit=16", "model.embedding=16")
    file = command(*words, *small, "paths.output_root=resnet") / "resnet/pretrain/simclr.safetensors"
    model = load_model("pretrained", checkpoint=file)
    assert model.architecture["options"]["name"] == "resnet18"
    assert model.features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)
    (cell,) = explained(command, "model=pretrained", f"model.checkpoint={file}").values()
    assert cell["identity"]["model"]["options"]["input_size"] == 32


def test_training_goes_on_from_weights_of_ones_own_in_training_mode(shapes, watched, command):
    start = "outputs/pretrain/simclr.safetensors"
    data = ("data=image_folder", f"data.root={shapes}", "logger=none", "paths.output_root=further", *ONE_EPOCH)
    command("task=pretrain", "model=pretrained", f"model.checkpoint={start}", *data, "task.watch=null")
    before, after = (
        load_model("pretrained", checkpoint=watched / file) for file in (start, "further/pretrain/simclr.safetensors")
    )
    # Batch norms count their batches in training mode alone.
    steps = after.trunk.stem_norm.num_batches_tracked - before.trunk.stem_norm.num_batches_tracked
    assert steps == 3
    assert not torch.equal(before.trunk.stem_norm.running_mean, after.trunk.stem_norm.running_mean)


# Weights & Biases, and several processes


def test_views_embedding_and_explanations_arrive_at_weights_and_biases(shapes, command):
    data = ("data=image_folder", f"data.root={shapes}", *SMALL, *ONE_EPOCH)
    words = ("task=pretrain", *data, "logger=wandb", "logger.wandb.mode=offline", "paths.output_root=tracked")
    folder = command(*words, "task.epochs=2", "task.watch.every=1")
    (run,) = (folder / "tracked/wandb").glob("offline-run-*")
    pictures = sorted(path.name.partition("_")[0] for path in (run / "files/media/images").iterdir())
    assert pictures == ["embedding", "embedding", "explanations", "explanations", "views"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "supervised"])
def test_two_processes_train_one_network_from_the_command_line(shapes, tmp_path, method):
    words = (f"task/method={method}", "data=image_folder", f"data.root={shapes}", *SMALL, *ONE_EPOCH, "logger=none")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "task.batch_size=8", "task.probe_every=1", *QUIET[1:])
    finished = subprocess.run(
        [sys.executable, str(RUN), "task=pretrain", *words, *ddp],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "MEMBER: 2/2" in finished.stderr + finished.stdout
    model = load_model("pretrained", checkpoint=tmp_path / "outputs/pretrain/simclr.safetensors")
    assert (model.figures["processes"], model.figures["batch_size"]) == (2, 8)
    # 48 photos, 24 for each process in batches of 8.
    assert model.trunk.stem_norm.num_batches_tracked == 3
