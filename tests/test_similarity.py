"""Scores of a pair of embeddings."""

import hydra.utils
import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import paired_cosine_distances
from torch.nn import functional as F

from toy_cells import composed
from twinsight.config import validate
from twinsight.errors import UserError
from twinsight.similarity import (
    SIMILARITIES,
    CrossCorrelation,
    InfoNCE,
    cosine,
    dot,
    get_similarity,
    negative_distance,
    negative_squared_distance,
)


@pytest.fixture
def embeddings():
    return torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_cosine_is_one_minus_sklearns_cosine_distance(embeddings):
    expected = 1 - paired_cosine_distances(*embeddings.numpy())
    np.testing.assert_allclose(cosine(*embeddings), expected, atol=1e-12)


def test_cosine_ignores_length_and_keeps_sign():
    z = torch.tensor([[1.0, 2.0, -1.0]])
    assert cosine(z, 7 * z).item() == pytest.approx(1)
    assert cosine(z, -0.1 * z).item() == pytest.approx(-1)
    assert cosine(z, torch.tensor([[2.0, -1.0, 0.0]])).item() == pytest.approx(0)


def test_cosine_with_a_zero_embedding_is_0():
    assert cosine(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0
    assert cosine(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_dot_and_distance_are_the_sums_over_the_last_axis(embeddings):
    z1, z2 = embeddings.numpy()
    np.testing.assert_allclose(dot(*embeddings), [np.dot(a, b) for a, b in zip(z1, z2, strict=True)])
    expected = [-(np.linalg.norm(a - b) ** 2) for a, b in zip(z1, z2, strict=True)]
    np.testing.assert_allclose(negative_squared_distance(*embeddings), expected)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_score_broadcasts_one_embedding_against_many(name, embeddings):
    z1, z2 = embeddings
    score = get_similarity(name)
    together = score(z1[:, None], z2[None])
    assert together.shape == (6, 6)
    for i, j in ((0, 0), (2, 5), (5, 1)):
        torch.testing.assert_close(together[i, j], score(z1[i : i + 1], z2[j : j + 1])[0])


def test_a_callable_is_its_own_score():
    def score(z1, z2):
        return z1[:, 0]

    assert get_similarity(score) is score


def test_an_unknown_name_is_refused_with_all_that_are_known():
    expected = "unknown similarity 'euclidean': .*cosine, dot, negative_distance, negative_squared_distance"
    with pytest.raises(UserError, match=expected):
        get_similarity("euclidean")


def test_info_nce_is_the_loss_of_simclr_for_one_pair():
    """Against PyTorch's cross-entropy over the pair and its negatives."""
    z1, z2 = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    negatives = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    score = InfoNCE(negatives, temperature=0.3)
    for a, b in zip(z1, z2, strict=True):
        logits = torch.stack([F.cosine_similarity(a, other, dim=0) for other in (b, *negatives)]) / 0.3
        expected = -F.cross_entropy(logits[None], torch.tensor([0]))
        torch.testing.assert_close(score(a[None], b[None])[0], expected)
    assert score(z1, z2).shape == (3,)
    assert score(z1[:1], z2).shape == (3,)


def test_cross_correlations_average_to_the_diagonal_of_barlow_twins():
    z = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    noisy = z + 0.1
    score = CrossCorrelation(z)
    standard = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
    diagonal = (standard.T @ standard / 20).diagonal()
    torch.testing.assert_close(score(z, z).mean(), diagonal.mean())
    assert score(z, noisy).shape == (20,)


def test_banks_are_read_from_files_and_told_apart(tmp_path):
    bank = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "bank.npy", bank.numpy())
    assert InfoNCE(tmp_path / "bank.npy").digest == InfoNCE(bank).digest != InfoNCE(bank + 1).digest
    with pytest.raises(UserError, match=r"`negatives=.*none\.npy` is no \.npy file of embeddings"):
        InfoNCE(tmp_path / "none.npy")
    with pytest.raises(UserError, match=r"`embeddings` must be \(K, d\) embeddings, got torch.float32 \(3,\)"):
        CrossCorrelation(bank[0])
    with pytest.raises(UserError, match="`temperature` must be positive, got 0"):
        InfoNCE(bank, temperature=0)


def test_the_distance_has_a_gradient_everywhere():
    z = torch.zeros(1, 2, requires_grad=True)
    negative_distance(z, torch.zeros(1, 2)).sum().backward()
    assert torch.equal(z.grad, torch.zeros(1, 2))


def test_a_score_of_ones_own_and_a_bank_are_lines_of_configuration(tmp_path):
    np.save(tmp_path / "bank.npy", torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).numpy())
    for lines, kind in (
        (["similarity=custom", "similarity.path=torch.nn.functional.cosine_similarity"], None),
        (["similarity=info_nce", f"similarity.negatives={tmp_path / 'bank.npy'}"], InfoNCE),
        (["similarity=cross_correlation", f"similarity.embeddings={tmp_path / 'bank.npy'}"], CrossCorrelation),
    ):
        config = composed("data=demo_photos", *lines)
        validate(config)
        model = hydra.utils.instantiate(config.model)
        assert (model.score_digest is None) == (kind is None)
