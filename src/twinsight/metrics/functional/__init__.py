"""The mathematics of the two-image metrics, per pair; the classes beside this folder average it."""

from twinsight.metrics.functional.average_drop import AverageDrop, average_drop
from twinsight.metrics.functional.insertion_deletion import InsertionDeletion, area, insertion_deletion
from twinsight.metrics.functional.max_sensitivity import max_sensitivity

__all__ = ["AverageDrop", "InsertionDeletion", "area", "average_drop", "insertion_deletion", "max_sensitivity"]
