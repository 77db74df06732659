"""Pretraining: SimCLR as a LightningModule, its loss, and the nearest-neighbour probe."""

from twinsight.pretrain.data import PretrainDataModule
from twinsight.pretrain.knn import KNNAccuracy
from twinsight.pretrain.losses import nt_xent
from twinsight.pretrain.run import pretrain
from twinsight.pretrain.simclr import SimCLR

__all__ = ["KNNAccuracy", "PretrainDataModule", "SimCLR", "nt_xent", "pretrain"]
