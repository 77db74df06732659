"""Banks encode each content once, chunks have few sizes, ranks and baselines are what they say."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as F

from toy import tiny_maps, tiny_model, tiny_pair
from twinsight.engine import (
    BASELINES,
    CHUNK_SIZE,
    Execution,
    NonFiniteEmbedding,
    PairBank,
    baseline_image,
    content_digest,
    erased_by_rank,
    erased_windows,
    generator,
    pixel_ranks,
    revealed_by_rank,
    seed_of,
    seeds_from_pixels,
)
from twinsight.errors import UserError
from twinsight.explainers import ConditionalOcclusion, GradCAM
from twinsight.metrics.functional import insertion_deletion
from twinsight.models import TwoViewModel, small_two_view

NORMALIZATION = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))


def recording(model):
    """The sizes of the batches that go through a model's trunk from now on."""
    sizes = []
    model.trunk.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


def images(count=1, seed=0):
    return tiny_pair(seed, count)[0]


def windows(image, count, fill=None):
    """``count`` versions of an image, each without one window."""
    boxes = torch.tensor([(index % 28, index // 28, 5, 5) for index in range(count)]).view(-1, 4)
    return erased_windows(image, torch.zeros_like(image) if fill is None else fill, boxes)


def test_each_distinct_content_is_encoded_once():
    model = tiny_model(0)
    sizes, bank, (first, second) = recording(model), PairBank(model), images(2)
    for image in (first, second, first.clone(), second[:, :, :]):
        bank.embedding(image)
        bank.features(image)
        bank.embedding(image, view=2)  # the same path for both views of a symmetric model
    assert sizes == [1, 1]
    assert bank.forwards == 2
    for _ in range(2):
        bank.perturbed(windows(first, 3))
        bank.perturbed(windows(first.clone(), 3))
    assert sizes == [1, 1, CHUNK_SIZE // 4]
    assert bank.forwards == 2 + 3


@pytest.mark.parametrize(
    "different",
    [
        lambda image: windows(image, 4),
        lambda image: windows(image, 3, fill=torch.ones_like(image)),
        lambda image: windows(image + 1, 3),
        lambda image: revealed_by_rank(image, torch.zeros_like(image), torch.arange(1024).view(32, 32), 256, 4),
        lambda image: erased_by_rank(image, torch.zeros_like(image), torch.arange(1024).view(32, 32), 256, 4),
        lambda image: erased_by_rank(image, torch.zeros_like(image), torch.arange(1024).flip(0).view(32, 32), 256, 4),
        lambda image: erased_by_rank(image, torch.zeros_like(image), torch.arange(1024).view(32, 32), 200, 4),
        lambda image: revealed_by_rank(image, torch.zeros_like(image), torch.arange(1024).view(32, 32), 512, 4),
    ],
)
def test_versions_that_differ_in_anything_are_not_confused(different):
    model, (image,) = tiny_model(0), images()
    bank = PairBank(model)
    bank.perturbed(windows(image, 3))
    for path, step in ((erased_by_rank, 512), (revealed_by_rank, 300)):
        bank.perturbed(path(image, torch.zeros_like(image), torch.arange(1024).view(32, 32), step, 4))
    perturbation = different(image)
    before = bank.forwards
    found = bank.perturbed(perturbation)
    assert bank.forwards == before + len(perturbation)
    expected = model(perturbation.versions(torch.arange(len(perturbation))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_revealed_and_erased_versions_of_one_ranking_are_not_confused():
    model, (image,) = tiny_model(0), images()
    bank, ranks, fill = PairBank(model), torch.arange(1024).view(32, 32), torch.zeros_like(image)
    for path in (revealed_by_rank, erased_by_rank):
        perturbation = path(image, fill, ranks, 256, 4)
        expected = model(perturbation.versions(torch.arange(3)))
        torch.testing.assert_close(bank.perturbed(perturbation), expected, rtol=0, atol=1e-5)


def test_an_embedding_is_that_of_the_model():
    model, (image,) = tiny_model(0), images()
    torch.testing.assert_close(PairBank(model).embedding(image), model(image[None])[0])
    torch.testing.assert_close(PairBank(model).features(image), model.features(image[None])[0])


def test_the_sides_of_an_asymmetric_model_are_kept_apart():
    model, (image,) = tiny_model(0, asymmetric=True), images()
    bank = PairBank(model)
    first, second = bank.embedding(image, view=1), bank.embedding(image, view=2)
    torch.testing.assert_close(first, model(image[None], view=1)[0])
    torch.testing.assert_close(second, model(image[None], view=2)[0])
    assert not torch.allclose(first, second)
    assert bank.forwards == 2
    one, other = (bank.perturbed(windows(image, 3), view) for view in (1, 2))
    assert not torch.allclose(one, other)
    assert bank.forwards == 2 + 6


def test_the_oldest_embeddings_make_room_for_new_ones():
    model = tiny_model(0)
    first, second, third = images(3)
    size = 12 * 4 * 4 * 4 + 8 * 4  # bytes of a feature map and an embedding in single precision
    bank = PairBank(model, capacity=2 * size)
    for image in (first, second):
        bank.embedding(image)
    bank.features(first)  # used again: the second is now the oldest
    bank.embedding(first)
    assert bank.forwards == 2
    bank.embedding(third)
    assert bank._bytes <= bank.capacity
    bank.embedding(first)
    assert bank.forwards == 3
    bank.embedding(second)
    assert bank.forwards == 4


def test_a_bank_too_small_for_anything_still_answers():
    model, (image,) = tiny_model(0), images()
    bank = PairBank(model, capacity=1)
    torch.testing.assert_close(bank.embedding(image), model(image[None])[0])
    assert bank.perturbed(windows(image, 40)).shape == (40, 8)
    assert bank.perturbed(windows(image, 0)).shape == (0, 8)


def test_a_cleared_bank_forgets_embeddings_and_remembers_its_counter():
    model, (image,) = tiny_model(0), images()
    bank = PairBank(model)
    bank.embedding(image)
    bank.clear()
    assert bank._bytes == 0
    bank.embedding(image)
    assert bank.forwards == 2


@pytest.mark.parametrize("chunk_size", [1, 5, 32])
@pytest.mark.parametrize("count", [0, 1, 5, 31, 32, 33, 64])
def test_the_model_sees_whole_chunks_what_holds_the_rest_or_single_views_only(chunk_size, count):
    model, (image,) = tiny_model(0), images()
    sizes, bank = recording(model), PairBank(model, chunk_size)
    bank.embedding(image)
    assert bank.perturbed(windows(image, count)).shape == (count, 8)
    rest = {(5, 1): [1], (5, 31): [1], (5, 32): [2], (5, 33): [5], (5, 64): [5]}
    rest |= {(32, 1): [1], (32, 5): [8], (32, 31): [32], (32, 33): [1]}
    assert sizes == [1] + [chunk_size] * (count // chunk_size) + rest.get((chunk_size, count), [])
    assert bank.filled_up(count) == sum(sizes[1:])
    assert bank.forwards == 1 + count


def test_a_network_that_is_compiled_sees_chunks_of_one_size():
    assert PairBank(tiny_model(0), 32, execution=Execution(compile=True)).filled_up(33) == 64


def test_what_fails_in_either_layout_is_no_reason_to_leave_channels_last():
    model, (image,) = tiny_model(0), images()
    bank, layouts = PairBank(model), []

    def look(module, inputs):
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        if len(layouts) < 3:
            raise RuntimeError("a hook of somebody's")

    model.trunk.register_forward_pre_hook(look)
    with pytest.raises(RuntimeError, match="a hook of somebody's"):
        bank.embedding(image)
    bank.embedding(image)
    assert layouts == [True, False, True]


def test_whole_explanations_and_metrics_see_whole_chunks_what_holds_the_rest_or_single_views_only():
    model, views, maps = tiny_model(0), tiny_pair(0, 2), tiny_maps(0, 2)
    sizes, bank = recording(model), PairBank(model, chunk_size=20)
    ConditionalOcclusion(model, window=9, stride=5)(*views, bank=bank)
    GradCAM(model)(*views, bank=bank)
    insertion_deletion(model, *views, *maps, points=30, bank=bank)
    assert set(sizes) == {1, 10, 20}


def test_padding_repeats_the_last_version_and_never_shows():
    model, (image,) = tiny_model(0), images()
    seen = []
    model.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    perturbation = windows(image, 3)
    PairBank(model, chunk_size=5).perturbed(perturbation)
    versions = perturbation.versions(torch.arange(3))
    assert torch.equal(seen[0], versions[[0, 1, 2, 2, 2]])


def test_the_memory_layout_of_an_image_does_not_matter():
    model, (image,) = small_two_view(widths=(8, 16, 16), blocks=1, input_size=32).eval(), images()
    other = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    one, another = PairBank(model), PairBank(model)
    assert torch.equal(one.features(image), another.features(other))
    assert torch.equal(one.embedding(image), another.embedding(other))
    assert torch.equal(one.perturbed(windows(image, 40)), another.perturbed(windows(other, 40)))


def test_chunk_sizes_agree_to_rounding():
    model, views, maps = tiny_model(0), tiny_pair(0, 2), tiny_maps(0, 2)
    found = {}
    for size in (4, 32, 64):
        bank = PairBank(model, size)
        explanation = ConditionalOcclusion(model, window=9, stride=5)(*views, bank=bank)
        curves = insertion_deletion(model, *views, *maps, points=50, bank=bank)
        found[size] = [
            explanation.score,
            explanation.map1,
            explanation.map2,
            curves.si,
            curves.sd,
            curves.ci,
            curves.cd,
        ]
    for size in (4, 64):
        for one, other in zip(found[size], found[32], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.fixture
def small_device(monkeypatch):
    """``small_device(model, 10)``: more than ten images at once do not fit."""

    def limit(model, images):
        def check(module, inputs):
            if len(inputs[0]) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")

        model.trunk.register_forward_pre_hook(check)

    return limit


def test_memory_may_run_out_when_some_chunks_are_done():
    model, (image,) = tiny_model(0), images(1)
    expected = PairBank(model).perturbed(windows(image, 40))
    sizes = []

    def second_fails(module, inputs):
        sizes.append(len(inputs[0]))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.trunk.register_forward_pre_hook(second_fails)
    found = PairBank(model, chunk_size=16).perturbed(windows(image, 40))
    assert sizes == [16, 16] + [8] * 5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_chunks_are_halved_until_they_fit_and_stay_so(small_device, caplog):
    model, (image, other) = tiny_model(0), images(2)
    expected = PairBank(model).perturbed(windows(image, 40))
    small_device(model, 10)
    sizes, bank = recording(model), PairBank(model, chunk_size=32)
    found = bank.perturbed(windows(image, 40))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert bank.chunk_size == 8
    assert caplog.text.count("out of device memory") == 2
    assert bank.forwards == 40  # what did not fit is not counted twice
    sizes.clear()
    bank.perturbed(windows(other, 20))
    assert sizes == [8, 8, 4]


def test_a_device_without_room_for_one_image_says_so(small_device):
    model, (image,) = tiny_model(0), images()
    small_device(model, 0)
    bank = PairBank(model)
    with pytest.raises(torch.OutOfMemoryError):
        bank.perturbed(windows(image, 3))
    assert bank.chunk_size == 1


def test_an_embedding_that_is_not_finite_is_refused_and_not_kept():
    model, (image,) = tiny_model(0), images()
    bank = PairBank(model)
    for value in (torch.nan, torch.inf):
        broken = image.clone()
        broken[0, 0, 0] = value
        for _ in range(2):
            with pytest.raises(NonFiniteEmbedding, match=r"embedding of view 2 holds NaN.*`model\.checkpoint`"):
                bank.embedding(broken, view=2)


def test_a_chunk_size_below_one_is_refused():
    with pytest.raises(UserError, match="`chunk_size` must be at least 1, got 0"):
        PairBank(tiny_model(0), chunk_size=0)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_what_a_bank_keeps_can_take_part_in_gradients_whoever_asked_first(mode):
    model, views, maps = tiny_model(0), tiny_pair(0, 1), tiny_maps(0, 1)
    bank = PairBank(model)
    with mode():
        insertion_deletion(model, *views, *maps, points=8, bank=bank)
        bank.embedding(views[0][0].clone())
        bank.perturbed(windows(views[0][0].clone(), 3))
    assert not any(kept.is_inference() or kept.requires_grad for kept in bank._kept.values())
    shared = GradCAM(model)(*views, bank=bank)
    assert torch.equal(shared.map1, GradCAM(model)(*views).map1)


class InPlace(nn.Module):
    """Pooling that overwrites what it is given, as a head may that begins with an in-place ReLU."""

    def forward(self, features):
        return torch.relu_(features.sub_(0.3)).mean(dim=(-2, -1))


def test_a_network_that_works_in_place_does_not_spoil_views_or_what_is_kept():
    trunk = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3))
    model = TwoViewModel(trunk, pool=InPlace(), input_size=32).eval().requires_grad_(False)
    (image,) = images()
    before, bank = image.clone(), PairBank(model)
    features = bank.features(image).clone()
    embedding = bank.embedding(image).clone()
    assert torch.equal(image, before)
    assert torch.equal(bank.features(image), features)
    assert torch.equal(bank.embedding(image), embedding)
    torch.testing.assert_close(embedding, model(before.clone()[None])[0])
    view1, view2 = tiny_pair(3, 1)
    bank = PairBank(model)
    first, second = GradCAM(model)(view1, view2, bank=bank), GradCAM(model)(view1, view2, bank=bank)
    assert torch.equal(first.map1, second.map1)
    assert first.map1.abs().max() > 0


def test_ranks_are_a_permutation_in_descending_order():
    heatmap = tiny_maps(0, 1)[0][0]
    ranks = pixel_ranks(heatmap, seed=0)
    assert ranks.shape == heatmap.shape
    assert ranks.flatten().sort().values.tolist() == list(range(1024))
    ordered = heatmap.flatten()[ranks.flatten().argsort()]
    assert (ordered.diff() < 0).all()
    assert torch.equal(pixel_ranks(heatmap, seed=1), ranks)  # without ties no seed matters


def test_ties_are_broken_by_the_seed_and_not_by_the_place():
    flat = torch.zeros(16, 16)
    ranks = pixel_ranks(flat, seed=7)
    assert torch.equal(ranks, pixel_ranks(flat, seed=7))
    assert not torch.equal(ranks, pixel_ranks(flat, seed=8))
    # The scan order would correlate perfectly; a random permutation of 256 stays within four standard deviations.
    assert abs(np.corrcoef(ranks.flatten(), np.arange(256))[0, 1]) < 4 / 16
    halves = torch.cat([torch.ones(8, 16), torch.zeros(8, 16)])
    assert pixel_ranks(halves, seed=7)[:8].max() == 127
    assert pixel_ranks(halves, seed=7)[8:].min() == 128


def test_ties_do_not_depend_on_the_values_or_the_type_of_the_map():
    heatmap = torch.zeros(8, 8)
    heatmap[2, 3] = 1
    ranks = pixel_ranks(heatmap, seed=3)
    assert torch.equal(pixel_ranks(100 * heatmap.double() - 5, seed=3), ranks)
    assert torch.equal(pixel_ranks(heatmap.half(), seed=3), ranks)


def test_infinity_ranks_first_and_nan_last():
    nan, inf = torch.nan, torch.inf
    ranks = pixel_ranks(torch.tensor([[nan, -inf, 0.0], [inf, 3e38, nan]]), seed=0)
    assert ranks[1, 0] == 0
    assert ranks[1, 1] == 1
    assert ranks[0, 2] == 2
    assert ranks[0, 1] == 3
    assert {int(ranks[0, 0]), int(ranks[1, 2])} == {4, 5}


def test_paths_reveal_and_erase_pixels_by_rank():
    image, fill = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    ranks = torch.tensor([[4, 0, 2], [1, 5, 3]])
    revealed = revealed_by_rank(image, fill, ranks, step=2, steps=3).versions(torch.arange(2))
    assert revealed[0, 0].tolist() == [[0, 1, 0], [1, 0, 0]]
    assert revealed[1, 0].tolist() == [[0, 1, 1], [1, 0, 1]]
    erased = erased_by_rank(image, fill, ranks, step=2, steps=3).versions(torch.arange(2))
    assert torch.equal(erased, 1 - revealed)


def test_windows_are_erased_on_all_channels_and_may_leave_the_image():
    image, fill = torch.ones(2, 4, 4), torch.full((2, 4, 4), 0.5)
    boxes = torch.tensor([[1, 2, 2, 1], [3, 3, 9, 9]])
    first, second = erased_windows(image, fill, boxes).versions(torch.arange(2))
    expected = torch.ones(4, 4)
    expected[1:3, 2] = 0.5
    assert torch.equal(first, expected.expand(2, 4, 4))
    assert (second == 0.5).nonzero().tolist() == [[0, 3, 3], [1, 3, 3]]


def normalized(pixels):
    return F.normalize(pixels, *map(list, NORMALIZATION))


@pytest.fixture
def pixels():
    return torch.rand(3, 16, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("normalization", [None, NORMALIZATION])
def test_baselines_are_named_in_pixel_space(pixels, normalization):
    space = normalized if normalization else (lambda image: image)
    mean = pixels.mean(dim=(1, 2), keepdim=True).expand_as(pixels)
    expected = {
        "black": torch.zeros_like(pixels),
        0.0: torch.zeros_like(pixels),
        1: torch.ones_like(pixels),
        0.25: torch.full_like(pixels, 0.25),
        "mean": mean,
        "blur": F.gaussian_blur(pixels, [11, 11], [5.0, 5.0]),
    }
    for name, image in expected.items():
        found = baseline_image(name, space(pixels), normalization)
        torch.testing.assert_close(found, space(image), rtol=0, atol=1e-5)
    zero = baseline_image("input_zero", space(pixels), normalization)
    assert torch.equal(zero, torch.zeros_like(pixels))


def test_noise_is_uniform_pixels_of_the_pair(pixels):
    image = normalized(torch.rand(3, 64, 64))
    drawn = baseline_image("noise", image, NORMALIZATION, seed=5)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in NORMALIZATION)
    back = drawn * std + mean
    assert back.min() >= -1e-6
    assert back.max() <= 1 + 1e-6
    assert torch.histc(back, 4, 0, 1).min() > 0.22 * back.numel()
    assert torch.equal(drawn, baseline_image("noise", normalized(torch.rand(3, 64, 64)), NORMALIZATION, seed=5))
    assert not torch.equal(drawn, baseline_image("noise", image, NORMALIZATION, seed=6))


def test_baselines_do_not_change_or_share_the_image(pixels):
    for name in (*BASELINES, 0.5):
        before = pixels.clone()
        found = baseline_image(name, pixels, NORMALIZATION)
        assert found.shape == pixels.shape
        assert found.dtype == pixels.dtype
        found.zero_()
        assert torch.equal(pixels, before)


@pytest.mark.parametrize("baseline", ["blurred", None, True, [0.5]])
def test_an_unknown_baseline_is_refused_with_the_valid_ones(pixels, baseline):
    with pytest.raises(
        UserError, match="`baseline` must be one of black, mean, blur, noise, input_zero or a pixel value"
    ):
        baseline_image(baseline, pixels, None)


def test_a_view_too_small_to_blur_is_refused_with_its_size():
    with pytest.raises(UserError, match=r"at least 6 x 6 pixels, got \(5, 8\)"):
        baseline_image("blur", torch.rand(3, 5, 8), None)


def test_seeds_depend_on_the_pair_alone():
    view = images(3)
    together = seeds_from_pixels(view)
    assert together.dtype == torch.int64
    assert together.tolist() == [seeds_from_pixels(one[None]).item() for one in view]
    assert len(set(together.tolist())) == 3
    assert seed_of(0, "a", 1) != seed_of(0, "a", 2) != seed_of(1, "a", 2)
    assert 0 <= seed_of(0, "a") < 2**63


def test_generators_of_different_purposes_draw_different_numbers():
    draws = [torch.rand(4, generator=generator(seed, *use)) for seed in (0, 1) for use in (("a",), ("b",), ("a", 1))]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(draws, 2))
    assert torch.equal(draws[0], torch.rand(4, generator=generator(0, "a")))


def test_digests_see_values_shape_and_type_and_no_layout():
    image = torch.arange(6.0).view(2, 3)
    assert content_digest(image) == content_digest(image.T.contiguous().T)
    others = [image + 1, image.view(3, 2), image.double(), image.flip(0)]
    assert len({content_digest(other) for other in [image, *others]}) == 5


def test_a_blurred_baseline_is_not_rounded_by_mixed_precision():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = baseline_image("blur", image, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = baseline_image("blur", image, None)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
