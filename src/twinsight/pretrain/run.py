"""The task ``pretrain``: train a network, keep its weights with their figures."""

import logging
import platform
import warnings
from pathlib import Path

import hydra.utils
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint

from twinsight.config import validate
from twinsight.errors import UserError, unknown
from twinsight.files import write_json
from twinsight.models import TwoViewModel, rounded, save_model
from twinsight.models.checkpoints import Layout, read_tensors, shapes
from twinsight.pretrain.callbacks import ExplainPairs, SaveWeights, ShowLearning
from twinsight.pretrain.data import PretrainDataModule
from twinsight.pretrain.method import PretrainMethod
from twinsight.tracking import build, check_loggers, chosen_loggers, finishing

log = logging.getLogger(__name__)

WEIGHT_TYPES = ("float32", "float16", "bfloat16")


def pretrain(config: DictConfig) -> int:
    """Train ``config.model`` by ``config.task.method`` on ``config.data`` and write ``config.task.output``.

    Returns:
        exit code 0.

    Raises:
        UserError: the configuration or the data do not fit.
    """
    validate(config)
    task = config.task
    _check(task)
    pl.seed_everything(config.seed, workers=True)
    model = hydra.utils.instantiate(config.model)
    data = PretrainDataModule(
        train=hydra.utils.instantiate(config.data, split=task.train_split),
        test=hydra.utils.instantiate(config.data, split=task.test_split),
        views=hydra.utils.instantiate(config.views),
        normalization=model.normalization,
        batch_size=task.batch_size,
        num_workers=config.loader.num_workers,
        seed=config.seed,
    )
    if model.architecture is None:
        raise UserError(
            "`model` cannot be stored with its architecture: "
            "choose model=small_two_view, model=torchvision_resnet or model=pretrained"
        )
    model.train()  # Lightning leaves modes as they are, and loaded models come in evaluation mode
    model.checkpoint_sha256 = None  # its weights will no longer be those of the file
    method = hydra.utils.instantiate(task.method, model=model)
    _check_resumed(task, method)
    check_loggers(config)
    loggers = [build(node) for node in chosen_loggers(config).values()]
    trainer = hydra.utils.instantiate(
        config.trainer,
        max_epochs=task.epochs,
        check_val_every_n_epoch=task.probe_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=loggers or False,
        callbacks=[
            ModelCheckpoint(
                _folder(task),
                filename="epoch-{epoch:03d}",
                auto_insert_metric_name=False,
                save_last=True,
                save_on_train_epoch_end=True,  # every epoch, not only those with a probe
                enable_version_counter=False,  # `last` is this run's, whatever ran before
            ),
            *([LearningRateMonitor("step")] if loggers else []),
            *(_watchers(config, model) if task.watch else []),
        ],
    )
    model.to(memory_format=torch.channels_last)  # convolutions on CPU and tensor cores want it
    with finishing(loggers), warnings.catch_warnings():
        # Lightning 2.6 asks newer torch in the old way.
        warnings.filterwarnings("ignore", ".*(LeafSpec|all_gather).* is deprecated.*")
        trainer.fit(method, datamodule=data, ckpt_path=_resumed(task), weights_only=True)
        # The figures are of the weights as they will be stored, after the last epoch.
        rounded(model, getattr(torch, task.weights_dtype))
        trainer.validate(method, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        figures = {
            "method": type(method).__name__,
            "epochs": trainer.current_epoch,
            "batch_size": task.batch_size,
            "processes": trainer.world_size,
            "training_photos": len(data.train),
            "data": type(data.train).__name__,
            "data_digest": data.train.digest(),
            "knn_accuracy": round(float(trainer.callback_metrics["knn_accuracy"]), 4),
            "history": method.history,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "accelerator": trainer.accelerator.__class__.__name__,
            "recipe": OmegaConf.to_container(task.method, resolve=True),
        }
        save_model(model, task.output, figures, getattr(torch, task.weights_dtype))
        write_json(Path(task.output).with_suffix(".json"), figures)
        log.info("k-NN accuracy %.4f; weights in %s", figures["knn_accuracy"], task.output)
    return 0


def _folder(task: DictConfig) -> Path:
    """Where checkpoints go."""
    return Path(task.output).with_suffix("")


def _resumed(task: DictConfig) -> Path | None:
    """The checkpoint that ``task.resume`` means."""
    if task.resume is None:
        return None
    return _folder(task) / "last.ckpt" if task.resume == "last" else Path(task.resume)


def _check(task: DictConfig) -> None:
    """Refuse, before anything is trained, what would fail only afterwards."""
    if Path(task.output).suffix != ".safetensors":
        raise UserError(f"`task.output={task.output}` must end in .safetensors")
    if task.weights_dtype not in WEIGHT_TYPES:
        raise unknown("task.weights_dtype", task.weights_dtype, WEIGHT_TYPES)
    checkpoint = _resumed(task)
    if checkpoint is not None and not checkpoint.is_file():
        raise UserError(f"`task.resume={task.resume}`: there is no {checkpoint}; leave task.resume out to start anew")


def _check_resumed(task: DictConfig, method: PretrainMethod) -> None:
    """Refuse a checkpoint that cannot be read, or that belongs to another network or method."""
    checkpoint = _resumed(task)
    if checkpoint is None:
        return
    found = shapes(read_tensors(checkpoint, "task.resume"))
    layout = Layout({"method": "state_dict."}, entries=("state_dict",))
    difference = layout.compare({"method": shapes(method.state_dict())}, found)
    if difference:
        raise UserError(
            f"`task.resume={checkpoint}` is of another network or method: {difference}. "
            "Give the options of the run that is resumed, or leave task.resume out to start anew"
        )


def _watchers(config: DictConfig, model: TwoViewModel) -> list[pl.Callback]:
    watch, folder = config.task.watch, _folder(config.task)
    return [
        SaveWeights(watch.every, folder / "weights"),
        ShowLearning(watch.every, folder / "learning"),
        ExplainPairs(
            hydra.utils.instantiate(config.explainer, model=model),
            hydra.utils.instantiate(watch.photos),
            hydra.utils.instantiate(watch.views),
            watch.every,
            folder / "explanations",
            config.seed,
        ),
    ]
