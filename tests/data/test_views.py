"""View recipes: drawn from a seed alone, distributed like SimCLR's augmentations, rendered as recorded at any size."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional as TF

from twinsight.data import NoViews, SimCLRViews, ViewGeometry, ViewRecipe
from twinsight.errors import UserError

PLAIN = {"jitter": 0, "greyscale": 0, "blur": 0}  # crop and flip only
DRAWS = 500
COLOURS = ("brightness", "contrast", "saturation", "hue")


def coordinates(height, width):
    """A photo whose red is the column and whose green is the row of each pixel."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 128)], axis=-1))


def scene(height=200, width=300, seed=0):
    """A smooth colourful photo."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(photo):
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255


def assert_shows(view, photo):
    """Byte for byte the pixels of a photo."""
    torch.testing.assert_close(view, to_tensor(photo), rtol=0, atol=1e-6)


def second_views(count=DRAWS, photo_size=(200, 300), **options):
    """Recipes of the second view, one per seed."""
    views = SimCLRViews(32, **options)
    return [views.recipes(photo_size, seed)[1] for seed in range(count)]


def whole(photo, **kwargs):
    """A recipe that shows all of a photo."""
    return ViewRecipe(ViewGeometry((photo.height, photo.width), (0, 0, photo.height, photo.width)), **kwargs)


def assert_share(hits, total, probability):
    """Within 4.5 standard deviations of a binomial."""
    assert abs(hits - total * probability) <= 4.5 * math.sqrt(total * probability * (1 - probability))


# What a recipe depends on


def test_a_recipe_depends_on_the_seed_alone():
    first, again = SimCLRViews(64), SimCLRViews(64)
    expected = [first.recipes((200, 300), seed) for seed in range(5)]
    assert [again.recipes((200, 300), seed) for seed in (4, 2, 0, 1, 3)] == [expected[s] for s in (4, 2, 0, 1, 3)]


def test_a_recipe_ignores_the_global_random_state():
    np.random.seed(0)
    torch.manual_seed(0)
    expected = SimCLRViews(64).recipes((200, 300), 7)
    np.random.seed(1)
    torch.manual_seed(1)
    assert SimCLRViews(64).recipes((200, 300), 7) == expected


def test_drawing_a_recipe_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    view = SimCLRViews(64).recipes((200, 300), 7)[1]
    view.render(scene(), 64)
    assert torch.equal(torch.rand(1), expected)


def test_a_recipe_does_not_depend_on_the_size_it_will_be_rendered_at():
    assert SimCLRViews(32).recipes((200, 300), 3) == SimCLRViews(224).recipes((200, 300), 3)


def test_seeds_give_different_recipes():
    assert len(set(second_views(100))) == 100


def test_the_first_view_is_the_centre_crop_unless_it_is_augmented_too():
    centre, _ = SimCLRViews(64).recipes((200, 300), 0)
    assert centre == NoViews(64).recipes((200, 300), 0)[0]
    one, two = SimCLRViews(64, first="augmented").recipes((200, 300), 0)
    assert one != two
    assert one != centre
    assert two == SimCLRViews(64).recipes((200, 300), 0)[1]


# Geometry


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.05, 0.2), (4, 9)], ids=["usual", "tall", "wide"])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.001, 0.01), (1.0, 1.0)], ids=["usual", "small", "all"])
@pytest.mark.parametrize(
    "photo_size",
    [(1, 1), (1, 7), (7, 1), (1, 500), (500, 1), (2, 1000), (3, 2), (32, 32), (100, 133), (640, 480), (60, 600)],
)
def test_a_crop_lies_inside_the_photo_and_is_not_empty(photo_size, scale, ratio):
    views = SimCLRViews(8, first="augmented", scale=scale, ratio=ratio)
    for seed in range(20):
        for recipe in views.recipes(photo_size, seed):
            assert recipe.geometry.photo_size == photo_size
            top, left, height, width = recipe.geometry.box
            assert min(top, left) >= 0
            assert min(height, width) >= 1
            assert top + height <= photo_size[0]
            assert left + width <= photo_size[1]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("photo_size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_even_the_thinnest_photo_can_be_rendered(photo_size, antialias):
    photo = scene(*photo_size)
    for recipe in SimCLRViews(16, first="augmented", antialias=antialias).recipes(photo_size, 0):
        view = recipe.render(photo, 16, antialias)
        assert view.shape == (3, 16, 16)
        assert 0 <= view.min() <= view.max() <= 1


@pytest.mark.parametrize("photo_size", [(20, 1000), (1000, 20), (200, 300), (64, 64)])
def test_without_a_fitting_crop_torchvisions_fallback_is_used(photo_size):
    class CannotFit(transforms.RandomResizedCrop):
        """Asks for more than the photo holds, so that get_params falls back."""

    expected = CannotFit.get_params(torch.zeros(3, *photo_size), scale=(50, 50), ratio=(3 / 4, 4 / 3))
    views = SimCLRViews(8, **PLAIN)
    views.scale = (50, 50)
    assert views.recipes(photo_size, 0)[1].geometry.box == tuple(expected)


@pytest.mark.parametrize(
    ("photo_size", "fraction", "box"),
    [
        ((256, 320), 224 / 256, (16, 48, 224, 224)),
        ((320, 256), 224 / 256, (48, 16, 224, 224)),
        ((256, 256), 1.0, (0, 0, 256, 256)),
        ((100, 40), 0.5, (40, 10, 20, 20)),
        ((1, 1), 224 / 256, (0, 0, 1, 1)),
        ((1, 9), 0.1, (0, 4, 1, 1)),
    ],
)
def test_without_augmentation_both_views_are_pillows_centre_crop(photo_size, fraction, box):
    photo = scene(*photo_size)
    recipes = NoViews(32, fraction).recipes(photo_size, seed=0)
    top, left, height, width = box
    crop = photo.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
    for recipe in recipes:
        assert recipe.geometry == ViewGeometry(photo_size, box, flipped=False)
        assert_shows(recipe.render(photo, 32), crop)


def test_the_usual_centre_crop_is_resize_256_then_crop_224():
    photo = scene(512, 640)
    recipe, _ = NoViews(224).recipes((512, 640), seed=0)
    expected = to_tensor(transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(photo))
    # Equal but for the outermost pixels, whose resampling window ends at the crop here.
    torch.testing.assert_close(
        recipe.render(photo, 224)[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=0, atol=1.01 / 255
    )


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_the_crop_and_the_flip_that_are_recorded_are_the_ones_that_are_shown(seed, antialias):
    photo = coordinates(180, 240)
    recipe = SimCLRViews(40, **PLAIN).recipes((180, 240), seed)[1]
    top, left, height, width = recipe.geometry.box
    view = recipe.render(photo, 40, antialias) * 255
    # Pixel i of n samples the crop at (i + 1/2) / n of its side; a linear ramp is what it is there, filtered or not.
    middle = (torch.arange(40) + 0.5) / 40
    rows = (top + middle * height - 0.5)[:, None].expand(40, 40)
    columns = (left + middle * width - 0.5)[None].expand(40, 40)
    if recipe.geometry.flipped:
        columns = columns.flip(1)
    inner = slice(3, -3)
    torch.testing.assert_close(view[0, inner, inner], columns[inner, inner], rtol=0, atol=1.01)
    torch.testing.assert_close(view[1, inner, inner], rows[inner, inner], rtol=0, atol=1.01)


def test_recipes_of_this_file_are_both_flipped_and_not():
    flips = {SimCLRViews(40, **PLAIN).recipes((180, 240), seed)[1].geometry.flipped for seed in range(12)}
    assert flips == {True, False}


@pytest.mark.parametrize("seed", range(6))
def test_a_view_rendered_at_two_sizes_shows_the_same(seed):
    photo = scene(300, 400)
    recipe = SimCLRViews(32, first="augmented", greyscale=0.5, blur=1).recipes((300, 400), seed)[1]
    small, large = recipe.render(photo, 112), recipe.render(photo, 224)
    reduced = torch.nn.functional.avg_pool2d(large, 2)
    assert (reduced - small).abs().mean() < 0.01


def test_blur_is_as_wide_relative_to_the_view_at_every_size():
    edge = np.zeros((448, 448, 3), np.uint8)
    edge[:, 224:] = 255
    photo = Image.fromarray(edge)
    for size, tolerance in ((112, 0.02), (224, 0.01), (448, 0.01)):
        profile = whole(photo, blur=2.0).render(photo, size)[0, size // 2]
        position = (torch.arange(size) + 0.5) / size - 0.5
        expected = torch.special.ndtr(position * 224 / 2.0)  # an edge seen through a Gaussian of 2 pixels at side 224
        torch.testing.assert_close(profile, expected, rtol=0, atol=tolerance)


# Distributions


def torchvision_crops(count, photo_size, scale, ratio):
    torch.manual_seed(0)
    image = torch.zeros(3, *photo_size)
    return np.array([transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)], float)


@pytest.mark.parametrize(
    ("photo_size", "scale", "ratio"),
    [
        ((480, 640), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((600, 600), (0.02, 0.2), (0.2, 3.0)),  # wide enough to tell log-uniform from uniform
        ((200, 800), (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_like_torchvisions(photo_size, scale, ratio):
    recipes = second_views(DRAWS, photo_size, scale=scale, ratio=ratio)
    ours = np.array([recipe.geometry.box for recipe in recipes], float)
    theirs = torchvision_crops(DRAWS, photo_size, scale, ratio)
    for quantity in (
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: top + height / 2,
        lambda top, left, height, width: left + width / 2,
    ):
        assert stats.ks_2samp(quantity(*ours.T), quantity(*theirs.T)).pvalue > 1e-3


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("what", ["flip", "jitter", "greyscale", "blur"])
def test_each_augmentation_occurs_as_often_as_its_probability_says(what, chance):
    happened = {
        "flip": lambda recipe: recipe.geometry.flipped,
        "jitter": lambda recipe: bool(recipe.colour),
        "greyscale": lambda recipe: recipe.greyscale,
        "blur": lambda recipe: recipe.blur is not None,
    }[what]
    assert_share(sum(map(happened, second_views(**{what: chance}))), DRAWS, chance)


def test_augmentations_occur_independently_of_each_other():
    recipes = second_views(1000, flip=0.5, jitter=0.5, greyscale=0.5, blur=0.5)
    events = np.array([(r.geometry.flipped, bool(r.colour), r.greyscale, r.blur is not None) for r in recipes], float)
    correlation = np.corrcoef(events.T)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 4.5 / math.sqrt(1000)


def test_the_two_augmented_views_are_drawn_independently():
    pairs = [SimCLRViews(32, first="augmented").recipes((200, 300), seed) for seed in range(DRAWS)]
    areas = np.array([[view.geometry.box[2] * view.geometry.box[3] for view in pair] for pair in pairs], float)
    assert abs(np.corrcoef(areas.T)[0, 1]) < 4.5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0, 1.25])
def test_colour_factors_fill_the_ranges_that_the_strength_allows(strength):
    recipes = second_views(jitter=1, strength=strength)
    assert {tuple(sorted(name for name, _ in recipe.colour)) for recipe in recipes} == {tuple(sorted(COLOURS))}
    for name in COLOURS:
        # SimCLR, appendix A: jitter (0.8, 0.8, 0.8, 0.2) times the strength.
        spread, centre = (0.2 * strength, 0.0) if name == "hue" else (0.8 * strength, 1.0)
        factors = [dict(recipe.colour)[name] for recipe in recipes]
        assert centre - spread <= min(factors) < centre - 0.97 * spread
        assert centre + 0.97 * spread < max(factors) <= centre + spread
        assert stats.kstest(factors, stats.uniform(centre - spread, 2 * spread).cdf).pvalue > 1e-3


def test_without_strength_every_factor_is_neutral():
    for recipe in second_views(20, strength=0, jitter=1):
        assert dict(recipe.colour) == {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}


def test_colour_operations_come_in_every_order():
    orders = [tuple(name for name, _ in recipe.colour) for recipe in second_views(1000, jitter=1)]
    assert set(orders) == set(itertools.permutations(COLOURS))
    assert max(orders.count(order) for order in set(orders)) < 1000 / 24 + 4.5 * math.sqrt(1000 / 24)


def test_blur_is_uniform_between_a_tenth_and_two_pixels_at_side_224():
    recipes = second_views(blur=1)
    assert {recipe.blur_side for recipe in recipes} == {224}
    assert stats.kstest([recipe.blur for recipe in recipes], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


# Rendering


@pytest.mark.parametrize(
    ("operation", "factor"),
    [(name, factor) for name in COLOURS[:3] for factor in (0.0, 0.4, 1.7)] + [("hue", -0.2), ("hue", 0.1)],
)
def test_a_colour_operation_is_torchvisions(operation, factor):
    photo = scene(48, 48)
    expected = getattr(TF, f"adjust_{operation}")(photo, factor)
    assert_shows(whole(photo, colour=((operation, factor),)).render(photo, 48), expected)


def test_colour_operations_are_applied_in_the_recorded_order():
    photo = scene(48, 48)
    steps = (("contrast", 1.8), ("brightness", 1.8), ("hue", 0.2), ("saturation", 0.3))
    rendered = []
    for colour in (steps, steps[::-1]):
        expected = photo
        for operation, factor in colour:
            expected = getattr(TF, f"adjust_{operation}")(expected, factor)
        rendered.append(whole(photo, colour=colour).render(photo, 48))
        assert_shows(rendered[-1], expected)
    assert not torch.equal(*rendered)


def test_greyscale_is_torchvisions_and_comes_after_the_colours():
    photo = scene(48, 48)
    expected = TF.rgb_to_grayscale(TF.adjust_hue(photo, 0.2), num_output_channels=3)
    view = whole(photo, colour=(("hue", 0.2),), greyscale=True).render(photo, 48)
    assert_shows(view, expected)
    assert torch.equal(view[0], view[1])


def test_blur_at_side_224_is_torchvisions_with_kernel_21():
    photo = scene(224, 224)
    expected = TF.gaussian_blur(to_tensor(photo), kernel_size=21, sigma=1.3)
    torch.testing.assert_close(whole(photo, blur=1.3).render(photo, 224), expected, rtol=0, atol=1e-6)


def test_antialiasing_averages_a_checkerboard_and_without_it_single_pixels_are_picked():
    rows, columns = np.mgrid[:63, :63]
    board = np.repeat((((rows + columns) % 2) * 255).astype(np.uint8)[..., None], 3, axis=-1)
    photo = Image.fromarray(board)
    smooth, picked = (whole(photo).render(photo, 21, antialias) for antialias in (True, False))
    assert (smooth - 0.5).abs().max() < 0.1
    # A third of the side puts each sample on the centre of one pixel: 3 i + 1.
    assert torch.equal(picked[0], torch.from_numpy(board[1::3, 1::3, 0] / 255).float())


def test_antialiasing_makes_no_difference_to_an_enlargement():
    photo = scene(20, 20)
    smooth, picked = (whole(photo).render(photo, 60, antialias) for antialias in (True, False))
    torch.testing.assert_close(smooth, picked, rtol=0, atol=1.01 / 255)


# Bad arguments


@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("size", 0, "positive"),
        ("size", -3, "positive"),
        ("crop_fraction", 0, "(0, 1]"),
        ("crop_fraction", 1.1, "(0, 1]"),
        ("first", "center", "'centre' or 'augmented'"),
        ("scale", (0.0, 1.0), "0 < low <= high <= 1"),
        ("scale", (0.5, 0.2), "0 < low <= high <= 1"),
        ("scale", (0.5, 2.0), "0 < low <= high <= 1"),
        ("ratio", (-1, 2), "0 < low <= high, got"),
        ("ratio", (2, 1), "0 < low <= high, got"),
        ("flip", 1.5, "probability"),
        ("jitter", -0.1, "probability"),
        ("greyscale", float("nan"), "probability"),
        ("blur", 2, "probability"),
        ("strength", -1, "[0, 1.25]"),
        ("strength", 2, "[0, 1.25]"),
    ],
)
def test_an_argument_out_of_range_is_named_with_its_value_and_the_range(argument, value, remedy):
    shown = re.escape(str(value) if not isinstance(value, tuple) else f"({value[0]}, {value[1]})")
    with pytest.raises(UserError, match=rf"`views.{argument}` .*{re.escape(remedy)}.*{shown}"):
        SimCLRViews(**{"size": 32, argument: value})
