"""Losses against literal double loops in double precision, and against closed forms."""

import math

import numpy as np
import pytest
import torch

from twinsight.errors import UserError
from twinsight.pretrain import cross_correlation_loss, nt_xent


def pairs(batch, width, seed=0):
    return torch.randn(2, batch, width, generator=torch.Generator().manual_seed(seed))


def nt_xent_by_hand(z1, z2, temperature):
    """Chen et al. 2020, equation 1, one view after the other."""
    views = [*np.asarray(z1, np.float64), *np.asarray(z2, np.float64)]

    def similarity(a, b):
        return math.fsum(a * b) / (math.sqrt(math.fsum(a * a)) * math.sqrt(math.fsum(b * b)))

    losses = []
    for i, view in enumerate(views):
        partner = (i + len(z1)) % len(views)
        others = [math.exp(similarity(view, other) / temperature) for k, other in enumerate(views) if k != i]
        losses.append(-math.log(math.exp(similarity(view, views[partner]) / temperature) / math.fsum(others)))
    return math.fsum(losses) / len(losses)


def cross_correlation_by_hand(z1, z2, redundancy):
    """Zbontar et al. 2021, equations 1 and 2, one pair of features after the other."""
    standardised = []
    for z in (np.asarray(z1, np.float64), np.asarray(z2, np.float64)):
        standardised.append((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5))
    first, second = standardised
    total = 0.0
    for i in range(first.shape[1]):
        for j in range(first.shape[1]):
            correlation = math.fsum(first[:, i] * second[:, j]) / len(first)
            total += (1 - correlation) ** 2 if i == j else redundancy * correlation**2
    return total


def assert_gradient(loss, by_hand, z1, z2, tolerance):
    """The gradient of a loss is the central difference of its double loop."""
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    found = torch.autograd.grad(loss(z1, z2), (z1, z2))
    for which in (0, 1):
        for place in ((0, 0), (1, 2), (2, 1), (3, 3)):
            moved = []
            for step in (1e-5, -1e-5):
                shifted = [z1.detach().double().clone(), z2.detach().double().clone()]
                shifted[which][place] += step
                moved.append(by_hand(*(z.numpy() for z in shifted)))
            assert found[which][place].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, abs=tolerance)


# NT-Xent


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("batch", "width"), [(2, 3), (5, 4), (16, 32)])
def test_nt_xent_is_the_double_loop(batch, width, temperature):
    z1, z2 = pairs(batch, width)
    expected = nt_xent_by_hand(z1, z2, temperature)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", [2, 7])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_of_equal_embeddings_is_the_logarithm_of_the_number_of_candidates(batch, temperature):
    z = torch.randn(1, 6).expand(batch, 6)
    assert nt_xent(z, z, temperature).item() == pytest.approx(math.log(2 * batch - 1), rel=1e-5)


@pytest.mark.parametrize(("sign", "cosine"), [(1, 1.0), (-1, -1.0)])
@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_nt_xent_of_orthogonal_pairs_has_a_closed_form(sign, cosine, temperature):
    batch = 6
    z = torch.eye(batch)
    # One partner with cosine +-1 against 2B - 2 strangers with cosine 0.
    expected = math.log(1 + (2 * batch - 2) / math.exp(cosine / temperature))
    assert nt_xent(z, sign * z, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_is_a_half_by_default():
    z = torch.eye(4)
    assert nt_xent(z, z).item() == pytest.approx(math.log(1 + 6 / math.exp(2)), rel=1e-5)


def test_nt_xent_does_not_depend_on_the_order_of_pairs_or_of_views():
    z1, z2 = pairs(8, 5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    expected = nt_xent(z1, z2).item()
    assert nt_xent(z1[order], z2[order]).item() == pytest.approx(expected, rel=1e-6)
    assert nt_xent(z2, z1).item() == pytest.approx(expected, rel=1e-6)
    assert nt_xent(z1, z2[order]).item() != pytest.approx(expected, rel=1e-2)


def test_nt_xent_does_not_depend_on_the_length_of_any_embedding():
    z1, z2 = pairs(8, 5)
    lengths = torch.rand(2, 8, 1, generator=torch.Generator().manual_seed(1)) * 10 + 0.1
    assert nt_xent(z1 * lengths[0], z2 * lengths[1]).item() == pytest.approx(nt_xent(z1, z2).item(), rel=1e-5)


def test_the_gradient_of_nt_xent_is_that_of_the_double_loop():
    z1, z2 = pairs(5, 4)
    assert_gradient(lambda a, b: nt_xent(a, b, 0.3), lambda a, b: nt_xent_by_hand(a, b, 0.3), z1, z2, tolerance=1e-5)


# Barlow Twins


@pytest.mark.parametrize("redundancy", [0.0, 0.0051, 1.0])
@pytest.mark.parametrize(("batch", "width"), [(4, 3), (16, 8)])
def test_the_cross_correlation_loss_is_the_double_loop(batch, width, redundancy):
    z1, z2 = pairs(batch, width)
    expected = cross_correlation_by_hand(z1, z2, redundancy)
    assert cross_correlation_loss(z1, z2, redundancy).item() == pytest.approx(expected, rel=1e-5)


def test_uncorrelated_features_that_agree_cost_nothing_and_opposite_ones_four_each():
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert cross_correlation_loss(z, z).item() == pytest.approx(0, abs=1e-8)
    assert cross_correlation_loss(z, -z).item() == pytest.approx(2 * 4, rel=1e-4)  # (1 - -1)^2 for each feature


def test_a_copied_feature_costs_its_redundancy():
    feature = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    z = torch.cat([feature, feature], dim=1)  # both off-diagonal correlations are 1
    assert cross_correlation_loss(z, z, redundancy=0.25).item() == pytest.approx(2 * 0.25, rel=1e-4)


def test_the_cross_correlation_loss_ignores_shift_and_scale_of_a_feature():
    z1, z2 = pairs(16, 4)
    scale, shift = torch.tensor([2.0, 0.5, 3.0, 7.0]), torch.tensor([1.0, -2.0, 0.0, 5.0])
    expected = cross_correlation_loss(z1, z2).item()
    assert cross_correlation_loss(z1 * scale + shift, z2).item() == pytest.approx(expected, rel=1e-3)


def test_the_gradient_of_the_cross_correlation_loss_is_that_of_the_double_loop():
    z1, z2 = pairs(5, 4)
    assert_gradient(
        lambda a, b: cross_correlation_loss(a, b, 0.1),
        lambda a, b: cross_correlation_by_hand(a, b, 0.1),
        z1,
        z2,
        tolerance=1e-4,
    )


# Both


@pytest.mark.parametrize("loss", [nt_xent, cross_correlation_loss])
def test_mixed_precision_does_not_round_the_loss_of_given_embeddings(loss):
    z1, z2 = pairs(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(z1, z2)
    assert torch.equal(inside, loss(z1, z2))


@pytest.mark.parametrize("loss", [nt_xent, cross_correlation_loss])
@pytest.mark.parametrize(
    ("first", "second"), [((1, 4), (1, 4)), ((4, 3), (4, 4)), ((4, 3), (5, 3)), ((4,), (4,)), ((0, 3), (0, 3))]
)
def test_shapes_that_are_no_pairs_are_named(loss, first, second):
    with pytest.raises(UserError, match=r"`z1` and `z2` must be \(B, d\) of equal shape with B >= 2"):
        loss(torch.ones(first), torch.ones(second))
