"""Collections of photos: what is found, in which order, under which name, and how every kind of file becomes RGB."""

import contextlib
import io
import os
import pickle
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from twinsight.data import CIFAR10, BrokenPhoto, DemoPhotos, ImageFolder, ImageNetValidation, to_rgb
from twinsight.errors import UserError

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def save(path, colour=RED, size=(6, 4), **options):
    """A photo of one colour; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def stored(photo, kind, **options):
    """The photo as it comes back from a file of some kind."""
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return Image.open(file)


def pixels(photo):
    return np.asarray(photo).tolist()


# The bundled photos


def test_there_are_at_least_eight_demo_photos_and_all_decode():
    photos = DemoPhotos()
    assert len(photos) >= 8
    for index in range(len(photos)):
        photo = photos.load(index)
        assert photo.mode == "RGB"
        assert min(photo.size) >= 224


def test_demo_photos_weigh_less_than_a_megabyte():
    assert sum((DemoPhotos().root / name).stat().st_size for name in DemoPhotos().ids) < 1_000_000


def test_every_demo_photo_has_its_row_in_the_attribution_and_every_row_its_photo():
    table = (DemoPhotos().root / "ATTRIBUTION.md").read_text()
    rows = dict(re.findall(r"^\| `(\S+?)` \|.*?\| (CC0|Public domain) \|", table, flags=re.MULTILINE))
    assert sorted(rows) == DemoPhotos().ids


def test_a_demo_photo_that_cannot_be_read_stops_the_run():
    assert DemoPhotos().on_error == "raise"


# Folders


def test_a_folder_is_read_recursively_in_the_order_of_relative_paths(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/z.png", "c.png", "a/deep/er/x.png"):
        save(tmp_path / name)
    assert ImageFolder(tmp_path).ids == ["a/deep/er/x.png", "a/z.png", "b/10.png", "b/2.png", "c.png"]


def test_names_and_content_digest_do_not_depend_on_where_the_folder_lies(tmp_path, monkeypatch):
    for place in ("here", "far/away/there"):
        save(tmp_path / place / "cats/one.png", RED)
        save(tmp_path / place / "dogs/two.png", BLUE)
    os.utime(tmp_path / "here/cats/one.png", (1, 1))
    here, there = ImageFolder(tmp_path / "here"), ImageFolder(tmp_path / "far/away/there")
    monkeypatch.chdir(tmp_path)
    relative = ImageFolder("here")
    assert here.ids == there.ids == relative.ids == ["cats/one.png", "dogs/two.png"]
    assert here.digest() == there.digest() == relative.digest()


def test_a_tilde_stands_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "photos/a.png")
    assert ImageFolder("~/photos").ids == ["a.png"]


def test_upper_case_suffixes_are_images_and_other_files_are_not(tmp_path):
    save(tmp_path / "A.JPG")
    save(tmp_path / "b.Png")
    save(tmp_path / "c.JPEG")
    for name in ("notes.txt", "labels.csv", "Thumbs.db", "jpg", "movie.mp4"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert ImageFolder(tmp_path).ids == ["A.JPG", "b.Png", "c.JPEG"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"`data.root={re.escape(str(tmp_path / 'nowhere'))}`: no such folder"):
        ImageFolder(tmp_path / "nowhere")


def test_a_folder_without_images_is_named_with_what_counts_as_an_image(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"`data.root=.*` holds no image \(.*\.jpg.*\)"):
        ImageFolder(tmp_path)


def test_a_split_is_a_folder_below_the_root(tmp_path):
    save(tmp_path / "train/a.png")
    save(tmp_path / "test/b.png")
    assert ImageFolder(tmp_path, "test").ids == ["b.png"]
    with pytest.raises(UserError, match=r"valid.*no such folder"):
        ImageFolder(tmp_path, "valid")


def test_labels_are_the_class_folders_in_sorted_order(tmp_path):
    for name in ("zebra/1.png", "ant/2.png", "ant/deep/3.png", "moth/4.png"):
        save(tmp_path / name)
    photos = ImageFolder(tmp_path)
    assert dict(zip(photos.ids, photos.labels, strict=True)) == {
        "ant/2.png": 0,
        "ant/deep/3.png": 0,
        "moth/4.png": 1,
        "zebra/1.png": 2,
    }


def test_labels_do_not_move_when_the_limit_leaves_classes_out(tmp_path):
    for name in ("a/1.png", "b/2.png", "c/3.png", "d/4.png"):
        save(tmp_path / name)
    photos = ImageFolder(tmp_path, limit=2)
    assert (photos.ids, photos.labels) == (["a/1.png", "c/3.png"], [0, 2])


def test_a_flat_folder_has_no_labels(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    assert ImageFolder(tmp_path).labels is None


@pytest.mark.parametrize(
    ("total", "limit", "kept"),
    [
        (10, None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 5, 7]),  # every 2.5th, rounded down
        (10, 1, [0]),
        (3, 3, [0, 1, 2]),
        (3, 99, [0, 1, 2]),
    ],
)
def test_a_limit_keeps_photos_evenly_spaced(tmp_path, total, limit, kept):
    for index in range(total):
        save(tmp_path / f"{index}.png", (index, 0, 0))
    photos = ImageFolder(tmp_path, limit=limit)
    assert photos.ids == [f"{index}.png" for index in kept]
    assert [photos.load(place).getpixel((0, 0))[0] for place in range(len(photos))] == kept


@pytest.mark.parametrize(
    ("argument", "value"), [("limit", 0), ("limit", -3), ("on_error", "ignore"), ("on_error", None)]
)
def test_an_argument_out_of_range_is_named_with_its_value(tmp_path, argument, value):
    save(tmp_path / "a.png")
    with pytest.raises(UserError, match=rf"`data.{argument}`.*{value}"):
        ImageFolder(tmp_path, **{argument: value})


# The digest


@pytest.mark.parametrize("change", ["content", "name", "addition", "removal"])
def test_the_digest_changes_with(tmp_path, change):
    save(tmp_path / "a.png", RED)
    save(tmp_path / "b.png", GREEN)
    before = ImageFolder(tmp_path).digest()
    assert before == ImageFolder(tmp_path).digest()
    if change == "content":
        save(tmp_path / "b.png", BLUE)
    elif change == "name":
        (tmp_path / "b.png").rename(tmp_path / "c.png")
    elif change == "addition":
        save(tmp_path / "c.png", BLUE)
    else:
        (tmp_path / "b.png").unlink()
    assert ImageFolder(tmp_path).digest() != before


def test_the_digest_does_not_change_when_a_file_is_touched(tmp_path):
    path = save(tmp_path / "a.png")
    before = ImageFolder(tmp_path).digest()
    os.utime(path, (12345, 12345))
    assert ImageFolder(tmp_path).digest() == before


def test_the_digest_covers_only_what_the_limit_keeps(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    before = ImageFolder(tmp_path, limit=1).digest()
    save(tmp_path / "b.png", BLUE)
    assert ImageFolder(tmp_path, limit=1).digest() == before


# Every kind of file becomes upright 8-bit RGB


def test_greyscale_becomes_three_equal_channels():
    photo = stored(Image.fromarray(np.array([[0, 100, 255]], np.uint8)), "PNG")
    assert photo.mode == "L"
    assert pixels(to_rgb(photo)) == [[[0] * 3, [100] * 3, [255] * 3]]


def test_one_bit_becomes_black_and_white():
    photo = stored(Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1"), "PNG")
    assert photo.mode == "1"
    assert pixels(to_rgb(photo)) == [[[0] * 3, [255] * 3, [0] * 3]]


def test_a_palette_is_looked_up():
    photo = Image.new("P", (2, 1))
    photo.putpalette([*RED, *BLUE])
    photo.putdata([1, 0])
    photo = stored(photo, "PNG")
    assert photo.mode == "P"
    assert pixels(to_rgb(photo)) == [[list(BLUE), list(RED)]]


def test_a_transparent_palette_entry_becomes_white():
    photo = Image.new("P", (2, 1))
    photo.putpalette([*RED, *BLUE])
    photo.putdata([1, 0])
    photo = stored(photo, "PNG", transparency=1)
    assert photo.mode == "P"
    assert pixels(to_rgb(photo)) == [[[255, 255, 255], list(RED)]]


def test_a_half_transparent_palette_entry_is_laid_over_white():
    photo = Image.new("P", (2, 1))
    photo.putpalette([*RED, *BLUE])
    photo.putdata([1, 0])
    photo = stored(photo, "PNG", transparency=bytes([255, 51]))  # a fifth of blue, four fifths of white
    assert pixels(to_rgb(photo)) == [[[204, 204, 255], list(RED)]]


def test_a_transparent_colour_key_becomes_white():
    photo = Image.new("RGB", (2, 1), GREEN)
    photo.putpixel((0, 0), BLUE)
    photo = stored(photo, "PNG", transparency=BLUE)
    assert photo.mode == "RGB"
    assert pixels(to_rgb(photo)) == [[[255, 255, 255], list(GREEN)]]


@pytest.mark.parametrize(
    ("alpha", "over_white"), [(0, (255, 255, 255)), (255, (255, 0, 100)), (51, (255, 204, 224)), (204, (255, 51, 131))]
)
def test_transparency_is_laid_over_white(alpha, over_white):
    # alpha / 255 is 0, 1, 1/5, 4/5: alpha * colour + (1 - alpha) * 255
    photo = stored(Image.new("RGBA", (1, 1), (255, 0, 100, alpha)), "PNG")
    assert photo.mode == "RGBA"
    assert pixels(to_rgb(photo)) == [[list(over_white)]]


def test_grey_with_transparency_is_laid_over_white():
    photo = stored(Image.new("LA", (1, 1), (100, 51)), "PNG")
    assert photo.mode == "LA"
    assert pixels(to_rgb(photo)) == [[[224] * 3]]


def test_sixteen_bit_grey_keeps_its_range():
    levels = np.array([[0, 1, 257, 25700, 32896, 65535]], np.uint16)
    photo = stored(Image.fromarray(levels), "PNG")
    assert photo.mode.startswith("I")
    assert [value[0] for value in pixels(to_rgb(photo))[0]] == [
        0,
        0,
        1,
        100,
        128,
        255,
    ]  # multiples of 65535 / 255 = 257


def test_float_grey_in_0_to_1_keeps_its_range():
    photo = stored(Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32)), "TIFF")
    assert photo.mode == "F"
    assert pixels(to_rgb(photo)) == [[[0] * 3, [51] * 3, [255] * 3]]


def test_cmyk_jpeg_shows_its_colours():
    photo = stored(
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100
    )  # no cyan, all magenta and yellow
    assert photo.mode == "CMYK"
    np.testing.assert_allclose(np.asarray(to_rgb(photo))[8, 8], RED, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotated_jpeg_is_shown_upright(orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16], upright[8:, 16:] = RED, GREEN, BLUE, YELLOW
    turned = upright.transpose(1, 0, 2)
    as_stored = {  # EXIF 2.3, tag 274: where the first row and the first column of the file belong
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    photo = stored(Image.fromarray(np.ascontiguousarray(as_stored)), "JPEG", quality=100, subsampling=0, exif=exif)
    shown = to_rgb(photo)
    assert shown.size == (32, 16)
    np.testing.assert_allclose(np.asarray(shown, int), upright, atol=4)


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED, BLUE)]
    photo = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert photo.n_frames == 3
    assert pixels(to_rgb(photo)) == [[list(GREEN)] * 4] * 4


def test_a_single_pixel_is_a_photo(tmp_path):
    save(tmp_path / "dot.png", YELLOW, (1, 1))
    assert pixels(ImageFolder(tmp_path).load(0)) == [[list(YELLOW)]]


def test_every_suffix_that_counts_as_an_image_can_be_read(tmp_path):
    for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"):
        save(tmp_path / f"photo{suffix}", GREEN, (8, 8))
    Image.new("L", (8, 8), 200).save(tmp_path / "grey.pgm")
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.pbm")
    photos = ImageFolder(tmp_path)
    assert len(photos) == 11
    for index, name in enumerate(photos.ids):
        expected = {"grey.pgm": (200,) * 3, "bits.pbm": (255,) * 3}.get(name, GREEN)
        np.testing.assert_allclose(np.asarray(photos.load(index))[4, 4], expected, atol=2, err_msg=name)


# Photos that cannot be read


def damaged(kind):
    """Bytes of a file that is not the photo it claims to be."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    whole = file.getvalue()
    return {
        "zero bytes": b"",
        "text": b"<html>404 Not Found</html>",
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:20],
        "scrambled": whole[:2] + bytes(reversed(whole[2:])),
    }[kind]


