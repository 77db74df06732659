"""Scores of a pair of embeddings: what the model calls similar."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from twinsight.errors import unknown

Similarity = Callable[[Tensor, Tensor], Tensor]


def cosine(z1: Tensor, z2: Tensor) -> Tensor:
    """Cosine of the angle between embeddings, in [-1, 1]; 0 where either is zero.

    Args:
        z1: ``(B, d)`` embeddings of view 1, or any shape that broadcasts against ``z2``.
        z2: ``(B, d)`` embeddings of view 2.

    Returns:
        ``(B,)`` scores.

    >>> import torch
    >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([0.7071])
    """
    return F.cosine_similarity(z1, z2, dim=-1)


def dot(z1: Tensor, z2: Tensor) -> Tensor:
    """Dot product of embeddings, unbounded; shapes as in :func:`cosine`.

    >>> import torch
    >>> dot(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([11.])
    """
    return (z1 * z2).sum(dim=-1)


def negative_squared_distance(z1: Tensor, z2: Tensor) -> Tensor:
    """Minus the squared Euclidean distance, at most 0; shapes as in :func:`cosine`.

    >>> import torch
    >>> negative_squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([-4.])
    """
    return -(z1 - z2).square().sum(dim=-1)


SIMILARITIES: dict[str, Similarity] = {
    "cosine": cosine,
    "dot": dot,
    "negative_squared_distance": negative_squared_distance,
}


def get_similarity(similarity: str | Similarity) -> Similarity:
    """The score called ``similarity``; a callable ``(B, d), (B, d) -> (B,)`` is returned as it is.

    The score may be asymmetric: it is always called with the embedding of view 1 first.

    Raises:
        UserError: the name is unknown.

    >>> get_similarity("dot") is dot
    True
    """
    if callable(similarity):
        return similarity
    if similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)
    return SIMILARITIES[similarity]
