"""The fixtures of studies, for faults that end them."""

from study.conftest import _surroundings_restored, explained, photos, plain, tiny

__all__ = ["_surroundings_restored", "explained", "photos", "plain", "tiny"]
