"""Image transforms: what they leave alone, what they draw, and that the generator decides."""

import math

import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional as F

from twinsight.engine.transforms import TRANSFORMS, blur, colour_jitter, combination, erase, greyscale, solarize

ALL = {**TRANSFORMS, "erase": erase}


@pytest.fixture
def pixels():
    return torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ALL)
def test_a_transform_is_a_pure_function_of_pixels_and_generator(name, pixels):
    before = pixels.clone()
    first, again = (ALL[name](pixels, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(pixels, before)
    assert first.shape == pixels.shape
    assert first.dtype == pixels.dtype
    for seed in range(20):
        drawn = ALL[name](pixels, seeded(seed))
        assert drawn.min() >= 0
        assert drawn.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["colour_jitter", "blur", "combination", "erase"])
def test_other_seeds_draw_other_images(name):
    large = torch.rand(3, 224, 224, generator=seeded(1))
    assert not torch.equal(ALL[name](large, seeded(1)), ALL[name](large, seeded(2)))


@pytest.mark.parametrize("name", ["colour_jitter", "greyscale", "solarize"])
def test_pixels_stay_where_they_are(name, pixels):
    """Moved pixels and transformed ones commute, for what treats every pixel alike."""
    found, moved = (ALL[name](image, seeded(5)) for image in (pixels, pixels.flip(-1).roll(3, dims=-2)))
    torch.testing.assert_close(moved, found.flip(-1).roll(3, dims=-2), rtol=0, atol=1e-5)


def test_greyscale_has_three_equal_channels(pixels):
    grey = greyscale(pixels, seeded())
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    luma = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    torch.testing.assert_close(grey[0], luma, rtol=0, atol=1e-3)


def test_solarize_inverts_the_bright():
    pixels = torch.tensor([0.0, 0.49, 0.51, 0.8, 1.0]).expand(3, 1, 5)
    torch.testing.assert_close(solarize(pixels, seeded())[0, 0], torch.tensor([0.0, 0.49, 0.49, 0.2, 0.0]))


def test_jitter_of_one_kind_is_what_pillow_does():
    data = torch.randint(256, (3, 16, 16), generator=seeded(1), dtype=torch.uint8)
    photo, pixels = Image.fromarray(data.permute(1, 2, 0).numpy()), data / 255
    none = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    torch.testing.assert_close(colour_jitter(pixels, seeded(2), **none), pixels, rtol=0, atol=1e-5)
    for kind, enhance in (("brightness", ImageEnhance.Brightness), ("saturation", ImageEnhance.Color)):
        changed = colour_jitter(pixels, seeded(2), **{**none, kind: 0.5})
        errors = [
            (F.pil_to_tensor(enhance(photo).enhance(factor / 100)) / 255 - changed).abs().mean()
            for factor in range(50, 151)
        ]
        assert min(errors) < 0.01
        assert max(errors) > 0.05


def test_jitter_is_drawn_over_its_whole_range():
    grey = torch.full((3, 4, 4), 0.4)
    none = {"contrast": 0, "saturation": 0, "hue": 0}
    factors = torch.stack([colour_jitter(grey, seeded(n), **none).mean() / 0.4 for n in range(400)])
    assert 0.2 <= factors.min() < 0.25
    assert 1.75 < factors.max() <= 1.8 + 1e-5
    assert factors.mean().item() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("transform", [colour_jitter, blur, greyscale, solarize, erase])
def test_a_probability_is_how_often_something_happens(transform):
    pixels = torch.rand(3, 24, 24, generator=seeded(1))
    assert torch.equal(transform(pixels, seeded(), probability=0.0), pixels)
    sigma = {"sigma": (20.0, 20.0)} if transform is blur else {}
    changed = sum(not torch.equal(transform(pixels, seeded(n), probability=0.3, **sigma), pixels) for n in range(400))
    assert changed / 400 == pytest.approx(0.3, abs=0.07)  # three deviations


@pytest.mark.parametrize(("side", "kernel"), [(224, 21), (448, 41), (112, 11), (32, 3)])
def test_blur_scales_with_the_image(side, kernel):
    pixels = torch.zeros(1, side, side)
    pixels[0, side // 2, side // 2] = 1
    spread = blur(pixels, seeded(), sigma=(1.5, 1.5))
    expected = F.gaussian_blur(pixels, [kernel, kernel], [1.5 * side / 224] * 2)
    torch.testing.assert_close(spread, expected, rtol=0, atol=1e-6)


def test_blur_draws_its_sigma_from_the_range():
    pixels = torch.zeros(1, 224, 224)
    pixels[0, 112, 112] = 1
    peaks = [float(blur(pixels, seeded(n)).max()) for n in range(100)]
    assert max(peaks) > 0.9  # sigma 0.1 leaves a point a point
    assert min(peaks) == pytest.approx(1 / (2 * math.pi * 4), rel=0.1)  # sigma 2


def test_erased_rectangles_have_the_areas_and_ratios_asked_for():
    pixels = torch.ones(3, 60, 80)
    areas, ratios, tops = [], [], []
    for seed in range(300):
        gone = erase(pixels, seeded(seed))[0] == 0
        rows, columns = gone.any(dim=1).nonzero()[:, 0], gone.any(dim=0).nonzero()[:, 0]
        tall, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert gone.sum() == tall * wide  # one full rectangle
        areas.append(tall * wide / 4800)
        ratios.append(tall / wide)
        tops.append(int(rows[0]) / max(1, 60 - tall))
    assert 0.015 < min(areas) < 0.04
    assert 0.3 < max(areas) <= 0.34
    assert 0.25 < min(ratios) < 0.5 < 2 < max(ratios) < 3.6
    assert min(tops) == 0
    assert max(tops) == 1


def test_an_erased_rectangle_shows_the_value_given():
    pixels = torch.zeros(3, 20, 20)
    assert set(erase(pixels, seeded(1), value=0.25).unique().tolist()) == {0.0, 0.25}
    assert torch.equal(erase(pixels, seeded(1), area=(1.0, 1.0), ratio=(3.0, 3.0), value=1.0), pixels)  # never fits


def test_the_combination_always_jitters_and_sometimes_does_the_rest(pixels):
    images = [combination(pixels, seeded(n)) for n in range(200)]
    assert not any(torch.equal(image, pixels) for image in images)
    grey = sum(torch.allclose(image[0], image[1], atol=1e-6) for image in images)
    assert grey / 200 == pytest.approx(0.2, abs=0.09)
