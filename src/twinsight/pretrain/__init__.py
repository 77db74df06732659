"""Pretraining: methods as LightningModules, their losses, and the nearest-neighbour probe."""

from twinsight.pretrain.barlow_twins import BarlowTwins
from twinsight.pretrain.data import PretrainDataModule
from twinsight.pretrain.knn import KNNAccuracy
from twinsight.pretrain.losses import cross_correlation_loss, nt_xent
from twinsight.pretrain.method import PretrainMethod
from twinsight.pretrain.run import pretrain
from twinsight.pretrain.simclr import SimCLR
from twinsight.pretrain.supervised import Supervised

__all__ = [
    "BarlowTwins",
    "KNNAccuracy",
    "PretrainDataModule",
    "PretrainMethod",
    "SimCLR",
    "Supervised",
    "cross_correlation_loss",
    "nt_xent",
    "pretrain",
]
