"""Averages of insertion and deletion over pairs; :func:`.functional.insertion_deletion` has the mathematics."""

from twinsight.metrics.base import PairMetric


class SimultaneousInsertion(PairMetric):
    """SI: mean area when both views are revealed at once, most important pixels first. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = SimultaneousInsertion()
    >>> metric.update(SimpleNamespace(si=torch.tensor([0.5, 0.7])))
    >>> metric.compute()
    tensor(0.6000, dtype=torch.float64)
    """

    field = "si"
    maps = 2
    higher_is_better = True


class SimultaneousDeletion(PairMetric):
    """SD: mean area when both views are erased at once, most important pixels first. Lower is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = SimultaneousDeletion()
    >>> metric.update(SimpleNamespace(sd=torch.tensor([0.25])))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    field = "sd"
    maps = 2
    higher_is_better = False


class ConditionalInsertion(PairMetric):
    """CI: mean area when one view is revealed and the other is whole; mean of both directions. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = ConditionalInsertion()
    >>> metric.update(SimpleNamespace(ci=torch.tensor([0.5, float("nan")])))
    >>> metric.compute(), int(metric.missing)
    (tensor(0.5000, dtype=torch.float64), 1)
    """

    field = "ci"
    higher_is_better = True


class ConditionalDeletion(PairMetric):
    """CD: mean area when one view is erased and the other is whole; mean of both directions. Lower is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = ConditionalDeletion()
    >>> metric.update(SimpleNamespace(cd=torch.tensor([0.25])))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    field = "cd"
    higher_is_better = False
