"""Pairs of views: photo collections, view recipes, and the data module that makes pairs of them."""

from twinsight.data.sources import (
    CIFAR10,
    BrokenPhoto,
    DemoPhotos,
    ImageFolder,
    ImageNetValidation,
    Photos,
    to_rgb,
)
from twinsight.data.views import NoViews, SimCLRViews, ViewGeometry, ViewRecipe, seed_of

__all__ = [
    "CIFAR10",
    "BrokenPhoto",
    "DemoPhotos",
    "ImageFolder",
    "ImageNetValidation",
    "NoViews",
    "Photos",
    "SimCLRViews",
    "ViewGeometry",
    "ViewRecipe",
    "seed_of",
    "to_rgb",
]
