"""Image operations that several oracles share, one image ``(1, C, H, W)`` at a time."""

import math

import torch
from torch import Tensor


def gaussian_blur(image: Tensor, kernel: int = 11, sigma: float = 5.0) -> Tensor:
    """Separable Gaussian with reflected borders."""
    radius = kernel // 2
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    total = sum(weights)
    for axis in (2, 3):
        size = image.shape[axis]
        blurred = torch.zeros_like(image)
        for k, weight in zip(range(-radius, radius + 1), weights, strict=True):
            rows = torch.tensor([reflected(p + k, size) for p in range(size)], device=image.device)
            blurred = blurred + weight / total * image.index_select(axis, rows)
        image = blurred
    return image


def reflected(position: int, size: int) -> int:
    """Position inside an axis of ``size`` pixels, mirrored at the first and last pixel without repeating them."""
    if position < 0:
        return -position
    if position >= size:
        return 2 * (size - 1) - position
    return position


def fill_image(model, image: Tensor, baseline: str | float) -> Tensor:
    """What an erased pixel of ``image`` shows, in the space the model eats.

    ``baseline``: ``"input_zero"``, ``"blur"`` (the view's own), ``"mean"`` (the view's own mean colour), ``"black"``,
    or a pixel value in [0, 1].
    """
    if baseline == "input_zero":
        return torch.zeros_like(image)
    if baseline == "blur":
        return gaussian_blur(image)
    if baseline == "mean":
        fill = torch.zeros_like(image)
        for c in range(image.shape[1]):
            fill[:, c] = image[:, c].mean()
        return fill
    value = 0.0 if baseline == "black" else float(baseline)
    fill = torch.full_like(image, value)
    if model.normalization is not None:
        for c, (mean, std) in enumerate(zip(*model.normalization, strict=True)):
            fill[:, c] = (value - mean) / std
    return fill


def min_max(a: Tensor) -> Tensor:
    """Scaled to [0, 1]; all zero where the map is constant or not a number."""
    low, high = a.min(), a.max()
    if not bool(torch.isfinite(a).all()) or bool(high == low):
        return torch.zeros_like(a)
    return (a - low) / (high - low)


def stretch(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """``(h, w)`` to ``(H, W)``, bilinear, as if the cells tiled the image."""
    weights_y = [_cell_weights((y + 0.5) * grid.shape[0] / size[0] - 0.5, grid.shape[0]) for y in range(size[0])]
    weights_x = [_cell_weights((x + 0.5) * grid.shape[1] / size[1] - 0.5, grid.shape[1]) for x in range(size[1])]
    return interpolate(grid, weights_y, weights_x)


def interpolate(grid: Tensor, weights_y: list, weights_x: list) -> Tensor:
    """Bilinear mixture; ``weights_y[y]`` and ``weights_x[x]`` are ``(lower cell, upper cell, weight of the upper)``."""
    out = torch.zeros(len(weights_y), len(weights_x), dtype=grid.dtype)
    for y, (i0, i1, b) in enumerate(weights_y):
        for x, (j0, j1, a) in enumerate(weights_x):
            top = (1 - a) * grid[i0, j0] + a * grid[i0, j1]
            bottom = (1 - a) * grid[i1, j0] + a * grid[i1, j1]
            out[y, x] = (1 - b) * top + b * bottom
    return out


def _cell_weights(position: float, cells: int) -> tuple[int, int, float]:
    position = min(max(position, 0.0), cells - 1.0)
    lower = min(int(position), cells - 1)
    return lower, min(lower + 1, cells - 1), position - lower
