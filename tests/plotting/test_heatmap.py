import numpy as np
import pytest

from plotting.conftest import pixels_of, square_page
from twinsight.plotting import overlay
from twinsight.plotting.heatmap import show_photo
from twinsight.plotting.scale import color_limits, degeneracy, fading_colormap, is_signed, shared_scale


def drawn(photo, heatmap, **options) -> np.ndarray:
    figure, axes = square_page()
    overlay(axes, photo, heatmap, **options)
    return pixels_of(figure)


def bare(photo, saturation=0.2) -> np.ndarray:
    figure, axes = square_page()
    show_photo(axes, photo, saturation)
    return pixels_of(figure)


@pytest.mark.parametrize(("flip", "lit"), [((), (0, 0)), ((0,), (1, 0)), ((1,), (0, 1)), ((0, 1), (1, 1))])
def test_a_bright_corner_lights_that_corner_and_leaves_the_rest_of_the_photo_alone(photo, corner, flip, lit):
    difference = np.abs(drawn(photo, np.flip(corner, flip)) - bare(photo)).max(axis=2)
    quadrants = difference.reshape(2, 60, 2, 60).swapaxes(1, 2).max(axis=(2, 3))
    assert quadrants[lit] > 60
    quadrants[lit] = 0
    assert quadrants.max() == 0


def test_the_photo_is_drawn_pixel_for_pixel_when_the_axes_have_its_size():
    photo = np.random.default_rng(1).random((120, 120, 3))
    assert np.abs(bare(photo, saturation=1) - 255 * photo).max() < 4


def test_saturation_zero_leaves_a_grey_photo(photo):
    assert np.ptp(bare(photo, saturation=0), axis=2).max() == 0
    assert np.ptp(bare(photo, saturation=1), axis=2).max() > 50


@pytest.mark.parametrize("shape", [(1, 2), (7, 7), (3, 11), (40, 40), (200, 100)])
def test_a_map_of_any_size_covers_the_image_exactly(photo, shape):
    _, axes = square_page()
    artist = overlay(axes, photo[:30], np.arange(np.prod(shape), dtype=float).reshape(shape))
    assert list(artist.get_extent()) == [-0.5, 39.5, 29.5, -0.5]
    assert axes.get_xlim() == (-0.5, 39.5)
    assert axes.get_ylim() == (29.5, -0.5)


def test_stretching_a_map_is_bilinear(photo):
    flat = np.full((40, 40, 3), 0.5)
    stretched = drawn(flat, np.array([[0.0, 1.0]]), limit=1.0)[60, :, :]
    # Pixel x of 120 lies at 2 (x + 0.5) / 120 - 0.5 cells, and beyond the outer centres the map is constant.
    position = np.clip(2 * (np.arange(120) + 0.5) / 120 - 0.5, 0, 1)
    colors = fading_colormap(False, 0.75)(position)
    expected = 255 * (colors[:, 3:] * colors[:, :3] + (1 - colors[:, 3:]) * 0.5)
    assert np.abs(stretched - expected).max() < 5


def test_negative_values_count_only_in_a_signed_map(photo, corner):
    def top_left(heatmap, **options):
        return (drawn(photo, heatmap, **options) - bare(photo))[:20, :20].mean(axis=(0, 1))

    both = corner - np.flip(corner)
    warm, cold = top_left(both, signed=True), top_left(-both, signed=True)
    assert warm[0] > warm[2] + 30
    assert cold[2] > cold[0] + 30
    assert np.array_equal(drawn(photo, -both, signed=None), drawn(photo, -both, signed=True))
    assert np.abs(top_left(-both, signed=False)).max() == 0


def test_whether_a_map_is_signed_is_decided_at_five_percent_of_the_largest_magnitude():
    assert not is_signed([[-0.05, 1.0]])
    assert is_signed([[-0.051, 1.0]])
    assert not is_signed([[0.0, 0.0]])
    assert not is_signed([[np.nan, np.nan]])
    assert is_signed([[-1.0, np.inf]])


def test_an_outlier_does_not_hide_the_rest_of_the_map(photo):
    heatmap = np.zeros((40, 40))
    heatmap[:20] = 1.0
    heatmap[39, 39] = 1000.0
    assert color_limits(heatmap, signed=False) == (0.0, 1.0)
    assert color_limits(heatmap - 2, signed=True) == (-2.0, 2.0)
    assert np.abs(drawn(photo, heatmap) - bare(photo))[:50].mean() > 30


