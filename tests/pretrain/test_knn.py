"""The nearest-neighbour probe against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from twinsight.errors import UserError
from twinsight.pretrain import KNNAccuracy


def features(count, classes=5, width=8, noise=1.2, seed=0):
    """Overlapping clusters, so that many queries are decided by a close vote."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=draw)
    return centres[labels] + noise * torch.randn(count, width, generator=draw), labels


def sklearn_accuracy(references, queries, k, temperature):
    """Votes weighted by exp(cosine / temperature), relative to the nearest."""

    def weights(distances):
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)

    k = min(k, len(references[0]))
    classifier = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    classifier.fit(references[0].double().numpy(), references[1].numpy())
    return classifier.score(queries[0].double().numpy(), queries[1].numpy())


def measured(references, queries, **options):
    accuracy = KNNAccuracy(**options)
    accuracy.update(*references, reference=True)
    accuracy.update(*queries, reference=False)
    return accuracy.compute().item()


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("k", [1, 5, 20, 200, 1000])
def test_the_accuracy_is_that_of_scikit_learns_weighted_vote(k, temperature):
    references, queries = features(300, seed=0), features(120, seed=1)
    expected = sklearn_accuracy(references, queries, k, temperature)
    assert 0.2 < expected < 0.95, "a test of a tie or of certainty shows nothing"
    assert measured(references, queries, k=k, temperature=temperature) == pytest.approx(expected)


def test_the_votes_are_weighted_by_the_temperature():
    # One near neighbour of class 0 (cosine 1) against three far ones of class 1 (cosine 0.6).
    references = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    # exp(0.4 / T) against 3: the near one wins below T = 0.4 / log 3 = 0.364.
    assert measured(references, query, k=4, temperature=0.36) == 1
    assert measured(references, query, k=4, temperature=0.37) == 0


@pytest.mark.parametrize("temperature", [0.01, 0.001])
def test_a_low_temperature_does_not_overflow(temperature):
    references, queries = features(300, seed=0), features(120, seed=1)
    # In the limit the nearest decides alone.
    expected = sklearn_accuracy(references, queries, 1, 1.0)
    assert measured(references, queries, k=200, temperature=temperature) == pytest.approx(expected, abs=0.03)


def test_only_the_direction_of_features_counts():
    references, queries = features(200, seed=0), features(80, seed=1)
    lengths = torch.rand(200, 1, generator=torch.Generator().manual_seed(2)) * 9 + 0.1
    assert measured((references[0] * lengths, references[1]), queries, k=20) == measured(references, queries, k=20)


def test_more_neighbours_than_references_means_all_of_them():
    references, queries = features(30, seed=0), features(80, seed=1)
    assert measured(references, queries, k=200) == measured(references, queries, k=30)


def test_features_may_arrive_in_parts_and_in_any_order():
    references, queries = features(300, seed=0), features(120, seed=1)
    accuracy = KNNAccuracy(k=20)
    for part in range(4):
        accuracy.update(queries[0][part::4], queries[1][part::4], reference=False)
        accuracy.update(references[0][part::4], references[1][part::4], reference=True)
    assert accuracy.compute().item() == pytest.approx(sklearn_accuracy(references, queries, 20, 0.1))


def test_what_two_processes_saw_can_be_merged():
    references, queries = features(300, seed=0), features(120, seed=1)
    halves = [KNNAccuracy(k=20) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.update(references[0][rank::2], references[1][rank::2], reference=True)
        half.update(queries[0][rank::2], queries[1][rank::2], reference=False)
    halves[0].merge_state(halves[1])
    assert halves[0].compute().item() == pytest.approx(sklearn_accuracy(references, queries, 20, 0.1))


def test_reset_forgets_references_and_queries():
    first, second = features(300, seed=0), features(300, seed=5)
    queries = features(120, seed=1)
    accuracy = KNNAccuracy(k=20)
    accuracy.update(first[0], (first[1] + 1) % 5, reference=True)
    accuracy.update(*queries, reference=False)
    accuracy.compute()
    accuracy.reset()
    accuracy.update(*second, reference=True)
    accuracy.update(*queries, reference=False)
    assert accuracy.compute().item() == pytest.approx(sklearn_accuracy(second, queries, 20, 0.1))


def test_more_queries_than_are_scored_at_once_are_all_counted():
    references, queries = features(50, seed=0), features(1200, seed=1)
    assert measured(references, queries, k=5) == pytest.approx(sklearn_accuracy(references, queries, 5, 0.1))


def test_a_class_that_only_queries_have_is_never_right():
    references = torch.eye(2), torch.tensor([0, 1])
    assert measured(references, (torch.eye(2), torch.tensor([0, 7])), k=1) == 0.5


def test_half_precision_features_are_compared_in_single_precision():
    references, queries = features(300, seed=0), features(1000, seed=1)
    references, queries = ((values.bfloat16(), labels) for values, labels in (references, queries))
    expected = sklearn_accuracy(references, queries, 5, 0.5)
    assert measured(references, queries, k=5, temperature=0.5) == pytest.approx(expected)  # to the last of 1000


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"temperature": 0.0}, {"temperature": -0.1}], ids=str)
def test_arguments_that_are_not_positive_are_named(options):
    with pytest.raises(UserError, match=rf"`k` and `temperature` must be positive.*{next(iter(options.values()))}"):
        KNNAccuracy(**options)
