"""Regions that two views share, held against photos whose pixels hold their own coordinates."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from twinsight.data import ImageFolder, NoViews, PairDataset, Photos, SimCLRViews, ViewGeometry, shared_regions
from twinsight.data.pairs import collate
from twinsight.data.views import ViewRecipe

SIDE = 24
PHOTO = (48, 72)


def coordinates(height, width, top=0, left=0):
    """A photo whose red and green say which row and column a pixel comes from."""
    rows, columns = np.mgrid[top : top + height, left : left + width]
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8))


def seen(geometry, photo):
    """Row and column of the photo that each pixel of the view comes from, ``(2, SIDE, SIDE)``; whole crops only."""
    _, _, height, width = geometry.box
    assert height % SIDE == width % SIDE == 0  # every pixel of the view is a block of the photo
    rendered = ViewRecipe(geometry).render(photo, SIDE, antialias=False)
    return (rendered[:2] * 255).round()


def boxes():
    """Crops whose pixels are blocks of the photo's, at every second place."""
    for height, width in itertools.product((24, 48), (24, 48, 72)):
        for top in range(0, PHOTO[0] - height + 1, 8):
            for left in range(0, PHOTO[1] - width + 1, 8):
                yield top, left, height, width


def pairs_of_boxes():
    every = list(boxes())
    draw = np.random.default_rng(0)
    return [tuple(every[index] for index in draw.integers(0, len(every), 2)) for _ in range(60)]


def cells(box):
    """The pixels whose centre is in a box of a view, as a mask."""
    top, left, height, width = box
    centres = np.arange(SIDE) + 0.5
    rows, columns = (centres >= top) & (centres < top + height), (centres >= left) & (centres < left + width)
    return rows[:, None] & columns[None]


def shows(geometry, other):
    """Brute force: which pixels of a view come from a place of the photo that the other view's crop holds."""
    top, left, height, width = geometry.box
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for row, column in np.ndindex(SIDE, SIDE):
        turned = SIDE - 1 - column if geometry.flipped else column
        y = top + (row + 0.5) / SIDE * height
        x = left + (turned + 0.5) / SIDE * width
        o_top, o_left, o_height, o_width = other.box
        mask[row, column] = o_top <= y < o_top + o_height and o_left <= x < o_left + o_width
    return mask


@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=2)), ids=str)
def test_the_regions_of_two_crops_are_the_pixels_that_both_show(flips):
    met = 0
    for box1, box2 in pairs_of_boxes():
        one, two = (ViewGeometry(PHOTO, box, flip) for box, flip in zip((box1, box2), flips, strict=True))
        region, expected = shared_regions(one, two, SIDE), (shows(one, two), shows(two, one))
        if region is None:
            assert not expected[0].any()
            assert not expected[1].any()
            continue
        met += 1
        for box, mask in zip(region[:2], expected, strict=True):
            np.testing.assert_array_equal(cells(box), mask)
        assert region.mirrored == (flips[0] != flips[1])
    assert 10 < met < 60


