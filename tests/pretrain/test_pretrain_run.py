"""The task ``pretrain`` as a user types it: weights with figures, and a run that can be interrupted."""

import csv
import json
import math
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from sklearn.neighbors import KNeighborsClassifier

from twinsight.config import conf_folder, register_schema
from twinsight.data import ImageFolder
from twinsight.errors import UserError
from twinsight.models import load_model
from twinsight.pretrain import SimCLR, pretrain
from twinsight.pretrain.method import PretrainMethod

TINY = (
    "task=pretrain",
    "data=image_folder",
    "model.input_size=32",
    "model.widths=[8,16,16]",
    "model.blocks=1",
    "model.hidden=16",
    "model.embedding=8",
    "task.batch_size=16",
    "loader.num_workers=0",
    "trainer=cpu",
    "logger=none",
    "+trainer.enable_progress_bar=false",
    "+trainer.enable_model_summary=false",
)


WATCH = ("task.watch.every=1", "task.watch.photos.limit=1")


def run(shapes, output, *overrides):
    """Train on the shapes; the weight file."""
    register_schema()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        unwatched = [] if set(WATCH) & set(overrides) else ["task.watch=null"]
        config = compose(
            "config", [*TINY, *unwatched, f"data.root={shapes}", f"paths.output_root={output}", *overrides]
        )
    assert pretrain(config) == 0
    return output / "pretrain/simclr.safetensors"


def knn_by_hand(model, root, k=200, temperature=0.1):
    """Accuracy of the nearest-neighbour vote on whole photos."""
    rows = {}
    for split in ("train", "test"):
        photos = ImageFolder(root, split)
        x = torch.stack([model_input(model, photos.load(index)) for index in range(len(photos))])
        with torch.no_grad():
            rows[split] = model.features(x).mean((2, 3)).double().numpy(), photos.labels

    def weights(distances):
        return torch.from_numpy(-distances / temperature).exp().numpy()

    votes = KNeighborsClassifier(min(k, len(rows["train"][1])), weights=weights, metric="cosine", algorithm="brute")
    return votes.fit(*rows["train"]).score(*rows["test"])


def model_input(model, photo):
    pixels = torch.tensor(list(photo.tobytes()), dtype=torch.float32).view(photo.height, photo.width, 3) / 255
    mean, std = (torch.tensor(part) for part in model.normalization)
    return ((pixels - mean) / std).permute(2, 0, 1)


class Interruption(Exception):
    """The power fails."""


def interrupt(monkeypatch, epoch, batch):
    """Make training stop in the middle of an epoch."""
    step = SimCLR.training_step

    def failing(self, items, batch_idx):
        if (self.trainer.current_epoch, batch_idx) == (epoch, batch):
            raise Interruption
        return step(self, items, batch_idx)

    monkeypatch.setattr(PretrainMethod, "training_step", failing)


def steps_taken(monkeypatch):
    """(epoch, batch) of every training step from now on."""
    step, taken = SimCLR.training_step, []

    def noting(self, items, batch_idx):
        taken.append((self.trainer.current_epoch, batch_idx))
        return step(self, items, batch_idx)

    monkeypatch.setattr(PretrainMethod, "training_step", noting)
    return taken


# What comes out


@pytest.mark.parametrize("method", ["simclr", "barlow_twins", "supervised"])
def test_two_epochs_leave_a_weight_file_with_figures(shapes, tmp_path, method):
    overrides = [f"task/method={method}", "task.epochs=2"]
    if method == "supervised":
        overrides.append("model.embedding=null")
    file = run(shapes, tmp_path, *overrides)
    model = load_model("demo_simclr", checkpoint=file)
    figures = dict(model.figures)
    assert model.input_size == 32
    assert model.features(torch.rand(1, 3, 32, 32)).shape == (1, 16, 4, 4)
    assert json.loads(file.with_suffix(".json").read_text()) == figures
    assert figures["method"] == {"simclr": "SimCLR", "barlow_twins": "BarlowTwins", "supervised": "Supervised"}[method]
    assert (figures["epochs"], figures["batch_size"], figures["training_photos"]) == (2, 16, 48)
    assert figures["data_digest"] == ImageFolder(shapes, "train").digest()
    assert str(shapes) not in json.dumps(figures)
    losses = [row["loss"] for row in figures["history"] if "loss" in row]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


