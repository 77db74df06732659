"""Pairs of views: photo collections, view recipes, and the data module that makes pairs of them."""

from twinsight.data.pairs import PairBatch, PairDataModule, PairDataset, ShardSampler, SkippedPair
from twinsight.data.shared_object import SharedObject
from twinsight.data.sources import (
    CIFAR10,
    BrokenPhoto,
    DemoPhotos,
    ImageFolder,
    ImageNetValidation,
    Photos,
    to_rgb,
)
from twinsight.data.views import NoViews, SharedRegion, SimCLRViews, ViewGeometry, ViewRecipe, shared_regions

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
    "SharedObject",
    "SharedRegion",
    "SimCLRViews",
    "SkippedPair",
    "ViewGeometry",
    "ViewRecipe",
    "shared_regions",
    "to_rgb",
]
