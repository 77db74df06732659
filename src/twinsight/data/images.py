"""Whatever Python code holds of a picture, as a photo or as pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from twinsight.data.sources import open_photo, to_rgb, what_was_said
from twinsight.errors import UserError

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""A path, a Pillow image, an array ``(H, W)`` or ``(H, W, C)``, a tensor ``(C, H, W)``; 8-bit or floats in [0, 1]."""


def as_photo(picture: Picture) -> Image.Image:
    """A picture as a Pillow image, RGB and upright.

    Raises:
        UserError: a path that leads nowhere, a shape or numbers that are no picture's.

    >>> as_photo(np.full((2, 4), 0.5)).size, as_photo(torch.zeros(3, 2, 4)).size
    ((4, 2), (4, 2))
    """
    if isinstance(picture, str | Path):
        path = Path(picture).expanduser()
        try:
            with open_photo(path) as opened:
                return to_rgb(opened)
        except MemoryError:
            raise
        except Exception as error:  # decoders answer damaged bytes with almost anything
            raise UserError(f"cannot read the image {path}: {what_was_said(error)}") from None
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    return F.to_pil_image((as_pixels(picture) * 255).round().to(torch.uint8))


def as_pixels(picture: Picture) -> Tensor:
    """A picture as ``(3, H, W)`` float32 pixels in [0, 1]; tensors keep their device.

    Raises:
        UserError: a path that leads nowhere, a shape or numbers that are no picture's.

    >>> as_pixels(Image.new("RGB", (4, 2), "white")).unique(), as_pixels(np.zeros((2, 4, 3), np.uint8)).shape
    (tensor([1.]), torch.Size([3, 2, 4]))
    """
    if isinstance(picture, str | Path | Image.Image):
        return F.to_dtype(F.to_image(as_photo(picture)), torch.float32, scale=True).as_subclass(Tensor)
    if isinstance(picture, Tensor):
        pixels = picture.detach()
    elif isinstance(picture, np.ndarray):
        try:
            array = torch.from_numpy(picture.astype(picture.dtype.newbyteorder("=")))
        except TypeError:  # texts, times, objects
            raise UserError(f"pixels must be 8-bit integers or floats in [0, 1], got {picture.dtype}") from None
        pixels = array.movedim(-1, 0) if array.ndim == 3 else array
    else:
        raise TypeError(f"an image must be a path, a Pillow image, an array or a tensor, got {type(picture).__name__}")
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise UserError(
            "an image must be (H, W), an array (H, W, 3) or a tensor (3, H, W), "
            f"got {type(picture).__name__} {tuple(picture.shape)}"
        )
    return _unit_range(pixels).expand(3, -1, -1).contiguous()


def _unit_range(pixels: Tensor) -> Any:
    if not pixels.numel():
        raise UserError(f"an image must have pixels, got {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if not pixels.is_floating_point():
        raise UserError(f"pixels must be 8-bit integers or floats in [0, 1], got {str(pixels.dtype).split('.')[-1]}")
    pixels = pixels.float()
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"pixels must lie in [0, 1], got {pixels.min():.3g} to {pixels.max():.3g}: give images as they are, "
            "before any normalisation, which the model's own `normalization` takes care of"
        )
    return pixels
