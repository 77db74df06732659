"""Image transforms that leave every pixel where it is. Drawn from a generator, in pixel space, on any device."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Transform = Callable[[Tensor, torch.Generator], Tensor]


def colour_jitter(
    pixels: Tensor,
    draw: torch.Generator,
    brightness: float = 0.8,
    contrast: float = 0.8,
    saturation: float = 0.8,
    hue: float = 0.2,
    probability: float = 1.0,
) -> Tensor:
    """Brightness, contrast, saturation and hue changed by random amounts, in random order.

    Args:
        pixels: ``(3, H, W)`` in [0, 1].
        draw: CPU generator that everything random comes from.
        brightness, contrast, saturation: factors are uniform in ``1 - amount`` to ``1 + amount``; the defaults are
            SimCLR's (Chen et al. 2020, appendix A).
        hue: the shift is uniform in ``-hue`` to ``hue``, in turns of the colour circle.
        probability: of doing anything at all.

    Returns:
        ``(3, H, W)`` in [0, 1].

    >>> image = torch.rand(3, 8, 8)
    >>> torch.equal(*(colour_jitter(image, torch.Generator().manual_seed(1)) for _ in range(2)))
    True
    """
    if not happens(probability, draw):
        return pixels
    changes: list[tuple[Callable[[Tensor, float], Tensor], float]] = [
        (F.adjust_brightness, uniform(max(0.0, 1 - brightness), 1 + brightness, draw)),
        (F.adjust_contrast, uniform(max(0.0, 1 - contrast), 1 + contrast, draw)),
        (F.adjust_saturation, uniform(max(0.0, 1 - saturation), 1 + saturation, draw)),
        (F.adjust_hue, uniform(-hue, hue, draw)),
    ]
    for index in torch.randperm(len(changes), generator=draw).tolist():
        adjust, amount = changes[index]
        pixels = adjust(pixels, amount)
    return pixels


def blur(
    pixels: Tensor, draw: torch.Generator, sigma: tuple[float, float] = (0.1, 2.0), probability: float = 1.0
) -> Tensor:
    """Gaussian blur of ``(C, H, W)`` pixels with a standard deviation drawn uniformly from ``sigma``.

    ``sigma`` is in pixels at side 224 and scales with the shorter side, as does the kernel, 21 pixels there (SPEC,
    section 4).
    """
    if not happens(probability, draw):
        return pixels
    scale = min(pixels.shape[-2:]) / 224
    kernel = 2 * max(1, round(10 * scale)) + 1
    return F.gaussian_blur(pixels, [kernel, kernel], [uniform(*sigma, draw) * scale] * 2)


def greyscale(pixels: Tensor, draw: torch.Generator, probability: float = 1.0) -> Tensor:
    """``(3, H, W)`` pixels without colour, in three equal channels."""
    return F.rgb_to_grayscale(pixels, num_output_channels=3) if happens(probability, draw) else pixels


def solarize(pixels: Tensor, draw: torch.Generator, threshold: float = 0.5, probability: float = 1.0) -> Tensor:
    """``(C, H, W)`` pixels in [0, 1] with those at or above ``threshold`` inverted (BYOL: 128 of 255)."""
    return F.solarize(pixels, threshold) if happens(probability, draw) else pixels


def erase(
    pixels: Tensor,
    draw: torch.Generator,
    area: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float | Tensor = 0.0,
    probability: float = 1.0,
) -> Tensor:
    """One random rectangle of ``(C, H, W)`` pixels set to ``value`` (random erasing, Zhong et al. 2020).

    Args:
        area: of the rectangle over the image's, drawn uniformly.
        ratio: of its height to its width, drawn log-uniformly; drawn again where the rectangle would not fit.
        value: a number, or an image of the same shape that shows through.
    """
    if not happens(probability, draw):
        return pixels
    height, width = pixels.shape[-2:]
    for _ in range(10):
        size = height * width * uniform(*area, draw)
        aspect = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1]), draw))
        tall, wide = round(math.sqrt(size * aspect)), round(math.sqrt(size / aspect))
        if 0 < tall <= height and 0 < wide <= width:
            top = int(torch.randint(height - tall + 1, (), generator=draw))
            left = int(torch.randint(width - wide + 1, (), generator=draw))
            erased = pixels.clone()
            fill = torch.as_tensor(value).to(pixels).expand_as(pixels)
            box = (..., slice(top, top + tall), slice(left, left + wide))
            erased[box] = fill[box]
            return erased
    return pixels


def rescale(
    pixels: Tensor,
    draw: torch.Generator,
    scale: tuple[float, float] = (0.25, 1.0),
    antialias: bool = True,
    probability: float = 1.0,
) -> Tensor:
    """``(C, H, W)`` pixels reduced to a random fraction of their size and enlarged back, bilinearly: detail is lost.

    Args:
        scale: fraction of the side, drawn uniformly.
        antialias: low-pass before reducing.
    """
    if not happens(probability, draw):
        return pixels
    size = list(pixels.shape[-2:])
    fraction = uniform(*scale, draw)
    reduced = F.resize(pixels, [max(1, round(side * fraction)) for side in size], antialias=antialias)
    return F.resize(reduced, size, antialias=antialias)


def combination(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Colour jitter always; then greyscale (0.2), blur (0.5) and solarization (0.2) by chance, in this order.

    The chances are those of SimCLR's views (SPEC, section 4), and BYOL's for solarization.
    """
    pixels = colour_jitter(pixels, draw)
    pixels = greyscale(pixels, draw, probability=0.2)
    pixels = blur(pixels, draw, probability=0.5)
    return solarize(pixels, draw, probability=0.2)


TRANSFORMS: dict[str, Transform] = {
    "colour_jitter": colour_jitter,
    "blur": blur,
    "greyscale": greyscale,
    "solarize": solarize,
    "combination": combination,
}
"""Transforms of ``(3, H, W)`` pixels in [0, 1], by the names that options take."""


def happens(probability: float, draw: torch.Generator) -> bool:
    """True with ``probability``; draws one number whatever it is, so that later draws do not move."""
    return uniform(0.0, 1.0, draw) < probability


def uniform(low: float, high: float, draw: torch.Generator) -> float:
    """One number from ``low`` (included) to ``high``."""
    return low + (high - low) * float(torch.rand((), generator=draw, dtype=torch.float64))
