"""Two-image metrics: the mathematics in ``functional``, torchmetrics classes that average it over pairs."""

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
from twinsight.metrics.max_sensitivity import MaxSensitivity

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

__all__ = [
    "METRICS",
    "ConditionalAverageDrop",
    "ConditionalDeletion",
    "ConditionalIncreaseInConfidence",
    "ConditionalInsertion",
    "MaxSensitivity",
    "PairMetric",
    "SimultaneousAverageDrop",
    "SimultaneousDeletion",
    "SimultaneousIncreaseInConfidence",
    "SimultaneousInsertion",
]
