"""SimCLR as a LightningModule."""

import math

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from twinsight.errors import UserError
from twinsight.models import TwoViewModel
from twinsight.pretrain.knn import KNNAccuracy
from twinsight.pretrain.losses import nt_xent


class SimCLR(pl.LightningModule):
    """SimCLR (Chen et al. 2020): two augmented views of a photo attract, all other photos of the batch repel.

    Args:
        model: the network to train, in place.
        temperature: of the loss. The paper tunes {0.1, 0.5, 1.0} on CIFAR-10 (appendix B.9).
        learning_rate: peak of AdamW's schedule.
        weight_decay: of all weights with two or more axes; biases and norms have none.
        warmup_epochs: linear warm-up from 0; a cosine to 0 follows until the last epoch.
        knn_k, knn_temperature: of the nearest-neighbour probe on pooled trunk features.

    Logs ``loss`` per step and ``knn_accuracy`` (in [0, 1]) per validation.
    """

    def __init__(
        self,
        model: TwoViewModel,
        temperature: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 1.0,
        knn_k: int = 200,
        knn_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("learning_rate", learning_rate)):
            if value <= 0:
                raise UserError(f"`task.method.{name}` must be positive, got {value}")
        self.save_hyperparameters(ignore="model")
        self.model = model
        self.temperature = temperature
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.knn = KNNAccuracy(knn_k, knn_temperature)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        view1, view2, _ = batch
        # One pass over both views: batch norm sees them together, as in the published code on one device.
        z1, z2 = self.model(torch.cat([view1, view2])).chunk(2)
        # The batch of all ranks, with gradients: negatives come from every process.
        loss = nt_xent(self._of_all_ranks(z1), self._of_all_ranks(z2), self.temperature)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def _of_all_ranks(self, z: Tensor) -> Tensor:
        gathered = self.all_gather(z, sync_grads=True)
        assert isinstance(gathered, Tensor)  # a tensor in, a tensor out
        return gathered.reshape(-1, z.shape[-1])

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        photos, labels = batch
        self.knn.update(self.model.pool(self.model.features(photos)), labels, reference=dataloader_idx == 0)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("knn_accuracy", self.knn.compute(), prog_bar=True)
        self.knn.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self.learning_rate,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or 1
        warmup = self.warmup_epochs * steps / epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warmup_cosine(step: int, warmup: float, steps: int) -> float:
    """Factor of the peak learning rate: linear from 0 to 1 over ``warmup`` steps, then half a cosine down to 0.

    >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, steps - warmup))))
