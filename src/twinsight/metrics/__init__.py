"""Two-image metrics: the mathematics in ``functional``, torchmetrics classes that average it over pairs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from twinsight.metrics.average_drop import (
    ConditionalAverageDrop,
    ConditionalIncreaseInConfidence,
    SimultaneousAverageDrop,
    SimultaneousIncreaseInConfidence,
)
from twinsight.metrics.base import PairMetric
from twinsight.metrics.insertion_deletion import (
    ConditionalDeletion,
    ConditionalInsertion,
    SimultaneousDeletion,
    SimultaneousInsertion,
)
from twinsight.metrics.localization import OverlapAgreement, PointingGame, RankAccuracy, RelevanceMass
from twinsight.metrics.max_sensitivity import MaxSensitivity
from twinsight.metrics.sanity import CascadingRandomization, FullRandomization, PartnerSensitivity

METRICS: dict[str, type[PairMetric]] = {
    metric.field: metric
    for metric in (
        SimultaneousInsertion,
        SimultaneousDeletion,
        ConditionalInsertion,
        ConditionalDeletion,
        SimultaneousAverageDrop,
        SimultaneousIncreaseInConfidence,
        ConditionalAverageDrop,
        ConditionalIncreaseInConfidence,
        MaxSensitivity,
    )
}
"""Metric class by column name, in the order of the paper's tables."""

FURTHER_METRICS: dict[str, type[PairMetric]] = {
    metric.field: metric
    for metric in (
        PointingGame,
        RelevanceMass,
        RankAccuracy,
        OverlapAgreement,
        CascadingRandomization,
        FullRandomization,
        PartnerSensitivity,
    )
}
"""Metric class by column name, beyond the paper's tables: shown where they were chosen."""

ALL_METRICS: dict[str, type[PairMetric]] = {**METRICS, **FURTHER_METRICS}


def forwards_per_pair(metrics: Iterable[Callable[..., Any]], size: tuple[int, int], maps: int, explanation: int) -> int:
    """Image forwards that metrics take for a pair beside its explanation, by what they declare as ``forwards``.

    Args:
        metrics: functionals, with options bound as in ``functools.partial``.
        size: (height, width) of the views.
        maps: how many the explainer makes.
        explanation: image forwards of explaining the pair once.

    >>> from twinsight.metrics.functional import average_drop, insertion_deletion
    >>> forwards_per_pair([insertion_deletion, partial(average_drop, protocol="paper")], (224, 224), 2, 884)
    894
    """
    total = 0
    for metric in metrics:
        function, options = (metric.func, metric.keywords) if isinstance(metric, partial) else (metric, {})
        declared = getattr(function, "forwards", None)
        total += declared(size, options, maps, explanation) if declared else 0
    return total


__all__ = [
    "ALL_METRICS",
    "FURTHER_METRICS",
    "METRICS",
    "CascadingRandomization",
    "ConditionalAverageDrop",
    "ConditionalDeletion",
    "ConditionalIncreaseInConfidence",
    "ConditionalInsertion",
    "FullRandomization",
    "MaxSensitivity",
    "OverlapAgreement",
    "PairMetric",
    "PartnerSensitivity",
    "PointingGame",
    "RankAccuracy",
    "RelevanceMass",
    "SimultaneousAverageDrop",
    "SimultaneousDeletion",
    "SimultaneousIncreaseInConfidence",
    "SimultaneousInsertion",
    "forwards_per_pair",
]
