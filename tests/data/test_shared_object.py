"""Mosaics that have exactly one tile in common."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from twinsight.data import (
    CIFAR10,
    ImageFolder,
    NoViews,
    PairDataModule,
    PairDataset,
    SharedObject,
    SimCLRViews,
    SkippedPair,
)
from twinsight.errors import UserError

TILE = 8
NAMES = [f"{name}.png" for name in "abcdefghi"]


def write(path, seed):
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    coarse.resize((30 + seed, 40 - seed), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def folder(tmp_path):
    """Nine photos of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        write(folder / name, seed)
    return folder


def quarters(mosaic):
    """The four tiles of a mosaic, by their (top, left)."""
    pixels = np.asarray(mosaic)
    assert pixels.shape == (2 * TILE, 2 * TILE, 3)
    return {(top, left): pixels[top : top + TILE, left : left + TILE] for top in (0, TILE) for left in (0, TILE)}


def test_exactly_one_tile_is_in_both_mosaics_at_different_places(folder):
    places = set()
    for seed in range(8):
        photos = SharedObject(folder, tile=TILE, seed=seed)
        for index in range(len(photos)):
            first, second = map(quarters, photos.load_pair(index))
            equal = [(a, b) for a in first for b in second if np.array_equal(first[a], second[b])]
            assert len(equal) == 1
            ((one, two),) = equal
            assert one != two
            assert photos.shared(index) == ((*one, TILE, TILE), (*two, TILE, TILE))
            for tiles in (first, second):  # nor is a photo twice in one mosaic
                assert len({tile.tobytes() for tile in tiles.values()}) == 4
            places.add((one, two))
    assert len(places) == 12  # every pair of different quarters comes up