def test_a_map_that_is_zero_nearly_everywhere_is_scaled_by_its_maximum():
    heatmap = np.zeros((100, 100))
    heatmap[3, 4] = 0.25
    assert color_limits(heatmap, signed=False) == (0.0, 0.25)
    assert color_limits(-heatmap, signed=True) == (-0.25, 0.25)


def test_an_offset_shared_by_all_pixels_is_not_drawn(photo, corner):
    heatmap = np.repeat(np.repeat(corner, 10, axis=0), 10, axis=1)
    assert color_limits(heatmap + 5, signed=False) == (5.0, 6.0)
    assert np.array_equal(drawn(photo, heatmap + 5), drawn(photo, heatmap))


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-30])
@pytest.mark.parametrize("signed", [None, False, True])
def test_a_constant_map_leaves_the_photo_and_a_note(photo, value, signed):
    figure, axes = square_page(400)
    artist = overlay(axes, photo, np.full((5, 5), value), signed=signed)
    figure.colorbar(artist)
    assert axes.texts[0].get_text().startswith("degenerate map\nconstant at")
    pixels_of(figure)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_map_that_is_not_finite_leaves_the_photo_and_a_note(photo, corner, bad, everywhere):
    heatmap = np.full((8, 8), bad) if everywhere else corner
    heatmap[7, 7] = bad
    figure, axes = square_page(400)
    artist = overlay(axes, photo, heatmap, signed=None)
    assert axes.texts[0].get_text() == "degenerate map\nvalues are not finite"
    note = pixels_of(figure)
    assert (note[195:205, 120:280] > 200).mean() > 0.3, "the note is visible"
    assert np.isfinite(artist.get_clim()).all()
    axes.texts[0].remove()
    show_photo(axes_of_photo := square_page(400)[1], photo, 0.2)
    assert np.array_equal(pixels_of(figure), pixels_of(axes_of_photo.figure))


def test_rounding_noise_counts_as_constant():
    noise = 1e-8 * np.random.default_rng(0).random((5, 5))
    assert degeneracy(0.5 + noise).startswith("constant")
    assert degeneracy(noise - 1.0 * np.eye(5)) == "no positive value"
    assert degeneracy(noise) is None, "small is not constant"


def test_a_degenerate_map_has_no_say_in_the_shared_scale(corner):
    assert shared_scale([corner, np.full((2, 2), 9.0)]) == (False, (0.0, 1.0))
    assert shared_scale([np.full((2, 2), np.nan), np.zeros((2, 2))]) == (False, None)


def test_opacity_grows_with_magnitude_from_nothing_to_alpha():
    opacity = fading_colormap(False, 0.6)(np.linspace(0, 1, 50))[:, 3]
    assert opacity[0] == 0
    assert opacity[-1] == pytest.approx(0.6)
    assert (np.diff(opacity) > 0).all()
    signed = fading_colormap(True, 0.6)(np.arange(512))[:, 3]
    assert np.allclose(signed, signed[::-1])
    assert signed[255:257].max() < 0.01


@pytest.mark.parametrize(
    ("image", "heatmap", "options", "message"),
    [
        (np.zeros((3, 8, 8)), np.eye(2), {}, r"`image` must have shape \(H, W, 3\).*channels last"),
        (np.zeros((8, 8)), np.eye(2), {}, r"`image` must have shape"),
        (np.zeros((8, 8, 3), np.uint8), np.eye(2), {}, r"`image` must hold floats.*uint8.*divide"),
        (np.full((8, 8, 3), -2.0), np.eye(2), {}, r"`image` must lie in \[0, 1\].*normalisation"),
        (np.full((8, 8, 3), np.nan), np.eye(2), {}, r"`image` must lie in \[0, 1\]"),
        (np.zeros((8, 8, 3)), np.zeros((1, 2, 2)), {}, r"`heatmap` must have shape \(h, w\).*batch"),
        (np.zeros((8, 8, 3)), np.zeros((0, 2)), {}, r"`heatmap` must have shape"),
        (np.zeros((8, 8, 3)), np.eye(2), {"alpha": 0}, r"`alpha` must lie in \(0, 1\], got 0"),
        (np.zeros((8, 8, 3)), np.eye(2), {"limit": 0.0}, r"`limit` must be a finite positive number"),
        (np.zeros((8, 8, 3)), np.eye(2), {"limit": (0.0, 1.0), "signed": True}, r"`limit` of a signed map"),
        (np.zeros((8, 8, 3)), np.eye(2), {"saturation": 2}, r"`saturation` must lie in \[0, 1\], got 2"),
    ],
)
def test_bad_arguments_are_refused_by_name(image, heatmap, options, message):
    with pytest.raises(ValueError, match=message):
        overlay(square_page()[1], image, heatmap, **options)