@pytest.mark.parametrize("kind", ["zero bytes", "text", "truncated", "header only", "scrambled"])
def test_a_photo_that_cannot_be_read_is_named_and_its_neighbours_load(tmp_path, kind):
    save(tmp_path / "a.png", RED)
    (tmp_path / "b.jpg").write_bytes(damaged(kind))
    save(tmp_path / "c.png", BLUE)
    photos = ImageFolder(tmp_path)
    assert photos.ids == ["a.png", "b.jpg", "c.png"]
    with pytest.raises(BrokenPhoto, match=r"^b\.jpg: \S") as caught:
        photos.load(1)
    assert caught.value.photo_id == "b.jpg"
    assert str(tmp_path) not in str(caught.value), "records keep the reason, and records hold no paths"
    assert photos.load(0).getpixel((0, 0)) == RED
    assert photos.load(2).getpixel((0, 0)) == BLUE


def test_a_photo_that_vanishes_is_a_broken_one_and_its_path_stays_out_of_the_reason(tmp_path):
    path = save(tmp_path / "a.png")
    photos = ImageFolder(tmp_path)
    path.unlink()
    with pytest.raises(BrokenPhoto, match=r"^a\.png: No such file or directory$"):
        photos.load(0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_exif_never_escapes_as_another_error(tmp_path, kind):
    exif = Image.Exif()
    exif[274], exif[282] = 6, 72.0  # orientation, resolution
    whole = exif.tobytes()
    draw = np.random.default_rng(0)
    for _ in range(100):
        bad = bytearray(whole)
        for _ in range(3):
            bad[draw.integers(6, len(bad))] = draw.integers(256)
        Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", kind, exif=bytes(bad))
        with contextlib.suppress(BrokenPhoto):
            assert ImageFolder(tmp_path).load(0).mode == "RGB"


@pytest.mark.parametrize("error", [struct.error("unpack"), TypeError("abs"), EOFError(), IndexError("range")])
def test_whatever_a_decoder_raises_becomes_a_broken_photo_with_a_reason(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    save(tmp_path / "a.png")
    photos = ImageFolder(tmp_path)
    monkeypatch.setattr(photos, "open", fail)
    with pytest.raises(BrokenPhoto, match=r"^a\.png: \w+"):
        photos.load(0)


# CIFAR-10


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Two roots with the same pixels: torchvision's files, and class folders of PNGs. Photos are sorted by class."""
    names = ["airplane", "bird", "cat"]
    draw = np.random.default_rng(0)
    archive, folders = tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("folders")
    batches = {f"data_batch_{number}": 3 for number in range(1, 6)} | {"test_batch": 6}
    (archive / "cifar-10-batches-py").mkdir()
    labels = {"train": sorted(index % 3 for index in range(15)), "test": sorted(index % 3 for index in range(6))}
    taken = {"train": 0, "test": 0}
    for file, count in batches.items():
        split = "test" if file == "test_batch" else "train"
        photos = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        here = labels[split][taken[split] : taken[split] + count]
        entry = {"data": photos.transpose(0, 3, 1, 2).reshape(count, -1), "labels": here}
        (archive / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(entry))
        for photo, label in zip(photos, here, strict=True):
            path = folders / split / names[label] / f"{taken[split]:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(path)
            taken[split] += 1
    (archive / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return archive, folders


@pytest.fixture
def unchecked(monkeypatch):
    """Our small files instead of the published ones: torchvision compares MD5 sums."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5: Path(path).is_file())


@pytest.mark.parametrize(("split", "total"), [("train", 15), ("test", 6)])
@pytest.mark.parametrize("limit", [None, 4])
def test_both_layouts_of_cifar_hold_the_same_photos_and_labels(cifar, unchecked, split, total, limit):
    from_archive, from_folders = (CIFAR10(root, split, limit=limit) for root in cifar)
    assert len(from_archive) == len(from_folders) == (limit or total)
    assert from_archive.labels == from_folders.labels
    for index in range(len(from_archive)):
        with Image.open(cifar[1] / from_folders.ids[index]) as file:
            assert pixels(from_archive.load(index)) == pixels(from_folders.load(index)) == pixels(file)


def test_photos_of_cifar_are_named_by_their_split(cifar, unchecked):
    assert CIFAR10(cifar[0], "test").ids[1] == "test/00001"
    assert CIFAR10(cifar[1], "test").ids[1] == "test/airplane/00001.png"
    assert not set(CIFAR10(cifar[0], "test").ids) & set(CIFAR10(cifar[0], "train").ids)


def test_the_digest_of_cifar_tells_splits_and_pixels_apart(cifar, unchecked, tmp_path):
    copy = shutil.copytree(cifar[0], tmp_path / "copy")
    assert CIFAR10(copy, "test").digest() == CIFAR10(cifar[0], "test").digest()
    assert CIFAR10(copy, "test").digest() != CIFAR10(copy, "train").digest()
    batch = copy / "cifar-10-batches-py/test_batch"
    entry = pickle.loads(batch.read_bytes())
    entry["data"][3, 0] ^= 1
    batch.write_bytes(pickle.dumps(entry))
    assert CIFAR10(copy, "test").digest() != CIFAR10(cifar[0], "test").digest()


def test_cifar_files_that_fail_torchvisions_checksum_are_called_damaged(cifar):
    with pytest.raises(UserError, match=r"`data.root=.*cifar-10-batches-py is incomplete or damaged: download"):
        CIFAR10(cifar[0])


def test_missing_cifar_files_are_called_incomplete(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match="incomplete or damaged"):
        CIFAR10(tmp_path)


def test_a_root_without_either_layout_of_cifar_says_what_it_should_hold(tmp_path):
    with pytest.raises(UserError, match=r"`data.root=.*neither cifar-10-batches-py nor a folder called test"):
        CIFAR10(tmp_path)


def test_an_unknown_split_of_cifar_is_named(tmp_path):
    with pytest.raises(UserError, match=r"`data.split` must be 'train' or 'test', got 'val'"):
        CIFAR10(tmp_path, "val")


# ImageNet


@pytest.mark.parametrize("inside", ["", "val"])
@pytest.mark.parametrize("layout", ["flat", "class folders"])
def test_imagenet_is_found_flat_or_in_class_folders_with_or_without_val(tmp_path, layout, inside):
    folders = {"flat": ["", ""], "class folders": ["n01440764/", "n01443537/"]}[layout]
    names = [f"{folder}ILSVRC2012_val_{number:08d}.JPEG" for number, folder in enumerate(folders, start=1)]
    for name, colour in zip(names, (RED, BLUE), strict=True):
        save(tmp_path / inside / name, colour, (16, 16))
    photos = ImageNetValidation(tmp_path)
    assert photos.ids == names
    assert photos.labels == (None if layout == "flat" else [0, 1])
    np.testing.assert_allclose(np.asarray(photos.load(1))[8, 8], BLUE, atol=3)


def test_the_training_photos_beside_val_are_left_alone(tmp_path):
    save(tmp_path / "val/a.JPEG")
    save(tmp_path / "train/b.JPEG")
    assert ImageNetValidation(tmp_path).ids == ["a.JPEG"]


def test_a_change_anywhere_in_an_uncompressed_photo_changes_the_digest(tmp_path):
    Image.new("RGB", (640, 480), "navy").save(tmp_path / "photo.bmp")
    before = ImageFolder(tmp_path).digest()
    with Image.open(tmp_path / "photo.bmp") as photo:
        changed = photo.copy()
    changed.paste("white", (0, 0, 640, 200))  # a bitmap's first rows are stored last
    changed.save(tmp_path / "photo.bmp")
    assert ImageFolder(tmp_path).digest() != before


def test_a_file_name_that_is_no_text_gets_a_printable_name(tmp_path):
    try:
        Image.new("RGB", (8, 8)).save(os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    photos = ImageFolder(tmp_path)
    assert photos.ids == ["caf\\xe9.png"]
    assert photos.load(0).size == (8, 8)
    assert photos.digest()


def test_a_photo_that_may_not_be_read_is_one_that_is_skipped(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "locked.png")
    photos = ImageFolder(tmp_path)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Image, "open", denied)
    assert photos.digest()
    with pytest.raises(BrokenPhoto, match="Permission denied"):
        photos.load(0)