def test_the_shared_tile_is_the_centre_of_the_photo_that_names_the_pair(folder):
    photos = SharedObject(folder, tile=TILE)
    assert photos.ids == NAMES
    for index, name in enumerate(NAMES):
        with Image.open(folder / name) as photo:
            side = min(photo.size)
            left, top = (photo.width - side) / 2, (photo.height - side) / 2
            expected = photo.resize((TILE, TILE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        (top, left, _, _), _ = photos.shared(index)
        found = quarters(photos.load_pair(index)[0])[top, left]
        np.testing.assert_allclose(found.astype(int), np.asarray(expected).astype(int), atol=1)


def test_one_photo_under_two_names_is_not_shared_twice(folder):
    for copy in range(9):
        shutil.copy(folder / "a.png", folder / f"copy{copy}.png")
    photos = SharedObject(folder, tile=TILE)
    for index in range(len(photos)):
        first, second = map(quarters, photos.load_pair(index))
        assert sum(np.array_equal(a, b) for a in first.values() for b in second.values()) == 1


def test_pairs_depend_on_seed_and_name_alone(folder):
    whole = {
        pair.pair_id[0]: pair
        for pair in map(PairDataset(SharedObject(folder, tile=TILE), NoViews(16, 1)).__getitem__, range(9))
    }
    for options in ({"batch_size": 4}, {"batch_size": 2, "num_workers": 1}):
        module = PairDataModule(SharedObject(folder, tile=TILE), NoViews(16, 1), **options)
        for batch in module.predict_dataloader():
            for place, name in enumerate(batch.pair_id):
                assert torch.equal(batch.view1[place], whole[name].view1[0])
                assert torch.equal(batch.view2[place], whole[name].view2[0])
                assert batch.regions[place] == whole[name].regions[0]
    few = SharedObject(folder, tile=TILE, limit=2)
    assert few.ids == ["a.png", "e.png"]
    for index, name in enumerate(few.ids):
        same = SharedObject(folder, tile=TILE).load_pair(NAMES.index(name))
        assert [mosaic.tobytes() for mosaic in few.load_pair(index)] == [mosaic.tobytes() for mosaic in same]
    other = SharedObject(folder, tile=TILE, seed=1)
    assert other.load_pair(0)[0].tobytes() != SharedObject(folder, tile=TILE).load_pair(0)[0].tobytes()


def test_whole_views_show_the_mosaics_and_their_regions_the_shared_tile(folder):
    photos = SharedObject(folder, tile=TILE)
    for index in range(9):
        pair = PairDataset(photos, NoViews(2 * TILE, crop_fraction=1))[index]
        (box1, box2, mirrored), tiles = pair.regions[0], []
        assert (box1, box2) == photos.shared(index)
        assert not mirrored
        for view, box in ((pair.view1[0], box1), (pair.view2[0], box2)):
            top, left, height, width = map(int, box)
            tiles.append(view[:, top : top + height, left : left + width])
        assert torch.equal(*tiles)
        assert not torch.equal(pair.view1, pair.view2)


def test_regions_follow_the_shared_tile_through_crops_and_flips(folder):
    photos = SharedObject(folder, tile=64)
    views = SimCLRViews(32, first="augmented", scale=(0.5, 1.0), jitter=0, greyscale=0, blur=0)
    met = mirrored = 0
    for seed in range(4):
        data = PairDataset(photos, views, seed=seed)
        for index in range(9):
            pair = data[index]
            if pair.regions[0] is None or min(pair.regions[0].box1[2:] + pair.regions[0].box2[2:]) < 8:
                continue
            tiles = []
            for view, box in ((pair.view1, pair.regions[0].box1), (pair.view2, pair.regions[0].box2)):
                top, left, height, width = box
                rows = (top + (torch.arange(6) + 0.5) / 6 * height).long()
                columns = (left + (torch.arange(6) + 0.5) / 6 * width).long()
                tiles.append(view[0][:, rows][:, :, columns])
            turned = tiles[1].flip(-1) if pair.regions[0].mirrored else tiles[1]
            # Rendered at two scales, so alike and not equal; a region at the wrong place is another photo.
            assert (tiles[0] - turned).abs()[:, 1:-1, 1:-1].mean() < 0.08
            met += 1
            mirrored += pair.regions[0].mirrored
    assert met > 12
    assert 0 < mirrored < met


def test_partners_are_second_views_of_the_next_pair(folder):
    data = PairDataset(SharedObject(folder, tile=TILE), NoViews(16, 1))
    assert data[0].partner_id == ["b.png"]
    assert torch.equal(data[0].partner_view2, data[1].view2)


def test_the_digest_follows_photos_and_options_but_not_the_path(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    plain = SharedObject(folder, tile=TILE).digest()
    assert SharedObject(moved, tile=TILE).digest() == plain
    assert SharedObject(photos=ImageFolder(folder), tile=TILE).digest() == plain
    others = [SharedObject(folder, **options) for options in ({"tile": 9}, {"tile": TILE, "seed": 1})]
    others.append(SharedObject(folder, tile=TILE, limit=8))
    write(moved / "i.png", 20)
    others.append(SharedObject(moved, tile=TILE))
    assert len({plain, *(photos.digest() for photos in others)}) == 5


def test_without_a_folder_the_photos_of_the_package_are_used():
    photos = SharedObject(tile=TILE)
    assert len(photos) >= 7
    assert photos.load(0).size == (2 * TILE, 2 * TILE)


def test_photos_may_come_from_any_collection(tmp_path):
    for index in range(8):
        path = tmp_path / "test" / "cat" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, index)
    photos = SharedObject(photos=CIFAR10(tmp_path), tile=TILE)
    assert photos.ids[0] == "test/cat/0.png"
    assert photos.labels == [0] * 8
    assert len(quarters(photos.load(0))) == 4


@pytest.mark.parametrize("count", [1, 6])
def test_seven_photos_are_needed(folder, count):
    for name in NAMES[count:]:
        (folder / name).unlink()
    with pytest.raises(UserError, match=f"at least 7 photos, one that is shared and 6 others, got {count}"):
        SharedObject(folder)


def test_options_out_of_range_are_named(folder):
    with pytest.raises(UserError, match=r"`data\.tile` must be at least 1 pixel, got 0"):
        SharedObject(folder, tile=0)
    with pytest.raises(UserError, match=r"`data\.root` or `data\.photos`, not both"):
        SharedObject(folder, photos=ImageFolder(folder))


def test_another_photo_fills_in_for_one_that_cannot_be_read(folder):
    (folder / "c.png").write_bytes(b"no photo")
    data = PairDataset(SharedObject(folder, tile=TILE), NoViews(16, 1))
    assert data[2] == SkippedPair(2, "c.png", "not an image of a known format")
    for index in {*range(9)} - {2}:
        assert data[index].pair_id == [NAMES[index]]
        first, second = map(quarters, data.photos.load_pair(index))
        assert sum(np.array_equal(a, b) for a in first.values() for b in second.values()) == 1


def test_a_filler_that_cannot_be_read_stops_the_run_when_told_to(folder):
    for name in NAMES[3:]:
        (folder / name).write_bytes(b"no photo")
    strict = PairDataset(SharedObject(folder, tile=TILE, on_error="raise"), NoViews(16, 1))[0]
    assert isinstance(strict, SkippedPair)
    assert strict.pair_id == "a.png"
    assert strict.reason.endswith("not an image of a known format")
    assert strict.reason[:5] in NAMES[3:]  # which photo it was, since it is not the pair's own
    lenient = PairDataset(SharedObject(folder, tile=TILE), NoViews(16, 1))[0]
    assert lenient == SkippedPair(0, "a.png", "fewer than 6 other photos that can be read and differ")
