"""Pairs of views: photo collections, view recipes, and the data module that makes pairs of them."""

from twinsight.data.pairs import PairBatch, PairDataModule, PairDataset, ShardSampler, SkippedPair
from twinsight.data.sources import (
    CIFAR10,
    BrokenPhoto,
    DemoPhotos,
    ImageFolder,
    ImageNetValidation,
    Photos,
    to_rgb,
)
from twinsight.data.views import NoViews, SimCLRViews, ViewGeometry, ViewRecipe

__all__ = [
    "CIFAR10",
    "BrokenPhoto",
    "DemoPhotos",
    "ImageFolder",
    "ImageNetValidation",
    "NoViews",
    "PairBatch",
    "PairDataModule",
    "PairDataset",
    "Photos",
    "ShardSampler",
    "SimCLRViews",
    "SkippedPair",
    "ViewGeometry",
    "ViewRecipe",
    "to_rgb",
]
