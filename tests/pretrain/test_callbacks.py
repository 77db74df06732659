"""What is drawn and kept while a network learns."""

import hydra
import numpy as np
import pytest
from PIL import Image

from twinsight.config import conf_folder, register_schema
from twinsight.errors import UserError
from twinsight.models import load_model
from twinsight.pretrain import pretrain
from twinsight.pretrain.callbacks import SaveWeights


@pytest.fixture(scope="module")
def watched(shapes, tmp_path_factory):
    """The folder of a training of three epochs, watched every second one."""
    root = tmp_path_factory.mktemp("watched")
    register_schema()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = hydra.compose(
            "config",
            [
                "task=pretrain",
                "data=image_folder",
                f"data.root={shapes}",
                "model.widths=[8,16,16]",
                "model.blocks=1",
                "model.input_size=32",
                "task.epochs=3",
                "task.batch_size=8",
                "task.watch.every=2",
                "task.watch.photos.limit=2",
                "loader.num_workers=0",
                "logger=none",
                "trainer=cpu",
                f"paths.output_root={root}",
            ],
        )
        assert pretrain(config) == 0
    return root / "pretrain" / "simclr"


def test_weights_are_kept_every_few_epochs_and_after_the_last(watched):
    assert sorted(path.name for path in (watched / "weights").iterdir()) == [
        "epoch-0002.safetensors",
        "epoch-0003.safetensors",
    ]


def test_kept_weights_can_be_explained(watched):
    early, late = (load_model("demo_simclr", watched / "weights" / f"epoch-000{epoch}.safetensors") for epoch in (2, 3))
    assert early.figures == {"epochs": 2}
    assert any((a != b).any() for a, b in zip(early.parameters(), late.parameters(), strict=True))


def test_the_same_pairs_are_explained_each_time_and_animated(watched):
    folder = watched / "explanations"
    first, second = (sorted(path.name for path in (folder / f"epoch-000{epoch}").iterdir()) for epoch in (2, 3))
    assert first == second
    assert len(first) == 2
    for name in first:
        with Image.open(folder / name.replace(".png", ".gif")) as animation:
            assert animation.n_frames == 2


def test_heatmaps_change_while_the_network_learns(watched):
    folder = watched / "explanations"
    name = next((folder / "epoch-0002").iterdir()).name
    before, after = (np.asarray(Image.open(folder / f"epoch-000{epoch}" / name).convert("RGB")) for epoch in (2, 3))
    assert (before != after).any()


def test_views_and_embedding_are_drawn(watched):
    names = {path.name for path in (watched / "learning").iterdir()}
    assert names == {"views.png", "epoch-0002.png", "epoch-0003.png"}


def test_a_rhythm_that_is_no_number_of_epochs_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 1, got 0"):
        SaveWeights(0, tmp_path)
