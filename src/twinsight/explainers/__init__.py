"""Explainers: one file per family, one class per method."""

from twinsight.explainers.base import EXPLAINERS, Cost, Explainer, Maps, Pair, PairExplanation
from twinsight.explainers.cam import GradCAM, InteractionCAM
from twinsight.explainers.controls import Inverted, LaFAM, MatchedRandom, PartnerSwapped, RandomMap
from twinsight.explainers.geometry import MapGeometry
from twinsight.explainers.gradient import AveragedTransforms, InputXGradient, SmoothGrad
from twinsight.explainers.occlusion import ConditionalOcclusion, ContextAgnosticOcclusion, PairwiseOcclusion

__all__ = [
    "EXPLAINERS",
    "AveragedTransforms",
    "ConditionalOcclusion",
    "ContextAgnosticOcclusion",
    "Cost",
    "Explainer",
    "GradCAM",
    "InputXGradient",
    "InteractionCAM",
    "Inverted",
    "LaFAM",
    "MapGeometry",
    "Maps",
    "MatchedRandom",
    "Pair",
    "PairExplanation",
    "PairwiseOcclusion",
    "PartnerSwapped",
    "RandomMap",
    "SmoothGrad",
]
