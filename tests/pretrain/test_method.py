"""Pretraining methods as LightningModules: schedule, optimiser, probe, and several processes that act as one."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from twinsight.data import ImageFolder, SimCLRViews
from twinsight.errors import UserError
from twinsight.models import SmallResNet, TwoViewModel, projection_head
from twinsight.pretrain import BarlowTwins, PretrainDataModule, SimCLR, Supervised, cross_correlation_loss, nt_xent
from twinsight.pretrain.method import warmup_cosine

VIEWS = SimCLRViews(16, first="augmented", blur=0)


def network():
    torch.manual_seed(0)
    return TwoViewModel(SmallResNet((8, 16, 16), 1), projection_head(16, 12, 8), input_size=16)


def batch_of(size, seed=0):
    draw = torch.Generator().manual_seed(seed)
    views = torch.rand(2, size, 3, 16, 16, generator=draw)
    return [*views, torch.randint(3, (size,), generator=draw)]


def photos(root, views=VIEWS, **options):
    train, test = (ImageFolder(root, split) for split in ("train", "test"))
    return PretrainDataModule(train, test, views, num_workers=0, **options)


def trainer(epochs=1, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **quiet,
        **options,
    )


class Recorder(pl.Callback):
    """Notes the learning rate of every step, and the probe's inputs."""

    def __init__(self):
        self.rates, self.rows = [], {0: [], 1: []}

    def on_train_batch_start(self, trainer, method, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_validation_batch_start(self, trainer, method, batch, batch_idx, dataloader_idx=0):
        with torch.no_grad():
            pooled = method.model.trunk(batch[0]).mean((2, 3))
        self.rows[dataloader_idx].append((pooled, batch[1]))

    def seen(self, loader):
        return [torch.cat(parts) for parts in zip(*self.rows[loader], strict=True)]


# The schedule


@pytest.mark.parametrize(("warmup", "steps"), [(3, 12), (2.5, 10), (0, 7), (10, 10), (1, 2)])
def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine(warmup, steps):
    for step in range(steps + 1):
        if step < warmup:
            expected = step / warmup
        else:
            # cos^2 of a quarter turn is half a cosine
            expected = math.cos(math.pi / 2 * (step - warmup) / max(1, steps - warmup)) ** 2
        assert warmup_cosine(step, warmup, steps) == pytest.approx(expected, abs=1e-12)


def test_the_learning_rate_stays_at_0_after_the_end_and_at_the_peak_after_the_warm_up():
    assert warmup_cosine(4, 4, 12) == 1
    assert warmup_cosine(12, 4, 12) == pytest.approx(0)
    assert warmup_cosine(99, 4, 12) == pytest.approx(0)


def test_every_step_of_a_training_follows_the_schedule(shapes):
    recorder = Recorder()
    method = SimCLR(network(), learning_rate=0.02, warmup_epochs=1.5)
    trainer(epochs=4, callbacks=[recorder], limit_val_batches=0).fit(method, photos(shapes, batch_size=16))
    # 48 photos in batches of 16: 3 steps an epoch, so 12 steps, of which 4.5 warm up.
    expected = [0.02 * warmup_cosine(step, 4.5, 12) for step in range(12)]
    assert len(recorder.rates) == 12
    for rates, rate in zip(recorder.rates, expected, strict=True):
        assert rates == pytest.approx([rate, rate])


@pytest.mark.parametrize("method_class", [SimCLR, BarlowTwins, Supervised])
def test_weights_decay_and_biases_and_norms_do_not(shapes, method_class):
    method = method_class(network(), weight_decay=0.03)
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(method, photos(shapes, batch_size=16))
    decayed, plain = run.optimizers[0].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.03, 0)
    kinds = {id(p): isinstance(m, nn.Linear | nn.Conv2d) for m in method.modules() for p in m.parameters(recurse=False)}
    weights = {id(p) for name, p in method.named_parameters() if kinds[id(p)] and name.endswith("weight")}
    assert {id(p) for p in decayed["params"]} == weights
    assert {id(p) for p in plain["params"]} == {id(p) for p in method.parameters()} - weights


# The losses


def alone(method):
    """A method outside of any training: one process."""
    method.trainer = trainer()
    method.trainer.strategy.connect(method)
    return method


@pytest.mark.parametrize(
    ("method_class", "options", "loss"),
    [
        (SimCLR, {"temperature": 0.3}, lambda z1, z2: nt_xent(z1, z2, 0.3)),
        (BarlowTwins, {"redundancy": 0.02}, lambda z1, z2: cross_correlation_loss(z1, z2, 0.02)),
    ],
)
def test_the_loss_is_that_of_the_embeddings_of_one_joint_pass(method_class, options, loss):
    model = network()
    method = alone(method_class(model, **options))
    view1, view2, labels = batch_of(6)
    with torch.no_grad():
        found = method.loss(view1, view2, labels)
        together = model(torch.cat([view1, view2]))
    # Batch norm that had seen one view at a time would give other embeddings.
    torch.testing.assert_close(found, loss(together[:6], together[6:]))
    assert not torch.isclose(found, loss(model(view1), model(view2)), rtol=1e-4)


