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
]
