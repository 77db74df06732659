"""Files that pose as photos: each shows the pixels it should, or is refused in one line that names it."""

import io
import os
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toy_cells import TINY
from twinsight import __main__ as command_line
from twinsight.data import ImageFolder, ImagePairs, NoViews, PairDataModule, SimCLRViews, as_photo
from twinsight.errors import UserError
from twinsight.exits import USER_ERROR, report

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
Pixel = tuple[int, int, int]


def encoded(photo: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, colour: Any, kind: str, size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    """A photo of one colour; ``size`` is (width, height)."""
    return encoded(Image.new(mode, size, colour), kind, **options)


def noise(kind: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(NOISE), kind, **options)


def cut(whole: bytes, share: float) -> bytes:
    return whole[: int(share * len(whole))]


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", found)


def png(*extra: bytes, size: tuple[int, int] = (6, 4)) -> bytes:
    """A red PNG written by hand, with chunks of one's own before its pixels; ``size`` is what its head declares."""
    rows = (b"\0" + bytes(RED) * 6) * 4
    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def spoilt(whole: bytes, mark: bytes, offset: int) -> bytes:
    """``whole`` with all bits turned of the byte ``offset`` after ``mark``."""
    place = whole.index(mark) + offset
    return whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]


def frames(kind: str, **options: Any) -> bytes:
    """An animation that begins green and goes on red and blue."""
    first, *others = (Image.new("RGB", (6, 4), colour) for colour in (GREEN, RED, (0, 0, 255)))
    return encoded(first, kind, save_all=True, append_images=others, **options)


