"""Centred pixels, in which images are optimised, and what is asked of the options of an optimisation."""

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from twinsight.errors import UserError
from twinsight.models import TwoViewModel

# About -2 to 2, which is what trunks made for ImageNet eat: the published penalties keep their strength, and learning
# rates their meaning, whatever a model's own normalisation.
CENTRE, SPREAD = 0.5, 0.25


def to_pixels(x: Tensor) -> Tensor:
    """Centred pixels as pixels in [0, 1]."""
    return CENTRE + SPREAD * x


def clipped(x: Tensor) -> Tensor:
    """Centred pixels within those of an image."""
    return x.clamp(-CENTRE / SPREAD, (1 - CENTRE) / SPREAD)


def eaten(pixels: Tensor, model: TwoViewModel) -> Tensor:
    """Pixels ``(1, 3, H, W)`` in [0, 1] as the model eats them."""
    return pixels if model.normalization is None else F.normalize(pixels, *map(list, model.normalization))


def variation(x: Tensor, power: int) -> Tensor:
    """Sum over neighbours, right and below, of their absolute difference to a ``power``."""
    return x.diff(dim=-1).abs().pow(power).sum() + x.diff(dim=-2).abs().pow(power).sum()


def check_at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"`{name}` must be an integer of at least {least}, got {value!r}")


def check_positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise UserError(f"`{name}` must be above 0, got {value!r}")
