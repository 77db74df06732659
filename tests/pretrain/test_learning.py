"""Methods learn something from real images: scikit-learn's 1797 handwritten digits, and 2000 photos of CIFAR-10 where
``TWINSIGHT_CIFAR10`` names the folder that holds them."""

import os

import hydra
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from twinsight.config import conf_folder, register_schema
from twinsight.models import load_model
from twinsight.pretrain import pretrain


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for index, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        folder = root / ("test" if index % 5 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels / 16 * 255).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
        grey.save(folder / f"{index:04d}.png")
    return root


def learned(tmp_path, method, *overrides):
    """Losses and accuracies of eight epochs of a small network."""
    register_schema()
    overrides = [
        "task=pretrain",
        f"task/method={method}",
        "model.widths=[16,32,64]",
        "model.blocks=1",
        "task.method.learning_rate=2e-3",
        "task.epochs=8",
        "task.probe_every=1",
        "task.batch_size=128",
        "task.watch=null",
        "loader.num_workers=2",
        "logger=none",
        "trainer=cpu",
        f"paths.output_root={tmp_path}",
        *overrides,
    ]
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert pretrain(hydra.compose("config", overrides)) == 0
    history = load_model("pretrained", tmp_path / "pretrain" / "simclr.safetensors").figures["history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    accuracies = [entry["knn_accuracy"] for entry in history if "knn_accuracy" in entry]
    return losses, accuracies


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "barlow_twins", "supervised"])
def test_the_loss_falls_and_the_nearest_neighbours_get_better(digits, tmp_path, method):
    # Digits must not be mirrored, nor cut to a stroke.
    losses, accuracies = learned(
        tmp_path, method, "data=image_folder", f"data.root={digits}", "views.flip=0", "views.scale=[0.4,1]"
    )
    assert losses[-1] < 0.9 * losses[0]
    assert accuracies[-1] > max(0.7, accuracies[0])


@pytest.mark.slow
@pytest.mark.skipif("TWINSIGHT_CIFAR10" not in os.environ, reason="TWINSIGHT_CIFAR10 names no folder of CIFAR-10")
@pytest.mark.parametrize("method", ["simclr", "barlow_twins", "supervised"])
def test_the_same_on_two_thousand_photos(tmp_path, method):
    losses, accuracies = learned(tmp_path, method, f"data.root={os.environ['TWINSIGHT_CIFAR10']}", "data.limit=2000")
    assert losses[-1] < 0.95 * losses[0]
    assert accuracies[-1] > accuracies[0]
    assert accuracies[-1] > 0.2  # chance is 0.1
