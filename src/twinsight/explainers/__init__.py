"""Explainers: one file per family, one class per method."""

from twinsight.explainers.attention import AttentionRollout, GradientAttention
from twinsight.explainers.base import EXPLAINERS, Cost, Explainer, Maps, Pair, PairExplanation
from twinsight.explainers.cam import GradCAM, InteractionCAM
from twinsight.explainers.captum import Captum
from twinsight.explainers.controls import Inverted, LaFAM, MatchedRandom, PartnerSwapped, RandomMap
from twinsight.explainers.difference import ModelDifference
from twinsight.explainers.geometry import MapGeometry
from twinsight.explainers.gradient import AveragedTransforms, InputXGradient, SmoothGrad
from twinsight.explainers.images import ImageExplainer, PairImages
from twinsight.explainers.invariance import PixelInvariance
from twinsight.explainers.occlusion import ConditionalOcclusion, ContextAgnosticOcclusion, PairwiseOcclusion
from twinsight.explainers.tokens import TokenOcclusion
from twinsight.explainers.visualization import FeatureVisualization

__all__ = [
    "EXPLAINERS",
    "AttentionRollout",
    "AveragedTransforms",
    "Captum",
    "ConditionalOcclusion",
    "ContextAgnosticOcclusion",
    "Cost",
    "Explainer",
    "FeatureVisualization",
    "GradCAM",
    "GradientAttention",
    "ImageExplainer",
    "InputXGradient",
    "InteractionCAM",
    "Inverted",
    "LaFAM",
    "MapGeometry",
    "Maps",
    "MatchedRandom",
    "ModelDifference",
    "Pair",
    "PairExplanation",
    "PairImages",
    "PairwiseOcclusion",
    "PartnerSwapped",
    "PixelInvariance",
    "RandomMap",
    "SmoothGrad",
    "TokenOcclusion",
]
