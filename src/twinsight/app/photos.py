"""Photos that strangers give: held against limits before anything is decoded, and laid out as a data set."""

import csv
import io
import shutil
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from twinsight.data import DemoPhotos
from twinsight.data.sources import EXTENSIONS
from twinsight.errors import UserError

MAX_MEGABYTES = 20
MAX_MEGAPIXELS = 50
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "PPM": ".ppm"}
"""What is opened, with the ending of its files: the formats of photos, none that runs a program."""


def check_photo(path: Path) -> None:
    """Refuse a file that is no photo, or too large a one; its pixels are not decoded.

    Raises:
        UserError: it has more than 20 MB or 50 megapixels, or is no image of a known format.
    """
    size = path.stat().st_size
    if size > MAX_MEGABYTES * 1_000_000:
        raise UserError(f"{path.name} has {size / 1e6:.0f} MB: give a file of at most {MAX_MEGABYTES} MB")
    try:
        width, height = _opened(path)[1]
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(_too_many_pixels(path.name)) from None
    except UnidentifiedImageError:
        raise UserError(f"{path.name} is no image that can be read: give a {', '.join(FORMATS)} file") from None
    except Exception as error:  # decoders answer damaged bytes with almost anything
        raise UserError(f"{path.name} cannot be read as an image: {type(error).__name__}") from None
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise UserError(_too_many_pixels(path.name, f"{width} x {height} pixels"))


def stage(photos: Sequence[Path], folder: Path) -> list[str]:
    """Copy one photo, or two, into ``folder`` and give the words of a configuration that make a pair of them.

    Raises:
        UserError: as :func:`check_photo`.
    """
    for photo in photos:
        check_photo(photo)
    for name, photo in zip(names_of(photos), photos, strict=True):
        shutil.copyfile(photo, folder / name)
    if len(photos) == 1:
        return ["data=image_folder", f"data.root={folder}", "data.on_error=skip"]
    (folder / "pairs.csv").write_text("".join(f"{line}\n" for line in pairs_table(photos)))
    return ["data=pairs", f"data.file={folder}/pairs.csv", "data.on_error=skip"]


def names_of(photos: Sequence[Path]) -> list[str]:
    """What the files of a pair are called; an ending that folders of images do not know is mended."""
    names: list[str] = []
    for photo in photos:
        suffix = photo.suffix if photo.suffix.lower() in EXTENSIONS else FORMATS[_opened(photo)[0]]
        stem = photo.stem if f"{photo.stem}{suffix}" not in names else f"{photo.stem}-2"
        names.append(f"{stem}{suffix}")
    return names


def pairs_table(photos: Sequence[Path]) -> list[str]:
    """Lines of the CSV file that ``data=pairs`` reads for a pair of two photos."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["image1", "image2"], names_of(photos)])
    return text.getvalue().splitlines()


@cache
def demo_photos() -> dict[str, Path]:
    """The photos that ship with the package, by name."""
    photos = DemoPhotos()
    return {name: photos.root / name for name in photos.ids}


def demo_name(photo: Path) -> str | None:
    """The name of a demo photo, None for any other file."""
    known = demo_photos().get(photo.name)
    return photo.name if known is not None and known.read_bytes() == photo.read_bytes() else None


def _opened(path: Path) -> tuple[str, tuple[int, int]]:
    """Format and (width, height), from the head of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=list(FORMATS)) as photo:
            return str(photo.format), photo.size


def _too_many_pixels(name: str, has: str = "far more") -> str:
    return f"{name} has {has}: give a photo of at most {MAX_MEGAPIXELS} megapixels"
