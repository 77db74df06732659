"""Averages of localisation over pairs; :mod:`.functional.localization` has the mathematics."""

from twinsight.metrics.base import PairMetric


class PointingGame(PairMetric):
    """Pointing game: share of maps whose largest value lies in the region that both views show. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = PointingGame()
    >>> metric.update(SimpleNamespace(pointing_game=torch.tensor([1.0, 0.5])))
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    field = "pointing_game"
    higher_is_better = True


class RelevanceMass(PairMetric):
    """Relevance mass: mean share of the positive relevance in the region that both views show. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = RelevanceMass()
    >>> metric.update(SimpleNamespace(relevance_mass=torch.tensor([0.25, 0.75])))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    field = "relevance_mass"
    higher_is_better = True


class RankAccuracy(PairMetric):
    """Rank accuracy: mean share of the k highest pixels in the region, of k pixels, that both views show.

    Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = RankAccuracy()
    >>> metric.update(SimpleNamespace(rank_accuracy=torch.tensor([0.5])))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    field = "rank_accuracy"
    higher_is_better = True


class OverlapAgreement(PairMetric):
    """Overlap agreement: mean rank correlation of the two maps where both views show the same. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = OverlapAgreement()
    >>> metric.update(SimpleNamespace(overlap_agreement=torch.tensor([0.5, float("nan")])))
    >>> metric.compute(), int(metric.missing)
    (tensor(0.5000, dtype=torch.float64), 1)
    """

    field = "overlap_agreement"
    maps = 2
    higher_is_better = True
