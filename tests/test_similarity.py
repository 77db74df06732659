"""Scores of a pair of embeddings."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import paired_cosine_distances

from twinsight.errors import UserError
from twinsight.similarity import SIMILARITIES, cosine, dot, get_similarity, negative_squared_distance


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
    expected = "unknown similarity 'euclidean': .*cosine, dot, negative_squared_distance"
    with pytest.raises(UserError, match=expected):
        get_similarity("euclidean")
