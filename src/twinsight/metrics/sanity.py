"""Averages of sanity checks over pairs; :mod:`.functional.sanity` has the mathematics."""

from twinsight.metrics.base import PairMetric


class CascadingRandomization(PairMetric):
    """Randomisation: mean rank correlation with the maps of networks randomised from the head down. Lower is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = CascadingRandomization()
    >>> metric.update(SimpleNamespace(randomization=torch.tensor([0.25, 0.75])))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    field = "randomization"
    higher_is_better = False


class FullRandomization(PairMetric):
    """Full randomisation: mean rank correlation with the maps of a network of random weights. Lower is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = FullRandomization()
    >>> metric.update(SimpleNamespace(full_randomization=torch.tensor([0.5])))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    field = "full_randomization"
    higher_is_better = False


class PartnerSensitivity(PairMetric):
    """Partner sensitivity: mean of how much the maps change when a view meets one of another photo. Higher is better.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> metric = PartnerSensitivity()
    >>> metric.update(SimpleNamespace(partner_sensitivity=torch.tensor([0.0, 1.0])))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    field = "partner_sensitivity"
    higher_is_better = True
