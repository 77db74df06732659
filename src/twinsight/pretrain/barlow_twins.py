"""Barlow Twins as a LightningModule."""

from typing import Any

from torch import Tensor

from twinsight.errors import UserError
from twinsight.models import TwoViewModel
from twinsight.pretrain.losses import cross_correlation_loss
from twinsight.pretrain.method import PretrainMethod


class BarlowTwins(PretrainMethod):
    """Barlow Twins (Zbontar et al. 2021): embeddings of two views correlate feature by feature and with no other.

    Args:
        model: the network to train, in place; wide embeddings help.
        redundancy: weight ``lambda`` of the off-diagonal terms; 0.0051 as published.
        options: of :class:`PretrainMethod`.

    Raises:
        UserError: a negative weight, or a learning rate that is not positive.
    """

    def __init__(self, model: TwoViewModel, redundancy: float = 0.0051, **options: Any) -> None:
        super().__init__(model, **options)
        if redundancy < 0:
            raise UserError(f"`task.method.redundancy` must not be negative, got {redundancy}")
        self.save_hyperparameters({"redundancy": redundancy, **options})
        self.redundancy = redundancy

    def loss(self, view1: Tensor, view2: Tensor, labels: Tensor) -> Tensor:
        return cross_correlation_loss(*self.embeddings(view1, view2), self.redundancy)
