"""SimCLR as a LightningModule."""

from typing import Any

from torch import Tensor

from twinsight.errors import UserError
from twinsight.models import TwoViewModel
from twinsight.pretrain.losses import nt_xent
from twinsight.pretrain.method import PretrainMethod


class SimCLR(PretrainMethod):
    """SimCLR (Chen et al. 2020): two augmented views of a photo attract, all other photos of the batch repel.

    Args:
        model: the network to train, in place.
        temperature: of the loss. The paper tunes {0.1, 0.5, 1.0} on CIFAR-10 (appendix B.9).
        options: of :class:`PretrainMethod`.

    Raises:
        UserError: a temperature or learning rate that is not positive.
    """

    def __init__(self, model: TwoViewModel, temperature: float = 0.5, **options: Any) -> None:
        super().__init__(model, **options)
        if temperature <= 0:
            raise UserError(f"`task.method.temperature` must be positive, got {temperature}")
        self.save_hyperparameters({"temperature": temperature, **options})
        self.temperature = temperature

    def loss(self, view1: Tensor, view2: Tensor, labels: Tensor) -> Tensor:
        return nt_xent(*self.embeddings(view1, view2), self.temperature)
