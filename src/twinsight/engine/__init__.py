"""The fast path: baselines, lazily perturbed images, shared embeddings, seeds. Knows no explainer and no metric."""

from twinsight.engine.bank import NonFiniteEmbedding, PairBank
from twinsight.engine.baselines import BASELINES, Baseline, baseline_image, blurred, check_baseline
from twinsight.engine.checks import check_views
from twinsight.engine.execution import (
    CHUNK_SIZE,
    EXACT,
    PRECISIONS,
    Execution,
    forwards_per_second,
    measured_chunk_size,
)
from twinsight.engine.perturbations import (
    Perturbation,
    erased_by_rank,
    erased_windows,
    kept_windows,
    pixel_ranks,
    region_ranks,
    revealed_by_rank,
    some_of,
)
from twinsight.engine.scaling import degenerate, min_max
from twinsight.engine.seeds import content_digest, generator, seed_of, seeds_from_pixels
from twinsight.engine.transforms import TRANSFORMS

__all__ = [
    "BASELINES",
    "CHUNK_SIZE",
    "EXACT",
    "PRECISIONS",
    "TRANSFORMS",
    "Baseline",
    "Execution",
    "NonFiniteEmbedding",
    "PairBank",
    "Perturbation",
    "baseline_image",
    "blurred",
    "check_baseline",
    "check_views",
    "content_digest",
    "degenerate",
    "erased_by_rank",
    "erased_windows",
    "forwards_per_second",
    "generator",
    "kept_windows",
    "measured_chunk_size",
    "min_max",
    "pixel_ranks",
    "region_ranks",
    "revealed_by_rank",
    "seed_of",
    "seeds_from_pixels",
    "some_of",
]
