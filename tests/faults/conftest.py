"""Tiny cells and studies, for faults that end them."""

from toy_runs import explained, photos, plain, surroundings_restored, tiny

__all__ = ["explained", "photos", "plain", "surroundings_restored", "tiny"]
