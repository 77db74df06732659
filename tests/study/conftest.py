"""Tiny cells and studies of them."""

from toy_runs import explained, photos, plain, slow, surroundings_restored, tiny

__all__ = ["explained", "photos", "plain", "slow", "surroundings_restored", "tiny"]
