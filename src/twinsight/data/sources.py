"""Where photos come from: the bundled ones, image folders, CIFAR-10, ImageNet."""

import hashlib
import io
import os
import stat
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from twinsight.data.views import Box
from twinsight.errors import UserError

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
"""What is opened whatever a file is called: formats of pixels. Pillow would hand others, EPS for one, to a program."""

_WHOLE_BYTES = 1 << 22  # files up to this size are digested whole
_PART_BYTES = 1 << 16


class BrokenPhoto(Exception):
    """A photo that cannot be decoded: its id, and why (no path, since records keep it)."""

    def __init__(self, photo_id: str, reason: str) -> None:
        super().__init__(photo_id, reason)
        self.photo_id = photo_id
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.photo_id}: {self.reason}"


class Photos:
    """An ordered collection of photos with stable names.

    Args:
        ids: name of each photo, unique; part of every record, so never an absolute path. Any sequence will do: a
            collection of millions need not hold them all.
        on_error: ``"skip"`` leaves undecodable photos out, named and counted; ``"raise"`` stops the run.
        limit: keep this many photos, evenly spaced, so that a sorted folder of classes keeps them all; None keeps all.
        labels: class index of each photo, where known.
        classes: name of each class, in the order of the indices.

    A subclass gives :meth:`open` and :meth:`fingerprint`; one whose pairs are of two photos gives :meth:`load_pair`
    too, and :meth:`shared` where it is known what they have in common.
    """

    def __init__(
        self,
        ids: Sequence[str],
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
        labels: list[int] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        if on_error not in ("skip", "raise"):
            raise UserError(f"`data.on_error` must be 'skip' or 'raise', got {on_error!r}")
        if limit is not None and limit < 1:
            raise UserError(f"`data.limit` must be at least 1, or null for all, got {limit}")
        if limit is None or limit >= len(ids):
            self.indices: Sequence[int] = range(len(ids))
            self.ids = ids
        else:
            self.indices = [place * len(ids) // limit for place in range(limit)]
            self.ids = [ids[index] for index in self.indices]
        self.labels = [labels[index] for index in self.indices] if labels is not None else None
        self.classes = classes
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.ids)

    def open(self, index: int) -> Image.Image:
        """The photo as stored; may raise whatever its decoder raises."""
        raise NotImplementedError

    def fingerprint(self, index: int) -> bytes:
        """Bytes that change when the photo's content changes."""
        raise NotImplementedError

    def load(self, index: int) -> Image.Image:
        """The photo upright, in RGB, decoded in full.

        Raises:
            BrokenPhoto: it cannot be decoded.
        """
        return decoded(lambda: self.open(index), self.ids[index])

    def load_pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """The photos that view 1 and view 2 are made of: here one photo, twice the same object.

        Raises:
            BrokenPhoto: one of them cannot be decoded.
        """
        photo = self.load(index)
        return photo, photo

    def shared(self, index: int) -> tuple[Box, Box] | None:
        """Boxes (top, left, height, width) of what two different photos share, in pixels of each; None if unknown.

        Not asked for where both views are of one photo, which is all shared.
        """
        return None

    def label(self, index: int) -> str | None:
        """What kind of pair it is, ``"same"`` for one, which tables are broken down by; None where it is unknown."""
        return None

    def digest(self) -> str:
        """SHA-256 over the names and contents of all photos, in order; no path enters."""
        total = hashlib.sha256()
        for index, name in enumerate(self.ids):
            try:
                content = self.fingerprint(index)
            except OSError as error:
                content = f"unreadable: {error.strerror}".encode()  # skipped, and named, when its turn comes
            total.update(f"{name}\n".encode() + hashlib.sha256(content).digest())
        return total.hexdigest()


def to_rgb(photo: Image.Image) -> Image.Image:
    """Any Pillow image as upright 8-bit RGB: EXIF rotation applied, transparency over white, 16-bit grey rescaled.

    Raises:
        ValueError: pixels that are NaN or infinite; else whatever the decoder raises.

    >>> to_rgb(Image.new("LA", (2, 2), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I") or photo.mode == "F":
        values = np.asarray(photo, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it has pixels that are NaN or infinite")
        # 16-bit files scale by their range; float files are taken to hold 0-1 unless they exceed it.
        top = 65535.0 if photo.mode.startswith("I") else max(1.0, float(values.max()))
        photo = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if photo.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in photo.info:
        opaque = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return photo.convert("RGB")


def open_photo(source: Path | io.BytesIO) -> Image.Image:
    """The image in a file, or in bytes, of one of ``FORMATS``; its pixels are decoded later.

    Raises:
        OSError: it cannot be read, or is no regular file: opening a pipe would wait for ever.
        Exception: whatever a decoder answers to damaged bytes.
    """
    if isinstance(source, Path):
        refuse_irregular(source)
    Image.init()
    return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])  # AVIF is not always built in


def refuse_irregular(path: Path) -> None:
    """Go on only with a regular file, at the end of however many links.

    Raises:
        OSError: it is anything else, or not there.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise OSError(0, f"{kind}, not a file of an image", str(path))


def decoded(opened: Callable[[], Image.Image], photo_id: str, called: str = "") -> Image.Image:
    """The photo that ``opened()`` gives, in RGB; ``called`` names it where a pair has two.

    Raises:
        BrokenPhoto: it cannot be decoded.
    """
    try:
        with opened() as photo:
            return to_rgb(photo)
    except MemoryError:
        raise
    except Exception as error:  # decoders answer damaged bytes with almost anything, struct.error included
        raise BrokenPhoto(photo_id, f"{called}: {what_was_said(error)}" if called else what_was_said(error)) from error


def file_fingerprint(path: Path) -> bytes:
    """Bytes that change when a file's content changes: all of it, or of large files three places and the size.

    Raises:
        OSError: it cannot be read.
    """
    refuse_irregular(path)
    size = path.stat().st_size
    with path.open("rb") as opened:
        if size <= _WHOLE_BYTES:
            return opened.read()
        # Three places and the size tell larger files apart at a small part of the cost of reading them.
        parts = [f"{size}\n".encode()]
        for start in (0, size // 2, size - _PART_BYTES):
            opened.seek(start)
            parts.append(opened.read(_PART_BYTES))
        return b"".join(parts)


def what_was_said(error: Exception) -> str:
    """Why a photo cannot be decoded, in one line without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"  # its own words hold the path
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


class ImageFolder(Photos):
    """Every image below a folder, recursively, sorted by relative path; ids are those paths.

    Args:
        root: the folder.
        split: sub-folder of ``root`` to read, such as ``"test"``; None reads all of ``root``.
        on_error, limit: as in :class:`Photos`.

    Labels are the first folder level below the root, in sorted order; there are none where an image lies in the root.

    Raises:
        UserError: the folder is missing or holds no image.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
    ) -> None:
        self.root = Path(root).expanduser() / (split or "")
        if not self.root.is_dir():
            raise UserError(f"`data.root={self.root}`: no such folder")
        # What is no folder and has the name of an image counts as one: a link that leads nowhere is said to be broken.
        found = (path for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS and not path.is_dir())
        self._paths = {_printable(path.relative_to(self.root).as_posix()): path for path in found}
        ids = sorted(self._paths)
        if not ids:
            raise UserError(
                f"`data.root={self.root}` holds no image ({', '.join(sorted(EXTENSIONS))}): give a folder that does"
            )
        labels = classes = None
        if all("/" in name for name in ids):
            folders = [name.split("/")[0] for name in ids]
            classes = sorted(set(folders))
            labels = [classes.index(name) for name in folders]
        super().__init__(ids, on_error, limit, labels, classes)

    def open(self, index: int) -> Image.Image:
        return open_photo(self._paths[self.ids[index]])

    def fingerprint(self, index: int) -> bytes:
        return file_fingerprint(self._paths[self.ids[index]])


def _printable(name: str) -> str:
    """A file name as one line of text that can be stored; bytes that are no UTF-8, and line breaks, become escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if ord(letter) >= 32 and letter != "\x7f" else f"\\x{ord(letter):02x}" for letter in text)


class DemoPhotos(ImageFolder):
    """The photographs that ship with the package: public domain or CC0, see ``ATTRIBUTION.md`` beside them."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(Path(str(files("twinsight") / "data" / "photos")), on_error="raise", limit=limit)


class CIFAR10(Photos):
    """CIFAR-10 from torchvision's files (``cifar-10-batches-py``) or from ``train`` and ``test`` folders of PNGs.

    Args:
        root: the folder that holds either layout.
        split: ``"train"`` or ``"test"``.
        on_error, limit: as in :class:`Photos`.

    Raises:
        UserError: neither layout is there, or torchvision's files are incomplete or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "test"] = "test",
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise UserError(f"`data.split` must be 'train' or 'test', got {split!r}")
        root = Path(root).expanduser()
        self._folder: ImageFolder | None = None
        labels: list[int] | None
        classes: list[str] | None
        self._pixels = np.empty((0, 32, 32, 3), np.uint8)
        if (root / "cifar-10-batches-py").is_dir():
            from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

            try:
                stored = TorchvisionCIFAR10(str(root), train=split == "train")
            except RuntimeError:  # a file is missing or its checksum differs
                raise UserError(
                    f"`data.root={root}`: cifar-10-batches-py is incomplete or damaged: download and unpack it again"
                ) from None
            self._pixels = stored.data
            ids = [f"{split}/{index:05d}" for index in range(len(stored))]
            labels, classes = list(stored.targets), list(stored.classes)
        elif (root / split).is_dir():
            self._folder = ImageFolder(root, split)
            ids = [f"{split}/{name}" for name in self._folder.ids]
            labels, classes = self._folder.labels, self._folder.classes
        else:
            raise UserError(
                f"`data.root={root}` holds neither cifar-10-batches-py nor a folder called {split}: "
                "give the folder that torchvision downloaded to, or one with train/ and test/ class folders"
            )
        super().__init__(ids, on_error, limit, labels, classes)

    def open(self, index: int) -> Image.Image:
        stored = self.indices[index]
        return Image.fromarray(self._pixels[stored]) if self._folder is None else self._folder.open(stored)

    def fingerprint(self, index: int) -> bytes:
        stored = self.indices[index]
        return self._pixels[stored].tobytes() if self._folder is None else self._folder.fingerprint(stored)


class ImageNetValidation(ImageFolder):
    """ImageNet's validation photos, flat (``ILSVRC2012_val_*.JPEG``) or by class, in ``root`` or ``root/val``."""

    def __init__(
        self,
        root: str | Path,
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
    ) -> None:
        root = Path(root).expanduser()
        super().__init__(root, "val" if (root / "val").is_dir() else None, on_error, limit)