@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=2)), ids=str)
def test_rendered_views_show_the_same_pixels_in_their_regions(flips):
    photo = coordinates(*PHOTO)
    same_scale = [pair for pair in pairs_of_boxes() if pair[0][2:] == pair[1][2:]]
    met = 0
    for box1, box2 in same_scale:
        one, two = (ViewGeometry(PHOTO, box, flip) for box, flip in zip((box1, box2), flips, strict=True))
        region = shared_regions(one, two, SIDE)
        if region is None:
            continue
        views = [seen(geometry, photo)[:, cells(box)] for geometry, box in zip((one, two), region[:2], strict=True)]
        if (np.subtract(box1, box2)[:2] % (np.array(box1[2:]) // SIDE)).any():
            continue  # blocks of the two views are not the same blocks
        met += 1
        sets = [set(map(tuple, view.T.tolist())) for view in views]
        assert sets[0] == sets[1]
        outside = {tuple(value) for value in seen(one, photo)[:, ~cells(region.box1)].T.tolist()}
        everything = {tuple(value) for value in seen(two, photo).flatten(1).T.tolist()}
        assert not outside & everything
        # Turned where they mirror each other, they are equal place by place.
        shapes = [tuple(round(side) for side in box[2:]) for box in region[:2]]
        grids = [view.reshape(2, *shape) for view, shape in zip(views, shapes, strict=True)]
        assert torch.equal(grids[0], grids[1].flip(-1) if region.mirrored else grids[1])
    assert met > 3


def test_swapping_the_views_swaps_the_boxes():
    for box1, box2 in pairs_of_boxes():
        one, two = ViewGeometry(PHOTO, box1, True), ViewGeometry(PHOTO, box2)
        forth, back = shared_regions(one, two, SIDE), shared_regions(two, one, SIDE)
        assert (forth is None) == (back is None)
        if forth is not None:
            assert (forth.box1, forth.box2, forth.mirrored) == (back.box2, back.box1, back.mirrored)


def test_crops_that_only_touch_share_nothing():
    left, right = ViewGeometry((10, 20), (0, 0, 10, 10)), ViewGeometry((10, 20), (0, 10, 10, 10))
    assert shared_regions(left, right, SIDE) is None


def test_a_shared_box_goes_through_crop_and_flip():
    # 40 x 40 photos. The object, 20 x 20, lies at (0, 20) of photo 1 and at (20, 0) of photo 2.
    shared = ((0, 20, 20, 20), (20, 0, 20, 20))
    # View 1 shows the upper right quarter and no more: the object fills it. View 2 shows all of photo 2, mirrored.
    one, two = ViewGeometry((40, 40), (0, 20, 20, 20)), ViewGeometry((40, 40), (0, 0, 40, 40), flipped=True)
    assert shared_regions(one, two, 20, shared) == ((0, 0, 20, 20), (10, 10, 10, 10), True)
    # Only the left half of the object is in this crop of photo 1: the other view's box is its left half, mirrored.
    half = ViewGeometry((40, 40), (0, 10, 20, 20))
    assert shared_regions(half, two, 20, shared) == ((0, 10, 20, 10), (10, 15, 10, 5), True)
    # A crop without it.
    assert shared_regions(ViewGeometry((40, 40), (20, 0, 20, 40)), two, 20, shared) is None


def test_objects_of_two_sizes_correspond_by_their_shares():
    shared = ((0, 0, 10, 10), (20, 20, 20, 20))
    one = ViewGeometry((40, 40), (0, 0, 5, 40))  # its upper half
    two = ViewGeometry((40, 40), (0, 0, 40, 40))
    assert shared_regions(one, two, 40, shared) == ((0, 0, 40, 10), (20, 20, 10, 20), False)


class TwoPhotos(Photos):
    """Photo ``name`` and another one of another size; they share a corner where ``known``."""

    def __init__(self, known):
        super().__init__(["pair"])
        self.known = known

    def load_pair(self, index):
        return coordinates(30, 40), coordinates(60, 50)

    def shared(self, index):
        return ((0, 0, 15, 15), (30, 20, 30, 30)) if self.known else None

    def load(self, index):
        raise AssertionError("a pair of two photos is loaded as one")


def test_two_photos_make_one_view_each():
    pair = PairDataset(TwoPhotos(known=True), NoViews(10, crop_fraction=1))[0]
    one, two = pair.geometry[0]
    assert (one.photo_size, one.box) == ((30, 40), (0, 5, 30, 30))
    assert (two.photo_size, two.box) == ((60, 50), (5, 0, 50, 50))
    for view, geometry, photo in ((pair.view1, one, coordinates(30, 40)), (pair.view2, two, coordinates(60, 50))):
        assert torch.equal(view[0], ViewRecipe(geometry).render(photo, 10))
    # Of the object, view 1 shows the right two thirds, view 2 the upper five sixths.
    box1, box2, mirrored = pair.regions[0]
    assert box1 == pytest.approx((0, 0, 25 / 6, 10 / 3))
    assert box2 == pytest.approx((5, 6, 5, 4))
    assert not mirrored


def test_nothing_is_known_of_what_two_photos_share_unless_they_say_so():
    assert PairDataset(TwoPhotos(known=False), NoViews(10))[0].regions == [None]


def test_augmented_views_of_two_photos_are_drawn_for_the_size_of_each():
    one, two = SimCLRViews(10, first="augmented").recipes((30, 40), 5, (60, 50))
    assert one == SimCLRViews(10, first="augmented").recipes((30, 40), 5)[0]
    assert two == SimCLRViews(10, first="augmented").recipes((60, 50), 5)[1]


def test_a_batch_carries_the_regions_of_its_pairs(tmp_path):
    for name in "abc":
        coordinates(40, 60).save(tmp_path / f"{name}.png")
    data = PairDataset(ImageFolder(tmp_path), SimCLRViews(16, first="augmented", scale=(0.1, 0.4)), seed=1)
    batch = collate([data[index] for index in range(3)])
    assert batch.regions == [shared_regions(*geometry, 16) for geometry in batch.geometry]
    assert batch.select([2, 0]).regions == [batch.regions[2], batch.regions[0]]
    assert batch.to(torch.device("meta")).regions == batch.regions
    assert PairDataset(ImageFolder(tmp_path), NoViews(16))[0].regions == [((0, 0, 16, 16), (0, 0, 16, 16), False)]
