"""Methods learn something from real images: scikit-learn's handwritten digits, 1797 of them."""

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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "barlow_twins", "supervised"])
def test_the_loss_falls_and_the_nearest_neighbours_get_better(digits, tmp_path, method):
    register_schema()
    overrides = [
        "task=pretrain",
        f"task/method={method}",
        "data=image_folder",
        f"data.root={digits}",
        "views.flip=0",
        "views.scale=[0.4,1]",
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
    ]
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert pretrain(hydra.compose("config", overrides)) == 0
    history = load_model("demo_simclr", tmp_path / "pretrain" / "simclr.safetensors").figures["history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    accuracies = [entry["knn_accuracy"] for entry in history if "knn_accuracy" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert accuracies[-1] > max(0.7, accuracies[0])
