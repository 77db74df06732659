"""A cell's name: the hash of what decides its result, and of nothing else."""

import json
import re
import shutil

import pytest
import pytorch_lightning as pl
import yaml
from omegaconf import OmegaConf

from toy_cells import composed, write_photo
from twinsight.errors import UserError
from twinsight.models import save_model, small_two_view
from twinsight.study import explain, plan
from twinsight.study.status import read_status

GRADCAM, OCCLUSION = ("explainer=gradcam",), ("explainer=conditional_occlusion", "explainer.window=12")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A weight file of a small network."""
    return weights(tmp_path_factory.mktemp("weights") / "network.safetensors", seed=1)


def weights(path, seed):
    pl.seed_everything(seed, verbose=False)
    save_model(small_two_view(widths=(8, 16), blocks=1, input_size=32), path, {})
    return path


@pytest.fixture
def cell(tiny):
    """The first cell of a configuration, planned as a run plans it."""

    def make(*overrides, **replaced):
        config = tiny(*overrides, **replaced)
        pl.seed_everything(config.seed, verbose=False)
        return plan(config).cells[0]

    return make


CHANGES = {
    "explainer": (GRADCAM, ("explainer=interaction_cam",)),
    "option of the explainer": (OCCLUSION, (*OCCLUSION, "explainer.stride=5")),
    "layer": (GRADCAM, (*GRADCAM, "explainer.layer=trunk.stages.1")),
    "protocol": (GRADCAM, (*GRADCAM, "protocol=paper")),
    "protocol of the explainer": (GRADCAM, (*GRADCAM, "explainer.protocol=paper")),
    "protocol of the metrics": (GRADCAM, (*GRADCAM, "metrics.average_drop.protocol=paper")),
    "option of a metric": (GRADCAM, (*GRADCAM, "metrics.insertion_deletion.points=9")),
    "regions of a metric": (GRADCAM, (*GRADCAM, "metrics.insertion_deletion.granularity=4")),
    "max-sensitivity": (GRADCAM, (*GRADCAM, "metrics=paper")),
    "units of max-sensitivity": (
        (*GRADCAM, "metrics=paper"),
        (*GRADCAM, "metrics=paper", "metrics.max_sensitivity.units=input"),
    ),
    "baseline of a metric": (GRADCAM, (*GRADCAM, "metrics.average_drop.baseline=black")),
    "metrics": (GRADCAM, (*GRADCAM, "~metrics.average_drop")),
    "no metrics": (GRADCAM, (*GRADCAM, "~metrics.average_drop", "~metrics.insertion_deletion")),
    "seed": (GRADCAM, (*GRADCAM, "seed=1")),
    "chunk size": (GRADCAM, (*GRADCAM, "engine.chunk_size=8")),
    "incremental": (OCCLUSION, (*OCCLUSION, "engine.incremental=true")),
    "precision of the engine": (GRADCAM, (*GRADCAM, "engine.precision=bf16")),
    "windows in part": (
        ("explainer=conditional_occlusion",),
        ("explainer=conditional_occlusion", "explainer.coarse=2"),
    ),
    "curves in part": (GRADCAM, (*GRADCAM, "metrics.insertion_deletion.tolerance=0.01")),
    "precision": (GRADCAM, (*GRADCAM, "trainer.precision=bf16-mixed")),
    "number of photos": (GRADCAM, (*GRADCAM, "data.limit=3")),
    "recipe of the views": (GRADCAM, (*GRADCAM, "views.flip=0.0")),
    "views": (GRADCAM, (*GRADCAM, "views=none")),
    "size of the views": (GRADCAM, (*GRADCAM, "views.size=40")),
    "architecture": (GRADCAM, (*GRADCAM, "model.widths=[8,16,24]")),
    "similarity": (GRADCAM, (*GRADCAM, "similarity=dot")),
}
KEEPS = {
    "output folder": (GRADCAM, (*GRADCAM, "paths.output_root=elsewhere")),
    "loader": (GRADCAM, (*GRADCAM, "loader.batch_size=1", "loader.num_workers=2")),
    "logger": (GRADCAM, (*GRADCAM, "logger=csv")),
    "devices": (GRADCAM, (*GRADCAM, "trainer.devices=2", "trainer.strategy=ddp")),
    "pictures": (GRADCAM, (*GRADCAM, "pictures.limit=3", "pictures.side=64")),
    "debug": (GRADCAM, (*GRADCAM, "debug=default")),
    "handling of broken photos": (GRADCAM, (*GRADCAM, "data.on_error=raise")),
    "order of overrides": ((*OCCLUSION, "seed=3", "views.flip=1.0"), ("views.flip=1.0", "seed=3", *OCCLUSION)),
    "form as the protocol has it": (GRADCAM, (*GRADCAM, "explainer.form=canonical")),
    "form as the paper has it": (
        (*GRADCAM, "protocol=paper"),
        (*GRADCAM, "protocol=paper", "explainer.form=elementwise"),
    ),
    "window as a pair": (OCCLUSION, ("explainer=conditional_occlusion", "explainer.window=[12,12]")),
    "stride as the size of the model has it": (OCCLUSION, (*OCCLUSION, "explainer.stride=1")),
    "baseline as the protocol has it": (OCCLUSION, (*OCCLUSION, "explainer.baseline=blur", "explainer.flush=true")),
    "metric's baseline as the protocol has it": (GRADCAM, (*GRADCAM, "metrics.average_drop.baseline=blur")),
    "metric's floor as the protocol has it": (GRADCAM, (*GRADCAM, "metrics.average_drop.floor=0.001")),
    "a metric that does not apply": (OCCLUSION, (*OCCLUSION, "metrics=paper")),
    "units as the protocol has them": (
        (*GRADCAM, "metrics=paper"),
        (*GRADCAM, "metrics=paper", "metrics.max_sensitivity.units=pixels"),
    ),
    "metric's default that no file sets": (GRADCAM, (*GRADCAM, "~metrics.insertion_deletion.insertion_baseline")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_the_result_changes_the_hash(cell, what):
    one, other = CHANGES[what]
    assert cell(*one).digest != cell(*other).digest


@pytest.mark.parametrize("what", KEEPS)
def test_what_does_not_decide_the_result_keeps_the_hash(cell, what):
    one, other = KEEPS[what]
    assert cell(*one).name == cell(*other).name


def test_a_photo_that_changes_changes_the_hash_and_one_that_moves_does_not(cell, photos, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    before = cell(*GRADCAM).digest
    assert cell(*GRADCAM, f"data.root={moved}").digest == before
    write_photo(moved / "cat.png", seed=77)
    assert cell(*GRADCAM, f"data.root={moved}").digest != before
    shutil.copy(photos / "cat.png", moved / "cat.png")
    (moved / "cat.png").rename(moved / "lynx.png")
    assert cell(*GRADCAM, f"data.root={moved}").digest != before


def test_weights_count_by_their_bytes_and_not_by_their_path(cell, checkpoint, tmp_path):
    def digest(path, *overrides):
        node = {"_target_": "twinsight.models.load_model", "name": "demo_simclr", "input_size": 32}
        return cell(*GRADCAM, *overrides, model={**node, "checkpoint": str(path)}).digest

    copy = tmp_path / "copy.safetensors"
    shutil.copy(checkpoint, copy)
    assert digest(copy) == digest(checkpoint)
    assert digest(weights(tmp_path / "other.safetensors", seed=2)) != digest(checkpoint)
    assert digest(checkpoint, "seed=1") != digest(checkpoint)  # the views of the pairs change, the weights do not


def test_the_members_of_a_set_have_the_hashes_they_have_alone(tiny):
    def names(*overrides):
        config = tiny(*overrides)
        pl.seed_everything(config.seed, verbose=False)
        return [cell.name for cell in plan(config).cells]

    together = names("explainers=[gradcam,conditional_occlusion]", "explainers.options.conditional_occlusion.window=12")
    assert together == [*names(*GRADCAM), *names(*OCCLUSION)]


def test_the_folder_says_data_model_and_explainer(cell, tmp_path):
    planned = cell(*OCCLUSION)
    assert planned.folder.parent.parent.parent == tmp_path
    assert planned.folder.parent.name == "cells"
    assert re.fullmatch(r"image_folder-small_two_view-conditional_occlusion-[0-9a-f]{10}", planned.folder.name)
    assert planned.folder.name.endswith(planned.digest[:10])


def test_planning_writes_nothing(cell, tmp_path):
    assert read_status(cell(*GRADCAM).folder) == {"state": "planned"}
    assert not list(tmp_path.iterdir())


def test_the_identity_is_plain_json_without_paths(cell, photos):
    identity = cell(*OCCLUSION, "metrics.average_drop.protocol=paper").identity
    text = json.dumps(identity, allow_nan=False)
    assert json.loads(text) == identity == yaml.safe_load(yaml.safe_dump(identity))
    assert str(photos) not in text
    options = identity["explainer"]["options"]
    assert options["window"] == [12, 12]
    assert options["baseline"] == "blur"  # resolved, not null
    assert identity["metrics"]["average_drop"]["options"] == {"baseline": "input_zero", "floor": "-inf"}
    assert identity["metrics"]["insertion_deletion"]["options"]["deletion_baseline"] == "blur"


def test_a_cell_can_be_planned_again_from_the_configuration_it_keeps(explained, tmp_path):
    folder = explained(*OCCLUSION)
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    config = OmegaConf.create(kept["config"])
    pl.seed_everything(config.seed, verbose=False)
    (again,) = plan(config).cells
    assert again.identity == kept["identity"]
    assert again.folder == folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("explainer=conditional_occlusion", "explainer.window=33"), "`window=33` is larger than the image"),
        (
            ("explainer=gradcam", "explainer.layer=trunk.stage"),
            "unknown `layer` 'trunk.stage': did you mean 'trunk.stag",
        ),
        (("explainer=gradcam", "engine.chunk_size=0"), "`engine.chunk_size` must be at least 1, got 0"),
        (("explainer=gradcam", "pictures.limit=-1"), "`pictures.limit` must be at least 0, got -1"),
        (("explainer=gradcam", "pictures.side=0"), "`pictures.side` must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, photos, overrides, message):
    config = composed(f"data.root={photos}", f"paths.output_root={tmp_path / 'out'}", *overrides)
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        explain(config)
    assert isinstance(caught.value.__cause__ or caught.value, UserError)  # Hydra wraps what a constructor raises
    assert not (tmp_path / "out").exists()


def test_only_explainers_can_be_explainers_of_a_cell(tiny):
    with pytest.raises(UserError, match=r"`explainer\._target_` must build an Explainer, got NoExplainer"):
        explain(tiny(explainer={"_target_": "toy_cells.NoExplainer"}))


def test_only_functions_can_be_metrics_of_a_cell(tiny):
    with pytest.raises(UserError, match=r"`metrics` must be functions with `_partial_: true`, got <toy_cells\.NoM"):
        explain(tiny(metrics={"mine": {"_target_": "toy_cells.NoMetric"}}))


def test_a_measured_chunk_size_is_frozen_into_the_cell_and_found_again(tiny, monkeypatch):
    measured = iter((8, 32, 64))
    monkeypatch.setattr("twinsight.study.engine.measured_chunk_size", lambda *given: next(measured))
    config = tiny(*GRADCAM, "engine.chunk_size=auto")
    first = plan(config).cells[0]
    assert config.engine.chunk_size == first.config["engine"]["chunk_size"] == first.identity["chunk_size"] == 8
    again = tiny(*GRADCAM, "engine.chunk_size=auto", f"paths.output_root={config.paths.output_root}")
    assert plan(again).cells[0].name == first.name
    larger = tiny(
        *GRADCAM, "engine.chunk_size=auto", "model.input_size=48", f"paths.output_root={config.paths.output_root}"
    )
    assert plan(larger).cells[0].identity["chunk_size"] == 32
    assert plan(tiny(*GRADCAM, "engine.chunk_size=auto")).cells[0].identity["chunk_size"] == 64


@pytest.mark.parametrize("size", ["many", "1.5", "true"])
def test_a_chunk_size_that_is_no_number_is_refused(tiny, size):
    with pytest.raises(UserError, match=r"`engine\.chunk_size` must be a positive integer or auto"):
        plan(tiny(*GRADCAM, f"engine.chunk_size={size}"))