def test_loss_accuracy_and_learning_rate_are_logged(shapes, tmp_path):
    run(shapes, tmp_path, "task.epochs=2", "task.probe_every=1", "logger=csv", "+trainer.log_every_n_steps=1")
    (file,) = tmp_path.rglob("metrics.csv")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    logged = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    assert len(logged["loss_step"]) == 6  # 3 steps of 16 photos in each of 2 epochs
    assert len(logged["loss_epoch"]) == 2
    for epoch in (0, 1):
        mean = sum(logged["loss_step"][3 * epoch : 3 * epoch + 3]) / 3
        assert logged["loss_epoch"][epoch] == pytest.approx(mean, rel=1e-5)
    assert all(0 <= accuracy <= 1 for accuracy in logged["knn_accuracy"])
    assert any(name.startswith("lr-") for name in logged)


@pytest.mark.parametrize("probe_every", [1, 2, 5])
def test_the_accuracy_in_the_file_is_that_of_its_weights(shapes, tmp_path, probe_every):
    file = run(shapes, tmp_path, "task.epochs=3", f"task.probe_every={probe_every}", "task.method.learning_rate=0.01")
    model = load_model("demo_simclr", checkpoint=file)
    assert model.figures["knn_accuracy"] == pytest.approx(knn_by_hand(model, shapes), abs=1e-4)
    probes = [row["epoch"] for row in model.figures["history"] if "knn_accuracy" in row]
    assert set(probes) == {*range(probe_every, 4, probe_every), 3}


