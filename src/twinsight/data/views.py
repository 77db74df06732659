"""Two views of a photo: recipes drawn from a seed, rendered at any size, and what of the photo they show."""

import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from twinsight.engine import seed_of
from twinsight.errors import UserError

Box = tuple[float, float, float, float]
"""(top, left, height, width)."""


@dataclass(frozen=True)
class ViewGeometry:
    """Which part of the photo a view shows.

    Attributes:
        photo_size: (height, width) of the photo in pixels.
        box: (top, left, height, width) of the crop, in photo pixels.
        flipped: whether the crop was mirrored left to right.
    """

    photo_size: tuple[int, int]
    box: tuple[int, int, int, int]
    flipped: bool = False


class SharedRegion(NamedTuple):
    """Where two views show the same content, in pixels of each view; borders may lie between pixels.

    Attributes:
        box1, box2: (top, left, height, width) in view 1 and in view 2.
        mirrored: whether what is left in one is right in the other.
    """

    box1: Box
    box2: Box
    mirrored: bool = False


def shared_regions(
    geometry1: ViewGeometry, geometry2: ViewGeometry, size: int, shared: tuple[Box, Box] | None = None
) -> SharedRegion | None:
    """The part of each view that the other one shows as well, None where there is none.

    Args:
        geometry1, geometry2: what of its photo each view shows.
        size: side of the views in pixels.
        shared: the boxes of photo 1 and photo 2, in photo pixels, that hold the same content; they may differ in size.
            None where both views are of one photo, whose crops then overlap or do not.

    Two crops of one photo, the second one mirrored: the right half of view 1 is the right half of view 2, turned.

    >>> left = ViewGeometry((64, 96), (0, 0, 64, 64))
    >>> right = ViewGeometry((64, 96), (0, 32, 64, 64), flipped=True)
    >>> shared_regions(left, right, size=32)
    SharedRegion(box1=(0.0, 16.0, 32.0, 16.0), box2=(0.0, 16.0, 32.0, 16.0), mirrored=True)

    Two photos that share a tile, seen whole:

    >>> whole = ViewGeometry((64, 64), (0, 0, 64, 64))
    >>> shared_regions(whole, whole, size=32, shared=((0, 0, 32, 32), (32, 0, 32, 32)))
    SharedRegion(box1=(0.0, 0.0, 16.0, 16.0), box2=(16.0, 0.0, 16.0, 16.0), mirrored=False)

    Crops that do not meet:

    >>> shared_regions(ViewGeometry((64, 96), (0, 0, 32, 32)), ViewGeometry((64, 96), (32, 0, 32, 32)), size=32)
    """
    geometries = (geometry1, geometry2)
    held = shared or tuple((0.0, 0.0, *map(float, geometry.photo_size)) for geometry in geometries)
    found: tuple[list[float], list[float]] = ([], [])
    for axis in (0, 1):
        # In pixels of box 1, of which box 2 may be a larger or smaller copy.
        units = (1.0, held[0][axis + 2] / held[1][axis + 2])
        low, high = 0.0, float(held[0][axis + 2])
        for geometry, box, unit in zip(geometries, held, units, strict=True):
            start = geometry.box[axis] - box[axis]
            low, high = max(low, start * unit), min(high, (start + geometry.box[axis + 2]) * unit)
        if low >= high:
            return None
        for geometry, box, unit, spans in zip(geometries, held, units, found, strict=True):
            zoom = size / geometry.box[axis + 2]
            spans += [(box[axis] + low / unit - geometry.box[axis]) * zoom, (high - low) / unit * zoom]
    box1, box2 = (_in_view(geometry, spans, size) for geometry, spans in zip(geometries, found, strict=True))
    return SharedRegion(box1, box2, geometry1.flipped != geometry2.flipped)


def _in_view(geometry: ViewGeometry, spans: list[float], size: int) -> Box:
    top, height, left, width = spans
    return top, size - left - width if geometry.flipped else left, height, width


@dataclass(frozen=True)
class ViewRecipe:
    """Everything random about one view, so that it can be rendered again at another size.

    ``colour`` holds (operation, factor) in the order of application; ``blur`` is the standard deviation in pixels of
    a view whose side is ``blur_side``, None for no blur.
    """

    geometry: ViewGeometry
    colour: tuple[tuple[str, float], ...] = ()
    greyscale: bool = False
    blur: float | None = None
    blur_side: int = 224

    def render(self, photo: Image.Image, size: int, antialias: bool = True) -> Tensor:
        """The view as ``(3, size, size)`` float32 pixels in [0, 1]."""
        top, left, height, width = self.geometry.box
        view = photo.crop((left, top, left + width, top + height))
        resampling = Image.Resampling.BILINEAR
        # Pillow's bilinear filter widens with the reduction (antialiases); a tensor's does only when told to.
        if antialias:
            view = view.resize((size, size), resampling)
        else:
            view = F.to_pil_image(
                F.resize(F.pil_to_tensor(view), [size, size], InterpolationMode.BILINEAR, antialias=False)
            )
        if self.geometry.flipped:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation, factor in self.colour:
            view = _COLOUR[operation](view, factor)
        if self.greyscale:
            view = F.rgb_to_grayscale(view, num_output_channels=3)
        pixels = F.to_dtype(F.pil_to_tensor(view), scale=True)
        if self.blur is not None and size > 1:  # a single pixel has no neighbours
            scale = size / self.blur_side
            kernel = 2 * max(1, round(10 * scale)) + 1  # 21 pixels at side 224 (SPEC: kernel 21)
            pixels = F.gaussian_blur(pixels, [kernel, kernel], [self.blur * scale] * 2)
        return pixels


_COLOUR = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


