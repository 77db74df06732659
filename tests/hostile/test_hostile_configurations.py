"""Configurations that name what could run anything: refused in one line, and what they name does not run."""

import json
import re
import shutil

import pytest
import yaml

from toy_cells import composed, write_photo
from toy_studies import planned, run
from twinsight.config import validate
from twinsight.errors import UserError
from twinsight.signatures import locate
from twinsight.study import Study
from twinsight.study.dashboard import dashboards

DANGEROUS = [
    *("os.system", "os.popen", "posix.system", "subprocess.Popen", "subprocess.run", "builtins.eval", "builtins.exec"),
    *("builtins.open", "builtins.__import__", "pickle.load", "pickle.loads", "shutil.rmtree", "runpy.run_path"),
    *("importlib.import_module", "ctypes.CDLL", "code.interact", "socket.create_connection", "pathlib.os.system"),
    *("torch.load", "torch.hub.load", "torch.serialization.load", "torch.os.system", "numpy.load", "yaml.unsafe_load"),
    *("pip.main", "hydra.utils.instantiate", "hydra.utils.call", "omegaconf.OmegaConf.create"),
    *("twinsight.exits.os.system", "twinsight.study.on_slurm.subprocess.run", "twinsight.requeued.until_time_is_up"),
]


@pytest.mark.parametrize("target", DANGEROUS)
def test_what_could_run_anything_is_no_target(target):
    with pytest.raises(UserError, match=rf"^`model\._target_={target}` could run anything: give a class .* yours$"):
        locate("model._target_", target)


@pytest.mark.parametrize(
    "target",
    [
        *("torch.nn.Linear", "torchvision.models.resnet18", "timm.create_model", "pytorch_lightning.Trainer"),
        *(
            "functools.partial",
            "builtins.slice",
            "pathlib.Path",
            "collections.OrderedDict",
            "optuna.samplers.TPESampler",
        ),
        *("toy_cells.OneMap", "toy_cells.gelu_model", "torch.nn.functional.cosine_similarity", "numpy.dot"),
        *("hydra.utils.get_method", "twinsight.similarity.cosine", "captum.attr.Saliency"),
    ],
)
def test_parts_of_experiments_are_targets(target):
    assert callable(locate("model._target_", target))


TOUCH = {"_target_": "os.system", "command": "touch sprung"}
WRITTEN = {
    "task._target_": {"task": TOUCH},
    "data._target_": {"data": TOUCH},
    "explainer._target_": {"explainer": TOUCH},
    "similarity.path": {"similarity": {"_target_": "hydra.utils.get_method", "path": "os.system"}},
    "model.trunk._target_": {"model": {"_target_": "twinsight.models.TwoViewModel", "trunk": TOUCH, "input_size": 32}},
    "logger.mine._target_": {"logger": {"mine": TOUCH}},
    "trainer.callbacks[0]._target_": {"trainer": {"_target_": "pytorch_lightning.Trainer", "callbacks": [TOUCH]}},
}


@pytest.mark.parametrize("key", WRITTEN)
def test_a_configuration_that_names_it_is_refused_with_the_key(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^`{re.escape(key)}=os\.system` could run anything"):
        validate(composed(f"data.root={tmp_path}", **WRITTEN[key]))
    assert not (tmp_path / "sprung").exists()


# What somebody wrote into a frozen cell, and what is said.
PLANTED = {
    "the model": ("model", TOUCH, "`model._target_=os.system` could run anything"),
    "a part of the model": ("model", {"trunk": TOUCH}, "`model.trunk._target_=os.system` could run anything"),
    "the photos": ("data", TOUCH | {"_target_": "twinsight.exits.os.system"}, "could run anything"),
    "the explainer": ("explainer", TOUCH, "`explainer._target_=os.system` could run anything"),
    "a metric": ("metrics", {"mine": TOUCH | {"_partial_": True}}, "`metrics.mine._target_=os.system` could run"),
    "a callback": (
        "trainer",
        {"callbacks": [TOUCH]},
        r"`trainer.callbacks\[0\]._target_=os.system` could run anything",
    ),
    "a path": (
        "views",
        {"x": {"_target_": "hydra.utils.get_method", "path": "os.system"}},
        "`views.x.path=os.system` could run anything",
    ),
    "a reference": (
        "data",
        {"root": "${oc.create:{_target_: os.mkdir, path: sprung}}"},
        "`data.root=.*` is a reference, and a frozen configuration has none",
    ),
}


def plant(study, key, node):
    for cell in study.cells:
        content = yaml.safe_load(cell.frozen.read_text())
        content["config"][key] = {**(content["config"][key] or {}), **node}
        cell.frozen.write_text(yaml.safe_dump(content))
    return Study(study.root, study.name)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    (root / "photos").mkdir()
    write_photo(root / "photos" / "0.png", 0)
    return planned(root / "out", root / "photos", "explainer=lafam")


@pytest.fixture
def study(clean, tmp_path, monkeypatch):
    """A planned study of one cell, for the test alone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clean.root, tmp_path / "out")
    return Study(tmp_path / "out", clean.name)


@pytest.mark.parametrize("what", PLANTED)
def test_a_frozen_cell_that_names_it_fails_and_runs_nothing(study, tmp_path, what):
    key, node, said = PLANTED[what]
    study = plant(study, key, node)
    assert run(study) == [1]
    (cell,) = study.cells
    status = cell.status()
    assert status["state"] == "failed"
    with pytest.raises(UserError, match=said):
        raise UserError(status["error"])
    assert "\n" not in status["error"]
    assert not (tmp_path / "sprung").exists()


def test_a_frozen_logger_that_names_it_is_not_built(study, tmp_path):
    plan = study.folder / "plan.jsonl"
    line = json.loads(plan.read_text()) | {"loggers": ["mine"]}
    plan.write_text(json.dumps(line) + "\n")
    study = plant(study, "logger", {"mine": {"_target_": "twinsight.tracking.wandb_logger", "project": TOUCH}})
    with (
        pytest.raises(UserError, match=r"`logger\.mine\.project\._target_=os\.system` could run anything"),
        dashboards(study),
    ):
        pass
    assert not (tmp_path / "sprung").exists()


def test_a_frozen_cell_without_such_things_runs(study):
    assert run(study) == [0]