def test_half_precision_weights_are_the_rounded_ones_of_the_run_and_so_is_their_accuracy(shapes, tmp_path):
    whole, half = (
        run(shapes, tmp_path / dtype, "task.epochs=1", f"task.weights_dtype={dtype}")
        for dtype in ("float32", "float16")
    )
    assert half.stat().st_size < 0.75 * whole.stat().st_size
    expected, found = (load_model("demo_simclr", checkpoint=file) for file in (whole, half))
    for name, value in expected.state_dict().items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(found.state_dict()[name], rounded), name
    assert found.figures["knn_accuracy"] == pytest.approx(knn_by_hand(found, shapes), abs=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(shapes, tmp_path):
    files = [run(shapes, tmp_path / name, "task.epochs=1", f"seed={name[0]}") for name in ("0a", "0b", "1")]
    first, again, other = (load_model("demo_simclr", checkpoint=file).state_dict() for file in files)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.stem.weight"], other["trunk.stem.weight"])


def test_the_seed_of_the_run_is_that_of_its_views(shapes, tmp_path, monkeypatch):
    def fit(trainer, method, datamodule, **_):
        assert datamodule.seed == 7
        raise Interruption

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", fit)
    with pytest.raises(Interruption):
        run(shapes, tmp_path, "seed=7")


def test_workers_change_no_weight(shapes, tmp_path):
    alone, helped = (
        run(shapes, tmp_path / f"{workers}", "task.epochs=2", f"loader.num_workers={workers}") for workers in (0, 2)
    )
    assert alone.read_bytes() == helped.read_bytes()


def test_watching_a_network_learn_changes_no_weight(shapes, tmp_path):
    options = ["task.epochs=2", "task.probe_every=1"]
    unseen = run(shapes, tmp_path / "unseen", *options)
    watched = run(shapes, tmp_path / "watched", *options, *WATCH)
    assert watched.read_bytes() == unseen.read_bytes()
    written = {path.suffix for path in (tmp_path / "watched").rglob("*")}
    assert {".png", ".gif"} <= written


def test_the_weights_of_an_epoch_can_be_loaded(shapes, tmp_path):
    file = run(shapes, tmp_path, "task.epochs=2", *WATCH)
    final = load_model("demo_simclr", checkpoint=file).state_dict()
    first, last = (
        load_model("demo_simclr", checkpoint=path).state_dict()
        for path in sorted(tmp_path.rglob("epoch-*.safetensors"))
    )
    assert all(torch.equal(last[name], final[name]) for name in final)
    assert not torch.equal(first["trunk.stem.weight"], final["trunk.stem.weight"])


# Interruption


@pytest.mark.parametrize(
    ("epoch", "batch"), [(1, 0), (2, 1), (3, 2)], ids=["before the first probe", "within an epoch", "at the last step"]
)
def test_an_interrupted_run_that_is_resumed_ends_with_the_weights_of_an_uninterrupted_one(
    shapes, tmp_path, monkeypatch, epoch, batch
):
    options = ["task.epochs=4", "task.probe_every=2", "task.method.learning_rate=0.01"]
    expected = run(shapes, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt(patch, epoch, batch)
        with pytest.raises(Interruption):
            run(shapes, tmp_path / "broken", *options)
    assert not (tmp_path / "broken/pretrain/simclr.safetensors").exists()
    steps = steps_taken(monkeypatch)
    resumed = run(shapes, tmp_path / "broken", *options, "task.resume=last")
    assert resumed.read_bytes() == expected.read_bytes()
    assert steps == [(later, place) for later in range(epoch, 4) for place in range(3)]


def test_last_means_the_latest_run_even_where_an_earlier_one_left_checkpoints(shapes, tmp_path, monkeypatch):
    options = ["task.epochs=2", "task.probe_every=1"]
    expected = run(shapes, tmp_path / "whole", *options).read_bytes()
    run(shapes, tmp_path / "used", *options, "seed=1")
    with monkeypatch.context() as patch:
        interrupt(patch, 1, 1)
        with pytest.raises(Interruption):
            run(shapes, tmp_path / "used", *options)
    steps = steps_taken(monkeypatch)
    assert run(shapes, tmp_path / "used", *options, "task.resume=last").read_bytes() == expected
    assert steps == [(1, 0), (1, 1), (1, 2)]


def test_a_checkpoint_can_be_resumed_by_its_path(shapes, tmp_path, monkeypatch):
    options = ["task.epochs=2", "task.probe_every=1"]
    expected = run(shapes, tmp_path / "whole", *options).read_bytes()
    with monkeypatch.context() as patch:
        interrupt(patch, 1, 1)
        with pytest.raises(Interruption):
            run(shapes, tmp_path / "broken", *options)
    moved = shutil.move(tmp_path / "broken/pretrain/simclr/last.ckpt", tmp_path / "kept.ckpt")
    steps = steps_taken(monkeypatch)
    assert run(shapes, tmp_path / "new", *options, f"task.resume={moved}").read_bytes() == expected
    assert steps == [(1, 0), (1, 1), (1, 2)]


def test_resuming_a_finished_run_writes_the_same_weights_again(shapes, tmp_path):
    file = run(shapes, tmp_path, "task.epochs=1")
    expected = load_model("demo_simclr", checkpoint=file).state_dict()
    again = load_model("demo_simclr", checkpoint=run(shapes, tmp_path, "task.epochs=1", "task.resume=last"))
    assert all(torch.equal(again.state_dict()[name], expected[name]) for name in expected)
    assert again.figures["epochs"] == 1


# What cannot work is said before anything is trained


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.resume=last", r"`task.resume=last`: there is no .*simclr/last.ckpt"),
        ("task.resume=nowhere.ckpt", r"`task.resume=nowhere.ckpt`: there is no nowhere.ckpt"),
        ("task.output=weights.pt", r"`task.output=weights.pt` must end in .safetensors"),
        ("task.output=weights", r"`task.output=weights` must end in .safetensors"),
        ("task.weights_dtype=float61", r"unknown task.weights_dtype 'float61': did you mean 'float16'"),
        ("task.weights_dtype=int8", r"unknown task.weights_dtype 'int8'.*Valid: bfloat16, float16, float32"),
        ("task.batch_size=49", r"`task.batch_size=49` exceeds the 48 training photos"),
        ("task.train_split=training", r"training`: no such folder"),
        ("model.input_size=0", r"`input_size` must be positive, got 0"),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_once(shapes, tmp_path, monkeypatch, override, message):
    def fit(*_, **__):
        raise AssertionError("training was started")

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", fit)
    with pytest.raises((UserError, InstantiationException), match=message) as caught:
        run(shapes, tmp_path, override)
    # Hydra wraps what a constructor raises; the command line shows what is inside.
    assert isinstance(caught.value, UserError) or isinstance(caught.value.__cause__, UserError)


def test_a_network_that_no_weight_file_describes_is_refused(shapes, tmp_path):
    options = (f"~model.{name}" for name in ("widths", "blocks", "hidden", "embedding", "similarity"))
    with pytest.raises(UserError, match="`model` cannot be stored with its architecture: choose model=small_two_view"):
        run(shapes, tmp_path, "model._target_=toy_cells.gelu_model", *options)


class Trap:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('sprung')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "trap": Trap()}, r"`task.resume=.*kept.ckpt` holds a pickled object, `exec`"),
        (
            {"state_dict": {"other": torch.zeros(1)}},
            r"of another network or method: .* missing, .* leave task.resume out",
        ),
        (b"PK\x03\x04 and no more", r"`task.resume=.*kept.ckpt` is truncated or damaged \(\d+ bytes\)"),
    ],
    ids=["code", "another network", "truncated"],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused_before_training(shapes, tmp_path, content, message):
    file = tmp_path / "kept.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match=message):
        run(shapes, tmp_path, f"task.resume={file}")


def test_a_checkpoint_of_a_wider_network_is_refused_with_both_shapes(shapes, tmp_path):
    run(shapes, tmp_path, "task.epochs=1")
    with pytest.raises(
        UserError, match=r"first `state_dict.model.trunk.stages.2.*expected \(24, 16, 3, 3\), found \(16, 16, 3, 3\)"
    ):
        run(shapes, tmp_path, "task.epochs=2", "model.widths=[8,16,24]", "task.resume=last")
