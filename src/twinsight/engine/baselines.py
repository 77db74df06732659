"""What an erased pixel becomes. Named in pixel space, delivered in the space the model eats."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from twinsight.engine.seeds import generator
from twinsight.errors import UserError
from twinsight.models.two_view import Normalization

Baseline = Literal["black", "mean", "blur", "noise", "input_zero"] | float
BASELINES = ("black", "mean", "blur", "noise", "input_zero")


def check_baseline(baseline: Baseline) -> None:
    """Refuse what :func:`baseline_image` does not know.

    Raises:
        UserError: neither a name in ``BASELINES`` nor a number.
    """
    if isinstance(baseline, bool) or not (isinstance(baseline, int | float) or baseline in BASELINES):
        raise UserError(f"`baseline` must be one of {', '.join(BASELINES)} or a pixel value, got {baseline!r}")


def baseline_image(baseline: Baseline, image: Tensor, normalization: Normalization | None, seed: int = 0) -> Tensor:
    """The image that erased pixels of ``image`` are taken from.

    Args:
        baseline: ``"black"``; ``"mean"``, the image's own mean colour; ``"blur"``, the image blurred (Gaussian, kernel
            11, sigma 5: SPEC's insertion baseline); ``"noise"``, uniform pixels drawn from ``seed``; a number in
            [0, 1], that grey; ``"input_zero"``, zero in the model's input space, which is black for models without
            normalisation and the mean colour of the training set for others (published behaviour).
        image: ``(C, H, W)`` in the model's input space.
        normalization: mean and std of that space, None for pixels in [0, 1].
        seed: of the pair.

    Returns:
        ``(C, H, W)`` in the model's input space.

    >>> baseline_image("black", torch.rand(3, 8, 8), ((0.5,) * 3, (0.25,) * 3)).unique()
    tensor([-2.])
    """
    check_baseline(baseline)
    if baseline == "input_zero":
        return torch.zeros_like(image)
    # Both of these commute with an affine map of the pixels, so they need no trip through pixel space.
    if baseline == "mean":
        return image.mean(dim=(-2, -1), keepdim=True).expand_as(image).contiguous()
    if baseline == "blur":
        if min(image.shape[-2:]) < 6:
            raise UserError(f"`baseline=blur` needs images of at least 6 x 6 pixels, got {tuple(image.shape[-2:])}")
        return blurred(image)
    if baseline == "noise":
        pixels = torch.rand(image.shape, generator=generator(seed, "baseline")).to(image)
    else:
        pixels = torch.full_like(image, 0.0 if baseline == "black" else float(baseline))
    return pixels if normalization is None else F.normalize(pixels, *map(list, normalization))


def blurred(images: Tensor) -> Tensor:
    """``(..., C, H, W)`` images or maps under the Gaussian that SPEC blurs everything with: kernel 11, sigma 5 pixels.

    Sides below 6 pixels get a smaller kernel, since reflection at the border reaches no further.

    >>> blurred(torch.ones(1, 4, 8)).shape
    torch.Size([1, 4, 8])
    """
    kernel = [min(11, 2 * side - 1) for side in images.shape[-2:]]
    with torch.autocast(images.device.type, enabled=False):  # mixed precision is for the network alone
        return F.gaussian_blur(images, kernel[::-1], [5.0, 5.0])