class NoViews:
    """Both views are the same centre crop of the photo: the pair whose similarity needs no explaining.

    Args:
        size: side of a view in pixels.
        crop_fraction: side of the centre crop over the photo's shorter side. 224 / 256 is the usual evaluation crop
            (resize 256, centre crop 224); 1 keeps the whole shorter side.
        antialias: low-pass before reducing; False replicates unfiltered tensor resizing.
    """

    def __init__(self, size: int, crop_fraction: float = 224 / 256, antialias: bool = True) -> None:
        if size < 1:
            raise UserError(f"`views.size` must be positive, got {size}")
        if not 0 < crop_fraction <= 1:
            raise UserError(f"`views.crop_fraction` must be in (0, 1], got {crop_fraction}")
        self.size = size
        self.crop_fraction = crop_fraction
        self.antialias = antialias

    def recipes(
        self, photo_size: tuple[int, int], seed: int, second_size: tuple[int, int] | None = None
    ) -> tuple[ViewRecipe, ViewRecipe]:
        """Recipes of view 1 and view 2 for a photo of (height, width) pixels.

        ``second_size`` is that of the photo behind view 2, None where both views are of one photo.
        """
        return self.centre(photo_size), self.centre(second_size or photo_size)

    def centre(self, photo_size: tuple[int, int]) -> ViewRecipe:
        height, width = photo_size
        side = max(1, round(min(height, width) * self.crop_fraction))
        box = ((height - side) // 2, (width - side) // 2, side, side)
        return ViewRecipe(ViewGeometry(photo_size, box))


class SimCLRViews(NoViews):
    """SimCLR's augmentations (Chen et al. 2020, appendix A; paper section 4 for the evaluation pair).

    Defaults are the paper's evaluation: view 1 is the centre crop, view 2 is augmented. SimCLR's CIFAR-10 recipe
    (appendix B.9) halves the colour strength, leaves blur out, and augments both views.

    Args:
        size: side of a view in pixels.
        first: ``"centre"`` keeps view 1 plain, ``"augmented"`` draws it like view 2.
        scale: area of the random crop over the photo's, drawn uniformly.
        ratio: aspect ratio (width over height) of the crop, drawn log-uniformly.
        flip: probability of mirroring.
        strength: scales the colour jitter (0.8, 0.8, 0.8, 0.2) of brightness, contrast, saturation, hue.
        jitter: probability of colour jitter.
        greyscale: probability of dropping colour.
        blur: probability of Gaussian blur, standard deviation 0.1-2 pixels at side 224, scaled with the side.
        crop_fraction, antialias: as in :class:`NoViews`.
    """

    def __init__(
        self,
        size: int,
        first: Literal["centre", "augmented"] = "centre",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        strength: float = 1.0,
        jitter: float = 0.8,
        greyscale: float = 0.2,
        blur: float = 0.5,
        crop_fraction: float = 224 / 256,
        antialias: bool = True,
    ) -> None:
        super().__init__(size, crop_fraction, antialias)
        if first not in ("centre", "augmented"):
            raise UserError(f"`views.first` must be 'centre' or 'augmented', got {first!r}")
        for name, (low, high), top in (("scale", scale, 1.0), ("ratio", ratio, math.inf)):
            if not 0 < low <= high <= top:
                bound = "" if top == math.inf else f" <= {top:g}"
                raise UserError(
                    f"`views.{name}` must be a range (low, high) with 0 < low <= high{bound}, got ({low}, {high})"
                )
        for name, chance in (("flip", flip), ("jitter", jitter), ("greyscale", greyscale), ("blur", blur)):
            if not 0 <= chance <= 1:
                raise UserError(f"`views.{name}` is a probability, got {chance}")
        if not 0 <= strength <= 1.25:
            raise UserError(f"`views.strength` must be in [0, 1.25], got {strength}")
        self.first = first
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.flip = flip
        self.strength = strength
        self.jitter = jitter
        self.greyscale = greyscale
        self.blur = blur

    def recipes(
        self, photo_size: tuple[int, int], seed: int, second_size: tuple[int, int] | None = None
    ) -> tuple[ViewRecipe, ViewRecipe]:
        view1 = self.centre(photo_size) if self.first == "centre" else self.augmented(photo_size, seed_of(seed, 1))
        return view1, self.augmented(second_size or photo_size, seed_of(seed, 2))

    def augmented(self, photo_size: tuple[int, int], seed: int) -> ViewRecipe:
        """One augmented view: crop, mirror, colour jitter, greyscale, blur, in this order."""
        draw = random.Random(seed)
        geometry = ViewGeometry(photo_size, self._crop(photo_size, draw), draw.random() < self.flip)
        colour: list[tuple[str, float]] = []
        if draw.random() < self.jitter:
            spread = 0.8 * self.strength
            colour = [(name, draw.uniform(max(0.0, 1 - spread), 1 + spread)) for name in _COLOUR if name != "hue"]
            colour.append(("hue", draw.uniform(-0.2, 0.2) * self.strength))
            draw.shuffle(colour)
        greyscale = draw.random() < self.greyscale
        blur = draw.uniform(0.1, 2.0) if draw.random() < self.blur else None
        return ViewRecipe(geometry, tuple(colour), greyscale, blur)

    def _crop(self, photo_size: tuple[int, int], draw: random.Random) -> tuple[int, int, int, int]:
        height, width = photo_size
        for _ in range(10):
            area = height * width * draw.uniform(*self.scale)
            aspect = math.exp(draw.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return draw.randint(0, height - h), draw.randint(0, width - w), h, w
        # No such crop fits a very long photo: the largest centre crop within the aspect limits, as torchvision does.
        w = max(1, min(width, round(height * self.ratio[1])))
        h = max(1, min(height, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w
