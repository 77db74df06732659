"""Averages of drops and increases over pairs; :func:`.functional.average_drop` has the mathematics."""

from twinsight.metrics.base import PairMetric


class SimultaneousAverageDrop(PairMetric):
    """SAD: mean relative drop when both views are masked by their maps. Lower is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = SimultaneousAverageDrop()
    >>> metric.update(SimpleNamespace(sad=torch.tensor([0.0, 0.5])))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    field = "sad"
    maps = 2
    higher_is_better = False


class SimultaneousIncreaseInConfidence(PairMetric):
    """SIC: share of pairs that become more similar when both views are masked by their maps. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = SimultaneousIncreaseInConfidence()
    >>> metric.update(SimpleNamespace(sic=torch.tensor([0.0, 1.0])))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    field = "sic"
    maps = 2
    higher_is_better = True


class ConditionalAverageDrop(PairMetric):
    """CAD: mean relative drop when one view is masked; mean of both directions. Lower is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = ConditionalAverageDrop()
    >>> metric.update(SimpleNamespace(cad=torch.tensor([0.5])))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    field = "cad"
    higher_is_better = False


class ConditionalIncreaseInConfidence(PairMetric):
    """CIC: share of pairs that become more similar when one view is masked; mean of both directions. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = ConditionalIncreaseInConfidence()
    >>> metric.update(SimpleNamespace(cic=torch.tensor([0.5, 1.0])))
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    field = "cic"
    higher_is_better = True
