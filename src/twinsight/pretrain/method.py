"""What all pretraining methods share: two views in, optimiser and schedule, the nearest-neighbour probe."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from twinsight.errors import UserError
from twinsight.models import TwoViewModel
from twinsight.pretrain.knn import KNNAccuracy


class PretrainMethod(pl.LightningModule):
    """Base of the methods. A subclass gives :meth:`loss`; batches, schedule, probe and history are here.

    Args:
        model: the network to train, in place.
        learning_rate: peak of AdamW's schedule.
        weight_decay: of all weights with two or more axes; biases and norms have none.
        warmup_epochs: linear warm-up from 0; a cosine to 0 follows until the last epoch.
        knn_k, knn_temperature: of the nearest-neighbour probe on pooled trunk features.

    Logs ``loss`` per step and ``knn_accuracy`` (in [0, 1]) per validation; ``history`` keeps both per epoch and travels
    with checkpoints.

    Raises:
        UserError: a learning rate that is not positive.
    """

    def __init__(
        self,
        model: TwoViewModel,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 1.0,
        knn_k: int = 200,
        knn_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if learning_rate <= 0:
            raise UserError(f"`task.method.learning_rate` must be positive, got {learning_rate}")
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        # Every process probes with all photos, so that there is nothing to gather.
        self.knn = KNNAccuracy(knn_k, knn_temperature, sync_on_compute=False)
        self.history: list[dict[str, float]] = []

    def loss(self, view1: Tensor, view2: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of ``(B, C, H, W)`` views; only supervised methods look at the ``(B,)`` class indices."""
        raise NotImplementedError

    def embeddings(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, d)`` of both views over all ranks, with gradients."""
        # One pass over both views: batch norm sees them together, as in the published code on one device.
        z1, z2 = self.model(torch.cat([view1, view2])).chunk(2)
        return self._of_all_ranks(z1), self._of_all_ranks(z2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(*batch)
        # Of all processes: the supervised loss is of each one's own photos.
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self._remember("loss", "loss_epoch")

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        photos, labels = batch
        self.knn.update(self.model.pool(self.model.features(photos)), labels, reference=dataloader_idx == 0)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            accuracy = self.knn.compute()
            self.log("knn_accuracy", accuracy, prog_bar=True, sync_dist=True)
            self.history.append({"epoch": self._epochs_done(), "knn_accuracy": round(float(accuracy), 4)})
        self.knn.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint.get("history", [])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        decayed, plain = ([p for p in parameters if (p.ndim > 1) == wanted] for wanted in (True, False))
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self.learning_rate,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = self.warmup_epochs * steps / (self.trainer.max_epochs or 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _of_all_ranks(self, z: Tensor) -> Tensor:
        gathered = self.all_gather(z, sync_grads=True)
        assert isinstance(gathered, Tensor)  # a tensor in, a tensor out
        return gathered.reshape(-1, z.shape[-1])

    def _epochs_done(self) -> int:
        return self.trainer.current_epoch + int(self.trainer.state.fn == TrainerFn.FITTING)

    def _remember(self, name: str, metric: str) -> None:
        # A run that is resumed at the very end of an epoch passes here without having seen a batch.
        if metric in self.trainer.callback_metrics:
            value = round(float(self.trainer.callback_metrics[metric]), 4)
            self.history.append({"epoch": self._epochs_done(), name: value})


def warmup_cosine(step: int, warmup: float, steps: int) -> float:
    """Factor of the peak learning rate: linear from 0 to 1 over ``warmup`` steps, then half a cosine down to 0.

    >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, steps - warmup))))
