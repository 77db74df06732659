"""Pairs whose answer is known: two mosaics of photos that have exactly one photo in common."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from twinsight.data.sources import BrokenPhoto, DemoPhotos, ImageFolder, Photos
from twinsight.data.views import Box
from twinsight.engine import seed_of
from twinsight.errors import UserError

_FILLERS = 6  # three beside the shared tile in either mosaic


class SharedObject(Photos):
    """Mosaics of 2 x 2 photos, one of which both views show at different places; six others fill the rest.

    Every photo is the shared one of one pair, which has its name. Its places and the other photos are drawn from
    ``seed`` and that name, so that a pair stays what it is under a limit, in any batch and from any worker.

    Args:
        root: a folder of images, read recursively; None is the photos that ship with the package.
        split: sub-folder of ``root`` to read.
        photos: any other collection to take photos from, instead of ``root``.
        tile: side in pixels of a photo in the mosaic: its centre square, resized. Two of them are 224, the usual view.
        seed: which photos meet, and where.
        on_error: ``"skip"`` leaves out pairs whose shared photo cannot be read, and takes another one instead of a
            filler that cannot; ``"raise"`` stops the run.
        limit: keep this many pairs, evenly spaced; the other photos still fill.

    Raises:
        UserError: fewer than seven photos, a tile without pixels, or both ``root`` and ``photos``.

    >>> pairs = SharedObject(tile=32, limit=3)
    >>> [mosaic.size for mosaic in pairs.load_pair(0)], pairs.shared(0)
    ([(64, 64), (64, 64)], ((0, 32, 32, 32), (32, 32, 32, 32)))
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str | None = None,
        photos: Photos | None = None,
        tile: int = 112,
        seed: int = 0,
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
    ) -> None:
        if photos is not None and root is not None:
            raise UserError("give `data.root` or `data.photos`, not both")
        if photos is None:
            photos = DemoPhotos() if root is None else ImageFolder(root, split)
        if tile < 1:
            raise UserError(f"`data.tile` must be at least 1 pixel, got {tile}")
        if len(photos) <= _FILLERS:
            raise UserError(
                f"a shared object needs at least {_FILLERS + 1} photos, one that is shared and {_FILLERS} others, "
                f"got {len(photos)}: give a folder with more, or raise its limit"
            )
        super().__init__(photos.ids, on_error, limit, photos.labels, photos.classes)
        self.photos = photos
        self.tile = tile
        self.seed = seed

    def load(self, index: int) -> Image.Image:
        """The mosaic behind view 1."""
        return self.load_pair(index)[0]

    def load_pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Both mosaics, ``2 * tile`` pixels square.

        Raises:
            BrokenPhoto: the shared photo cannot be decoded, or too few others can.
        """
        common = self._cut(self.indices[index])
        others = self._others(index, common)
        first, second = (
            self._mosaic(place, common, [next(others) for _ in range(_FILLERS // 2)]) for place in self._places(index)
        )
        return first, second

    def shared(self, index: int) -> tuple[Box, Box]:
        first, second = self._places(index)
        return self._box(first), self._box(second)

    def digest(self) -> str:
        """SHA-256 over the photos, which of them are shared, and how they are put together; no path enters."""
        facts = (self.photos.digest(), self.tile, self.seed, *self.ids)
        return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()

    def _draw(self, index: int, purpose: str) -> random.Random:
        return random.Random(seed_of(self.seed, "shared object", purpose, self.ids[index]))

    def _places(self, index: int) -> tuple[int, int]:
        """Quarters of mosaic 1 and mosaic 2 that hold the shared photo; never the same."""
        first, second = self._draw(index, "places").sample(range(4), 2)
        return first, second

    def _box(self, place: int) -> tuple[int, int, int, int]:
        row, column = divmod(place, 2)
        return row * self.tile, column * self.tile, self.tile, self.tile

    def _cut(self, place: int) -> Image.Image:
        return ImageOps.fit(self.photos.load(place), (self.tile, self.tile), Image.Resampling.BILINEAR)

    def _others(self, index: int, common: Image.Image) -> Iterator[Image.Image]:
        """Tiles to fill with, all different from the shared one and from each other."""
        order = list(range(len(self.photos)))
        order.remove(self.indices[index])
        self._draw(index, "fillers").shuffle(order)
        seen = {common.tobytes()}
        for place in order:
            try:
                tile = self._cut(place)
            except BrokenPhoto:
                if self.on_error == "raise":
                    raise
                continue  # counted where it is the shared one
            # One photo under two names would be shared as well.
            if tile.tobytes() not in seen:
                seen.add(tile.tobytes())
                yield tile
        raise BrokenPhoto(self.ids[index], f"fewer than {_FILLERS} other photos that can be read and differ")

    def _mosaic(self, place: int, common: Image.Image, others: list[Image.Image]) -> Image.Image:
        mosaic = Image.new("RGB", (2 * self.tile, 2 * self.tile))
        fillers = iter(others)
        for quarter in range(4):
            top, left, _, _ = self._box(quarter)
            mosaic.paste(common if quarter == place else next(fillers), (left, top))
        return mosaic
