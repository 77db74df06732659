"""Pixel invariance: its augmentations, its two surrogates, and what becomes of their weights."""

import numpy as np
import pytest
import torch
from torch import nn

from oracles import invariance as oracle
from toy import AsymmetricModel, tiny_model, tiny_pair
from twinsight.engine import PairBank
from twinsight.engine.transforms import erase, rescale
from twinsight.errors import UserError
from twinsight.explainers import PixelInvariance
from twinsight.explainers.surrogates import fit_logistic, fit_ridge, nmf_targets
from twinsight.models import TwoViewModel


def problem(seed=0, count=7, side=4):
    """Augmented images, the plain one, labels, weights to start from and targets, in double precision."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, side, side, generator=draw, dtype=torch.float64)
    plain = torch.rand(3, side, side, generator=draw, dtype=torch.float64)
    labels, targets = torch.rand(2, count, generator=draw, dtype=torch.float64)
    return images, plain, labels, 0.2 * torch.randn(plain.shape, generator=draw, dtype=torch.float64), targets


@pytest.mark.parametrize("nmf_weight", [0.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_logistic_surrogate_descends_the_published_loss(seed, nmf_weight):
    images, plain, labels, initial, targets = problem(seed)
    expected, bias = oracle.published_surrogate(
        plain, images, labels, initial, 0.03, 12, targets=targets if nmf_weight else None, nmf_weight=nmf_weight
    )
    found = fit_logistic(images, plain, labels, initial, 0.03, 12, 0.2, targets, nmf_weight)
    torch.testing.assert_close(found.weights, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.bias, bias, rtol=1e-9, atol=1e-12)
    predicted = torch.stack([torch.sigmoid((expected * (plain + image)).sum() / 2 + bias) for image in images])
    r2 = 1 - (labels - predicted).square().sum() / (labels - labels.mean()).square().sum()
    assert found.r2_in_sample.item() == pytest.approx(r2.item(), abs=1e-9)
    assert found.r2 is None


@pytest.mark.parametrize(("count", "side"), [(9, 4), (60, 2)], ids=["fewer samples than pixels", "more"])
def test_ridge_takes_the_strength_that_misses_left_out_labels_least(count, side):
    images, _, labels, _, _ = problem(3, count, side)
    labels = labels + images[:, 0, 0, 0]
    scale = (images - images.mean(dim=0)).square().flatten(1).sum(dim=1).mean().item()
    errors = {
        s: oracle.left_out_errors(images, labels, s).square().sum().item() for s in scale * np.logspace(-6, 2, 25)
    }
    best = min(errors, key=errors.get)
    expected, bias = oracle.ridge(images, labels, best)
    found = fit_ridge(images, labels)
    torch.testing.assert_close(found.weights, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.bias, bias, rtol=1e-6, atol=1e-9)
    spread = (labels - labels.mean()).square().sum()
    assert found.r2.item() == pytest.approx(1 - errors[best] / spread.item(), abs=1e-6)
    missed = labels - torch.stack([(expected * image).sum() + bias for image in images])
    assert found.r2_in_sample.item() == pytest.approx(1 - (missed.square().sum() / spread).item(), abs=1e-6)


def test_a_second_target_of_ridge_is_that_of_the_sum_of_squares():
    """The gradient of both sums of squares and the penalty is zero at the fit, whatever the strength chosen."""
    images, _, labels, _, targets = problem(4, 40, 2)
    weight = 0.7
    found = fit_ridge(images, labels, targets, weight)
    predicted = images.flatten(1) @ found.weights.flatten() + found.bias
    slope = (predicted - labels) + weight * (predicted - targets)
    assert abs(slope.sum().item()) < 1e-9
    pull = images.flatten(1).T @ slope
    strength = -pull / found.weights.flatten()
    assert strength.min().item() == pytest.approx(strength.max().item(), rel=1e-4)
    assert strength.min() > 0


def test_the_targets_of_the_nmf_variant_are_mean_factors():
    draw = torch.Generator().manual_seed(0)
    parts = torch.rand(30, 2, generator=draw)
    embeddings = parts @ torch.block_diag(torch.ones(1, 4), torch.ones(1, 4)) - 0.0
    embeddings = torch.cat([embeddings, -torch.rand(30, 3, generator=draw)], dim=1)  # what is negative plays no part
    found = nmf_targets(embeddings, components=2)
    assert found.shape == (30,)
    assert torch.equal(found, nmf_targets(embeddings, components=2))
    # Factors are defined up to a scale each: the mean is a positive combination of the two.
    combination = torch.linalg.lstsq(parts, found.unsqueeze(1)).solution
    torch.testing.assert_close(parts @ combination, found.unsqueeze(1), rtol=0, atol=1e-2)
    assert (combination > 0).all()


def test_targets_without_a_positive_embedding_are_zero():
    assert nmf_targets(-torch.rand(5, 3)).tolist() == [0.0] * 5


class Region(nn.Module):
    """Keeps the pixels of rows 4 to 11, columns 8 to 15."""

    def forward(self, x):
        kept = torch.zeros_like(x)
        kept[..., 4:12, 8:16] = x[..., 4:12, 8:16]
        return kept


def test_ridge_finds_the_region_that_alone_decides_the_score():
    """The dot product of mean colours over a region is linear in the pixels of an augmented image."""
    model = TwoViewModel(Region(), similarity="dot", input_size=16)
    view = tiny_pair(0, 1, 16)[0] * 0.25 + 0.5
    explanation = PixelInvariance(model, samples=400)(view, view)
    assert explanation.details["r2"].item() > 0.95
    heatmap = explanation.map1[0]
    region = Region()(torch.ones(1, 16, 16))[0].bool()
    assert heatmap[region].abs().mean() > 4 * heatmap[~region].abs().mean()
    colours = view[0] - view[0].mean(dim=(1, 2), keepdim=True)
    truth = (Region()(view)[0].mean(dim=(1, 2)).view(3, 1, 1) * colours * region).sum(dim=0) / 256
    assert torch.corrcoef(torch.stack([heatmap.flatten(), truth.flatten()]))[0, 1] > 0.9
    # What all pixels contribute is what the image scores above one of its mean colour.
    assert heatmap.sum().item() == pytest.approx(truth.sum().item(), abs=0.15 * truth.abs().sum().item())


class Recorder(TwoViewModel):
    """Remembers the images it encodes, and as which view."""

    def forward(self, x, view=1):
        self.__dict__.setdefault("seen", []).append((x.clone(), view))
        return super().forward(x, view)


def recorded(view, chunk_size=1, **options):
    """Images that the network was given for a view in pixels, but for the two whole ones."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    model = Recorder(nn.Conv2d(3, 4, 3, 2), normalization=(mean, std), input_size=view.shape[-1]).eval()
    model.trunk.register_forward_hook(lambda *given: None)  # watched networks are not folded, which would pass here too
    model.seen.clear()
    to_input = lambda x: (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)  # noqa: E731
    PixelInvariance(model, **options)(to_input(view), to_input(view), bank=PairBank(model, chunk_size))
    assert {as_view for _, as_view in model.seen} == {2}  # versions play view 2; views go through features and embed
    return torch.cat([x for x, _ in model.seen]) * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)


