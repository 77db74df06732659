"""Pairs of views: photo collections, view recipes, and the data module that makes pairs of them."""

from twinsight.data.datasets import HuggingFacePhotos, TorchvisionPhotos
from twinsight.data.images import Picture, as_photo, as_pixels
from twinsight.data.pairs import PairBatch, PairDataModule, PairDataset, ShardSampler, SkippedPair
from twinsight.data.photo_pairs import ImagePairs, InMemoryPairs, PhotoPairs
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
    "HuggingFacePhotos",
    "ImageFolder",
    "ImageNetValidation",
    "ImagePairs",
    "InMemoryPairs",
    "NoViews",
    "PairBatch",
    "PairDataModule",
    "PairDataset",
    "PhotoPairs",
    "Photos",
    "Picture",
    "ShardSampler",
    "SharedObject",
    "SharedRegion",
    "SimCLRViews",
    "SkippedPair",
    "TorchvisionPhotos",
    "ViewGeometry",
    "ViewRecipe",
    "as_photo",
    "as_pixels",
    "shared_regions",
    "to_rgb",
]