def rotated(orientation: int) -> bytes:
    """Stored as a camera stores it that was turned; upright it is 32 x 16, and green at the top left alone."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = GREEN
    turned = upright.transpose(1, 0, 2)
    stored = {  # EXIF 2.3, tag 274: where the first row and the first column of the file belong
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: turned,
        6: turned[::-1],
        7: turned[::-1, ::-1],
        8: turned[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)


def palette(**options: Any) -> bytes:
    photo = Image.new("P", (6, 4), 1)
    photo.putpalette([*RED, *GREEN])
    return encoded(photo, "PNG", **options)


def ppm(width: int, height: int) -> bytes:
    return f"P6 {width} {height} 255\n".encode() + bytes(30)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n(ran) print\nshowpage\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="6" height="4"><script>alert(1)</script></svg>'
FLOATS = np.full((4, 6), 0.4, np.float32)

# Name, bytes, and the pixel at the top left; sizes are 6 x 4 where no other is given.
SHOWN: dict[str, tuple[str, bytes, Pixel]] = {
    "a PNG under the name of a JPEG": ("a.jpg", flat("RGB", RED, "PNG"), RED),
    "a JPEG under the name of a PNG": ("a.png", flat("RGB", (200,) * 3, "JPEG"), (200,) * 3),
    "a GIF under the name of a WebP": ("a.webp", flat("RGB", RED, "GIF"), RED),
    "an animated GIF": ("a.gif", frames("GIF"), GREEN),
    "an animated WebP": ("a.webp", frames("WEBP", lossless=True), GREEN),
    "an animated PNG": ("a.png", frames("PNG"), GREEN),
    "a TIFF of several pages": ("a.tif", frames("TIFF"), GREEN),
    "a JPEG in CMYK": ("a.jpg", flat("CMYK", (0, 0, 0, 0), "JPEG", quality=100), WHITE),
    "a TIFF in CMYK": ("a.tif", flat("CMYK", (0, 255, 255, 0), "TIFF"), RED),
    "a PNG of 16-bit grey": ("a.png", encoded(Image.fromarray(np.full((4, 6), 25700, np.uint16)), "PNG"), (100,) * 3),
    "a TIFF of 16-bit grey": ("a.tif", encoded(Image.fromarray(np.full((4, 6), 25700, np.uint16)), "TIFF"), (100,) * 3),
    "a TIFF of floats": ("a.tif", encoded(Image.fromarray(FLOATS), "TIFF"), (102,) * 3),
    "a palette": ("a.png", palette(), GREEN),
    "a palette with a colour that is transparent": ("a.png", palette(transparency=1), WHITE),
    "a palette with alpha": ("a.png", palette(transparency=bytes([255, 51])), (204, 255, 204)),
    "colour with alpha": ("a.png", flat("RGBA", (255, 0, 0, 0), "PNG"), WHITE),
    "grey with alpha": ("a.png", flat("LA", (100, 51), "PNG"), (224,) * 3),
    "one bit": ("a.png", flat("1", 1, "PNG"), WHITE),
    **{f"EXIF orientation {n}": ("a.png", rotated(n), GREEN) for n in range(1, 9)},
    "a colour profile that is none": ("a.png", flat("RGB", RED, "PNG", icc_profile=b"no profile"), RED),
    "damaged EXIF": ("a.png", png(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff" + bytes(8))), RED),
    "an empty chunk": ("a.png", png(chunk(b"tEXt", b"")), RED),
    "an unknown chunk": ("a.png", png(chunk(b"prVt", bytes(range(256)))), RED),
    "bytes after the end": ("a.png", flat("RGB", RED, "PNG") + b"PK\x03\x04" + bytes(100), RED),
    "one pixel": ("a.png", flat("RGB", RED, "PNG", size=(1, 1)), RED),
    "one column": ("a.png", flat("RGB", RED, "PNG", size=(1, 5000)), RED),
    "one row": ("a.png", flat("RGB", RED, "PNG", size=(5000, 1)), RED),
}

# Name, bytes, and what is said.
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "zero bytes": ("a.jpg", b"", "not an image of a known format"),
    "text": ("a.jpg", b"I am no photo.\n" * 40, "not an image of a known format"),
    "a page of the web": ("a.png", b"<!DOCTYPE html><html>404</html>", "not an image of a known format"),
    "SVG": ("a.png", SVG, "not an image of a known format"),
    "PostScript, which Pillow would have run": ("a.jpg", EPS, "not an image of a known format"),
    "an archive": ("a.png", b"PK\x03\x04" + bytes(200), "not an image of a known format"),
    "a pickle": ("a.png", b"\x80\x04cos\nsystem\n(S'touch sprung'\ntR.", "not an image of a known format"),
    **{
        f"{kind} cut after {share:.0%}": (f"a{ending}", cut(noise(kind), share), ".")
        for kind, ending in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("BMP", ".bmp"))
        for share in (0.01, 0.1, 0.5, 0.9)
    },
    "a GIF cut in half": ("a.gif", cut(noise("GIF"), 0.5), "truncated"),
    "a JPEG of its first two bytes": ("a.jpg", noise("JPEG")[:2], "not an image of a known format"),
    "a PNG of its signature": ("a.png", noise("PNG")[:8], "."),
    "a PNG that declares 4 gigapixels": ("a.png", png(size=(65535, 65535)), "exceeds limit"),
    "a PNG that declares all it can": ("a.png", png(size=(2**31 - 1, 2**31 - 1)), "exceeds limit"),
    "a PNG without width": ("a.png", png(size=(0, 4)), "."),
    "a PPM that declares 10 gigapixels": ("a.ppm", ppm(100_000, 100_000), "exceeds limit"),
    "a PPM with fewer bytes than it declares": ("a.ppm", ppm(60, 40), "."),
    "a GIF that declares 4 gigapixels": (
        "a.gif",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\0;",
        "exceeds limit",
    ),
    "text that unpacks to 100 MB": (
        "a.png",
        png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))),
        "too large",
    ),
    "a checksum that is wrong": ("a.png", spoilt(png(), b"IHDR", 18), "."),
    "a damaged head": ("a.png", spoilt(png(), b"IHDR", 12), "."),
    "damaged pixels": ("a.png", spoilt(noise("PNG"), b"IDAT", 40), "."),
    "NaN": ("a.tif", encoded(Image.fromarray(FLOATS * np.nan), "TIFF"), "NaN or infinite"),
    "infinity": ("a.tif", encoded(Image.fromarray(FLOATS * np.inf), "TIFF"), "NaN or infinite"),
}


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """A file that is waited for fails its test."""

    def hung(*_: object) -> None:
        raise BaseException("it hangs")  # past whoever catches exceptions of decoders

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def by_folder(path: Path) -> ImageFolder:
    return ImageFolder(path.parent, on_error="raise")


def by_table(path: Path) -> ImagePairs:
    table = path.parent / "pairs.csv"
    table.write_text(f"image1,image2\n{path.name},{path.name}\n")
    return ImagePairs(table, on_error="raise")


WAYS = pytest.mark.parametrize("way", [by_folder, by_table])


def batches(photos: Any, views: NoViews | SimCLRViews) -> list[Any]:
    """All batches, as the trainer gets them: refusals are raised where they reach the device."""
    data = PairDataModule(photos, views)
    return [data.transfer_batch_to_device(batch, "cpu", 0) for batch in data.predict_dataloader()]


def test_there_are_at_least_forty_of_them():
    assert len(SHOWN) + len(REFUSED) >= 40


@WAYS
@pytest.mark.parametrize("case", SHOWN)
def test_a_photo_in_strange_clothes_shows_its_pixels(tmp_path, way, case):
    name, content, pixel = SHOWN[case]
    (tmp_path / name).write_bytes(content)
    photos = way(tmp_path / name)
    for photo in photos.load_pair(0):
        assert photo.mode == "RGB"
        if case.startswith("EXIF"):
            assert photo.size == (32, 16)
            assert [photo.getpixel(place) for place in ((15, 7), (16, 7), (15, 8))] == [GREEN, (0, 0, 0), (0, 0, 0)]
        np.testing.assert_allclose(photo.getpixel((0, 0)), pixel, atol=3 if "JPEG" in case else 0)
    assert as_photo(tmp_path / name).tobytes() == photo.tobytes()
    for views in (NoViews(16), SimCLRViews(16)):
        (batch,) = batches(photos, views)
        assert batch.view1.shape == batch.view2.shape == (1, 3, 16, 16)
        assert bool(batch.view1.isfinite().all())


@WAYS
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_photo_is_refused_in_one_line_that_names_it(tmp_path, capsys, way, case):
    name, content, reason = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    photos = way(tmp_path / name)
    assert len(photos.digest()) == 64
    with pytest.raises(UserError, match=rf"^cannot read .*{reason}.*; mend or remove it") as refusal:
        batches(photos, NoViews(16))
    assert report(refusal.value) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    with pytest.raises(UserError, match=rf"^cannot read the image .*{name}: .*{reason}"):
        as_photo(tmp_path / name)


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("b.jpg"))
    path.with_name("b.jpg").symlink_to(path)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a loop of links": (loop, "Too many levels of symbolic links"),
    "a link that leads nowhere": (lambda path: path.symlink_to("nowhere.jpg"), "No such file or directory"),
    "a pipe that nobody writes to": (os.mkfifo, "a pipe or device"),
    "a device without end": (lambda path: path.symlink_to("/dev/zero"), "a pipe or device"),
}


@WAYS
@pytest.mark.parametrize("case", ODD)
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path, way, case):
    make, reason = ODD[case]
    make(tmp_path / "a.jpg")
    photos = way(tmp_path / "a.jpg")
    assert len(photos.digest()) == 64
    with pytest.raises(UserError, match=rf"^cannot read .*a\.jpg: {reason}"):
        batches(photos, NoViews(16))
    with pytest.raises(UserError, match=rf"^cannot read the image .*a\.jpg: {reason}"):
        as_photo(tmp_path / "a.jpg")


def test_a_folder_that_is_called_like_a_photo_is_a_folder(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "a.jpg" / "b.png").write_bytes(flat("RGB", RED, "PNG"))
    assert ImageFolder(tmp_path).ids == ["a.jpg/b.png"]
    with pytest.raises(UserError, match=r"^cannot read .*a\.jpg: a folder, not a file"):
        batches(by_table(tmp_path / "a.jpg"), NoViews(16))


@WAYS
def test_a_file_that_may_not_be_read_is_refused(tmp_path, way):
    path = tmp_path / "a.jpg"
    path.write_bytes(flat("RGB", RED, "JPEG"))
    photos = way(path)
    path.chmod(0)
    root = os.geteuid() == 0  # who may read everything, so somebody else tries
    if root:
        os.seteuid(65534)
    try:
        assert len(photos.digest()) == 64
        with pytest.raises(UserError, match=r"^cannot read .*a\.jpg: Permission denied"):
            batches(photos, NoViews(16))
    finally:
        if root:
            os.seteuid(0)


def test_a_name_with_line_breaks_stays_on_one_line(tmp_path):
    (tmp_path / "a\n\x1b[2Jb.jpg").write_bytes(b"")
    photos = ImageFolder(tmp_path, on_error="raise")
    assert photos.ids == ["a\\x0a\\x1b[2Jb.jpg"]
    with pytest.raises(UserError, match=r"^cannot read a\\x0a\\x1b\[2Jb\.jpg: not an image"):
        batches(photos, NoViews(16))


@pytest.mark.parametrize("case", ["PostScript, which Pillow would have run", "a PNG that declares 4 gigapixels"])
def test_the_command_line_says_it_in_one_line_and_exits_with_two(tmp_path, monkeypatch, capsys, case):
    name, content, _ = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    words = [*TINY, f"data.root={tmp_path}", "data.on_error=raise", f"paths.output_root={tmp_path / 'out'}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *words, "explainer=gradcam", "hydra/job_logging=none"])
    for variable, value in (("HYDRA_FULL_ERROR", "1"), ("WANDB_ERROR_REPORTING", "false")):
        monkeypatch.setenv(variable, value)
    assert command_line.main() == USER_ERROR
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: cannot read {name}: ")
