"""The supervised twin: the same trunk, trained on labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinsight.models import TwoViewModel
from twinsight.pretrain.method import PretrainMethod


class Supervised(PretrainMethod):
    """Cross entropy of a linear classifier on the embedding, averaged over both views.

    Its network is what self-supervised ones are compared with; the classifier is not kept.

    Args:
        model: the network to train, in place; with no head its embedding is the pooled feature map.
        classes: number of classes.
        options: of :class:`PretrainMethod`.
    """

    def __init__(self, model: TwoViewModel, classes: int = 10, **options: Any) -> None:
        super().__init__(model, **options)
        self.save_hyperparameters({"classes": classes, **options})
        side = model.input_size
        with torch.no_grad():
            width = model.eval()(torch.zeros(1, 3, side, side)).shape[1]
        self.classifier = nn.Linear(width, classes)
        model.train()

    def loss(self, view1: Tensor, view2: Tensor, labels: Tensor) -> Tensor:
        z1, z2 = self.model(torch.cat([view1, view2])).chunk(2)
        return F.cross_entropy(self.classifier(torch.cat([z1, z2])), labels.repeat(2))
