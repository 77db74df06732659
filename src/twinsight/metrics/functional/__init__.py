"""The mathematics of the two-image metrics, per pair; the classes beside this folder average it."""

from twinsight.metrics.functional.average_drop import AverageDrop, average_drop
from twinsight.metrics.functional.insertion_deletion import InsertionDeletion, area, insertion_deletion
from twinsight.metrics.functional.localization import Localization, Overlap, localization, overlap_agreement
from twinsight.metrics.functional.max_sensitivity import max_sensitivity
from twinsight.metrics.functional.sanity import (
    PartnerChange,
    Randomization,
    cascading_randomization,
    partner_sensitivity,
)

__all__ = [
    "AverageDrop",
    "InsertionDeletion",
    "Localization",
    "Overlap",
    "PartnerChange",
    "Randomization",
    "area",
    "average_drop",
    "cascading_randomization",
    "insertion_deletion",
    "localization",
    "max_sensitivity",
    "overlap_agreement",
    "partner_sensitivity",
]