def test_augmentations_come_as_often_and_as_large_as_published():
    colour = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).expand(1, 3, 24, 24)
    seen = recorded(colour, samples=400, baseline="black", epochs=1)
    assert seen.shape == (400, 3, 24, 24)
    assert seen.min() >= -1e-5
    assert seen.max() <= 1 + 1e-5
    black = (seen.abs().amax(dim=1) < 1e-5).float()
    area = black.mean(dim=(1, 2))
    erased = area > 0
    assert 0.42 < erased.float().mean() < 0.58
    assert 0.015 < area[erased].min() < 0.04
    assert 0.28 < area[erased].max() < 0.35
    for mask in black[erased]:
        assert torch.equal(mask, mask.amax(dim=1, keepdim=True) * mask.amax(dim=0, keepdim=True))  # a rectangle
    colours = seen.amax(dim=(2, 3))
    grey = (colours.amax(dim=1) - colours.amin(dim=1)) < 1e-4
    assert 0.13 < grey.float().mean() < 0.27
    plain = (colours[~grey] - colour[0, :, 0, 0]).abs().amax(dim=1) < 1e-5
    assert 0.13 < plain.float().mean() < 0.27  # jitter is left out with probability 0.2


def test_augmentations_shift_nothing():
    """A mirror-symmetric image stays so, unless erased."""
    half = torch.rand(1, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    symmetric = torch.cat([half, half.flip(-1)], dim=-1)
    seen = recorded(symmetric, samples=60)
    crooked = (seen - seen.flip(-1)).abs().amax(dim=(1, 2, 3))
    assert 20 <= (crooked < 1e-4).sum() <= 42
    assert (seen[crooked < 1e-4] - symmetric).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_rescaling_loses_detail_and_keeps_place_and_mean():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        found = rescale(image, torch.Generator().manual_seed(seed), scale=(0.25, 0.5))
        assert found.shape == image.shape
        assert found.diff(dim=-1).abs().mean() < 0.6 * image.diff(dim=-1).abs().mean()
        assert found.mean().item() == pytest.approx(image.mean().item(), abs=0.02)
    ramp = torch.linspace(0, 1, 32).expand(3, 32, 32)
    centre = (slice(None), slice(None), slice(4, 28))
    found = rescale(ramp, torch.Generator().manual_seed(0), scale=(0.5, 0.5))
    torch.testing.assert_close(found[centre], ramp[centre], rtol=0, atol=1e-3)


def test_an_image_shows_through_where_another_is_erased():
    image, fill = torch.zeros(3, 16, 16), torch.rand(3, 16, 16) + 0.1
    found = erase(image, torch.Generator().manual_seed(0), value=fill)
    gone = found != 0
    assert 0 < gone.float().mean() < 0.4
    assert torch.equal(found[gone], fill[gone])
    assert not image.any()


@pytest.mark.parametrize("samples", [1, 24, 40])
def test_each_version_is_encoded_once_beside_the_two_views(samples):
    model = tiny_model(0)
    views = tiny_pair(0, 1)
    explainer, bank = PixelInvariance(model, samples=samples), PairBank(model)
    explainer(*views, bank=bank)
    assert (bank.forwards, bank.backwards) == (samples + 2, 0)
    assert explainer.cost((32, 32)).forwards == samples + 2
    explainer(*views, bank=bank)
    assert bank.forwards == samples + 2


def test_a_thousand_versions_are_drawn_by_default():
    assert PixelInvariance(tiny_model(0)).cost((32, 32)).forwards == 1002


@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_chunks_change_nothing_but_rounding(protocol):
    model = tiny_model(0)
    views = tiny_pair(0, 2)
    explainer = PixelInvariance(model, samples=24, epochs=5, protocol=protocol)
    expected = explainer(*views, bank=PairBank(model, 32)).map1
    for chunk_size in (1, 7):
        found = explainer(*views, bank=PairBank(model, chunk_size)).map1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_the_seed_of_a_pair_decides_its_map(protocol):
    explainer = PixelInvariance(tiny_model(0), samples=12, epochs=5, protocol=protocol)
    views = tiny_pair(0, 2)
    first, again, other = (explainer(*views, seeds=torch.tensor(seeds)).map1 for seeds in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_a_shared_bank_tells_versions_of_other_seeds_and_options_apart():
    model, views = tiny_model(0), tiny_pair(0, 1)
    bank = PairBank(model)
    for options in ({}, {"samples": 9}, {"antialias": False}, {"baseline": "black"}):
        explainer = PixelInvariance(model, **{"samples": 12, **options})
        for seeds in (torch.tensor([1]), torch.tensor([2])):
            assert torch.equal(explainer(*views, seeds, bank).map1, explainer(*views, seeds).map1)


def test_the_map_of_the_paper_is_the_published_one():
    """From the weights up: those of the explanation without threshold and blur are only scaled."""
    model, views = tiny_model(0), tiny_pair(0, 1)
    common = {"samples": 12, "epochs": 8, "learning_rate": 0.01, "protocol": "paper"}
    scaled = PixelInvariance(model, threshold=0.0, blur=False, **common)(*views).map1[0]
    assert (scaled.min(), scaled.max()) == (0, 1)
    cut = PixelInvariance(model, blur=False, **common)(*views).map1[0]
    assert torch.equal(cut, oracle.published_map(scaled[None], blur=False))
    whole = PixelInvariance(model, **common)(*views).map1[0]
    torch.testing.assert_close(whole, oracle.published_map(scaled[None]), rtol=0, atol=1e-5)


def test_channels_are_reduced_to_their_largest_weight_or_to_what_they_contribute():
    model, (view, _) = tiny_model(0), tiny_pair(0, 1)
    raw = {"samples": 12, "surrogate": "ridge"}
    largest = PixelInvariance(model, channels="max", **raw)(view, view).map1[0]
    contribution = PixelInvariance(model, channels="contribution", baseline="mean", **raw)(view, view).map1[0]
    assert largest.shape == contribution.shape == (32, 32)
    assert contribution.min() < 0 < contribution.max()
    # A pixel of the colour that erasing leaves cannot contribute: there is nothing to take away.
    grey = torch.zeros_like(view)
    assert not PixelInvariance(model, **raw, baseline="mean")(grey, view).map1.any()


def test_the_nmf_variant_changes_the_map_and_says_so():
    model, views = tiny_model(0), tiny_pair(0, 1)
    for surrogate in ("ridge", "logistic"):
        plain = PixelInvariance(model, samples=16, epochs=5, surrogate=surrogate)
        varied = PixelInvariance(model, samples=16, epochs=5, surrogate=surrogate, nmf_weight=50.0, components=3)
        assert not torch.allclose(plain(*views).map1, varied(*views).map1, rtol=1e-3)
        assert (plain.label, varied.label) == ("Pixel invariance", "Pixel invariance (NMF)")


@pytest.mark.parametrize("protocol", ["sound", "paper"])
@pytest.mark.parametrize("label", [0.5, torch.nan, torch.inf])
def test_labels_that_tell_nothing_give_a_map_of_zeros(label, protocol):
    model = tiny_model(0, similarity=lambda z1, z2: torch.full((len(z2),), label))
    explanation = PixelInvariance(model, samples=6, epochs=2, protocol=protocol)(*tiny_pair(0, 1))
    assert not explanation.map1.any()
    assert all(value.isnan().all() for value in explanation.details.values())
    assert len(explanation.details) == (2 if protocol == "sound" else 1)


def test_the_surrogate_sees_at_most_the_pixels_there_are():
    model, views = tiny_model(0), tiny_pair(0, 1, (32, 41))
    assert PixelInvariance(model, samples=6)(*views).map1.shape == (1, 32, 41)
    assert PixelInvariance(model, samples=6, size=36)(*views).map1.shape == (1, 32, 36)
    assert PixelInvariance(model, samples=6, size=5)(*views).map1.shape == (1, 5, 5)
    assert PixelInvariance(model, samples=6, size=3, epochs=2, protocol="paper")(*views).map1.shape == (1, 3, 3)


def test_the_plain_view_goes_through_the_predictor_and_its_versions_do_not():
    model, views = tiny_model(0, asymmetric=True), tiny_pair(0, 1)
    assert isinstance(model, AsymmetricModel)
    straight = PixelInvariance(model, samples=12)(*views).map1
    model.predictor.weight.data.copy_(-model.predictor.weight)  # turns the sign of every label
    torch.testing.assert_close(PixelInvariance(model, samples=12)(*views).map1, -straight, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "`samples` must be a positive integer, got 0"),
        ({"size": 2.5}, "`size` must be a positive integer, got 2.5"),
        ({"components": 0}, "`components` must be a positive integer"),
        ({"surrogate": "lasso"}, "unknown `surrogate` 'lasso': .*Valid: logistic, ridge"),
        ({"channels": "mean"}, "unknown `channels` 'mean': .*Valid: contribution, max"),
        ({"threshold": 1.5}, r"`threshold` must be a fraction in \[0, 1\], got 1.5"),
        ({"nmf_weight": -1}, "`nmf_weight` and `l1` must not be negative"),
        ({"learning_rate": 0}, "`learning_rate` must be positive"),
        ({"baseline": "grey"}, "`baseline` must be one of"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        PixelInvariance(tiny_model(0), **options)
