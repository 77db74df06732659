"""Explainers: one file per family, one class per method."""

from twinsight.explainers.base import Explainer, Pair, PairExplanation
from twinsight.explainers.cam import GradCAM, InteractionCAM
from twinsight.explainers.geometry import MapGeometry
from twinsight.explainers.occlusion import ConditionalOcclusion

__all__ = [
    "ConditionalOcclusion",
    "Explainer",
    "GradCAM",
    "InteractionCAM",
    "MapGeometry",
    "Pair",
    "PairExplanation",
]