def test_the_supervised_loss_is_the_mean_cross_entropy_over_both_views():
    model = network()
    method = Supervised(model, classes=3)
    view1, view2, labels = batch_of(6)
    with torch.no_grad():
        found = method.loss(view1, view2, labels)
        scores = method.classifier(model(torch.cat([view1, view2]))).double().log_softmax(1)
    expected = -sum(scores[i, labels[i % 6]] for i in range(12)) / 12
    torch.testing.assert_close(found.double(), expected)


def test_the_supervised_classifier_fits_the_embedding_and_leaves_the_network_in_training_mode():
    model = network()
    statistics = model.trunk.stem_norm.running_mean.clone()
    method = Supervised(model, classes=7)
    assert (method.classifier.in_features, method.classifier.out_features) == (8, 7)
    assert all(module.training for module in model.modules())
    assert torch.equal(model.trunk.stem_norm.running_mean, statistics)


@pytest.mark.parametrize(
    ("method_class", "options"),
    [
        (SimCLR, {"temperature": 0}),
        (SimCLR, {"learning_rate": -1e-3}),
        (BarlowTwins, {"redundancy": -1}),
        (BarlowTwins, {"learning_rate": 0}),
        (SimCLR, {"knn_k": 0}),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(method_class, options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=rf"{name.removeprefix('knn_')}`.*{value}"):
        method_class(network(), **options)


# Training


@pytest.mark.parametrize("method_class", [SimCLR, BarlowTwins, Supervised])
def test_training_lowers_the_loss_and_remembers_loss_and_accuracy_of_every_epoch(shapes, method_class):
    torch.manual_seed(0)
    method = method_class(network(), learning_rate=0.01, knn_k=5)
    gentle = SimCLRViews(16, first="augmented", scale=(0.5, 1.0), jitter=0, greyscale=0, blur=0)
    run = trainer(epochs=8)
    run.fit(method, photos(shapes, views=gentle, batch_size=16))
    losses = {row["epoch"]: row["loss"] for row in method.history if "loss" in row}
    accuracies = {row["epoch"]: row["knn_accuracy"] for row in method.history if "knn_accuracy" in row}
    assert list(losses) == list(accuracies) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses[8] < 0.8 * losses[1]
    assert losses[8] == pytest.approx(float(run.callback_metrics["loss_epoch"]), abs=1e-4)
    assert accuracies[8] == pytest.approx(float(run.callback_metrics["knn_accuracy"]), abs=1e-4)


def test_every_epoch_of_a_training_sees_the_views_drawn_for_it(shapes):
    class Collector(pl.Callback):
        def __init__(self):
            self.views = {}

        def on_train_batch_start(self, trainer, method, batch, batch_idx):
            self.views[trainer.current_epoch, batch_idx] = batch[0].clone()

    collector, data = Collector(), photos(shapes, batch_size=16)
    trainer(epochs=3, callbacks=[collector], limit_val_batches=0).fit(SimCLR(network()), data)
    expected = {}
    for epoch in range(3):
        loader = photos(shapes, batch_size=16).train_dataloader()
        loader.sampler.set_epoch(epoch)
        expected |= {(epoch, place): data.on_after_batch_transfer(batch, 0)[0] for place, batch in enumerate(loader)}
    assert list(collector.views) == list(expected)
    assert all(torch.equal(collector.views[key], view) for key, view in expected.items())


def test_the_probe_compares_pooled_features_of_the_trunk_in_evaluation_mode(shapes):
    recorder = Recorder()
    method = SimCLR(network(), knn_k=3, knn_temperature=0.5)
    run = trainer(callbacks=[recorder])
    (result, *_) = run.validate(method, photos(shapes, batch_size=16), verbose=False)
    (references, labels), (queries, truth) = recorder.seen(0), recorder.seen(1)
    assert (len(references), len(queries)) == (48, 15)
    votes = KNeighborsClassifier(3, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.5))
    expected = votes.fit(references.double(), labels).score(queries.double(), truth)
    assert result["knn_accuracy"] == pytest.approx(expected)
    assert (method.knn.k, method.knn.temperature) == (3, 0.5)
    assert method.knn.queries == [], "nothing may stay in memory between probes"


# Several processes


class Descent(SimCLR):
    """Plain gradient descent: unlike Adam's, its steps show the scale of the gradient."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def without_batch_norm():
    """Batch statistics are per process, so that only a network without them can be equal."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2))
    return TwoViewModel(trunk, nn.Linear(8, 8), input_size=16)


@pytest.mark.slow
def test_two_processes_train_like_one_with_a_batch_twice_as_large(shapes):
    together = Descent(without_batch_norm(), temperature=0.2, knn_k=48)
    before = torch.nn.utils.parameters_to_vector(together.model.parameters()).detach().clone()
    joint = trainer()
    joint.fit(together, photos(shapes, batch_size=16))

    shared = Descent(without_batch_norm(), temperature=0.2, knn_k=48)
    parallel = trainer(strategy="ddp_spawn", devices=2)
    parallel.fit(shared, photos(shapes, batch_size=8))

    moved, expected = (
        torch.nn.utils.parameters_to_vector(method.model.parameters()).detach() - before
        for method in (shared, together)
    )
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)
    for figure in ("loss_epoch", "knn_accuracy"):
        assert parallel.callback_metrics[figure].item() == pytest.approx(
            joint.callback_metrics[figure].item(), abs=1e-5
        )
