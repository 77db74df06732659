"""Losses of self-supervised pretraining."""

import torch
from torch import Tensor
from torch.nn import functional as F

from twinsight.errors import UserError


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, equation 1), averaged over the 2B views.

    Each view must find its partner among the other 2B - 1 views of the batch by cosine similarity.

    Args:
        z1: ``(B, d)`` embeddings of the first views, B at least 2.
        z2: ``(B, d)`` embeddings of the second views, in the same order.
        temperature: divides the cosines; 0.5 is the published CIFAR-10 value.

    Returns:
        scalar loss; ``log(2B - 1)`` where all embeddings are equal.

    Raises:
        UserError: shapes differ, or fewer than two pairs.

    >>> z = torch.ones(4, 8)
    >>> torch.allclose(nt_xent(z, z), torch.tensor(7.0).log())
    True
    """
    _check_pairs(z1, z2)
    pairs = len(z1)
    with _full_precision(z1):
        views = F.normalize(torch.cat([z1, z2]).float(), dim=1)
        logits = views @ views.T / temperature
        logits = logits.masked_fill(torch.eye(2 * pairs, dtype=torch.bool, device=logits.device), -torch.inf)
        partners = torch.arange(2 * pairs, device=logits.device).roll(pairs)
        return F.cross_entropy(logits, partners)


def cross_correlation_loss(z1: Tensor, z2: Tensor, redundancy: float = 0.0051) -> Tensor:
    """Barlow Twins (Zbontar et al. 2021, equation 1): the cross-correlation of the embeddings against the identity.

    Embeddings are standardised over the batch (biased variance, as batch norm has it); with ``C`` their ``(d, d)``
    correlation, the loss is ``sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2``.

    Args:
        z1: ``(B, d)`` embeddings of the first views, B at least 2.
        z2: ``(B, d)`` embeddings of the second views, in the same order.
        redundancy: weight of the off-diagonal terms; 0.0051 as published.

    Returns:
        scalar loss; 0 where both embeddings are equal and their features uncorrelated.

    Raises:
        UserError: shapes differ, or fewer than two pairs.

    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(float(cross_correlation_loss(z, z)), 4)
    0.0
    """
    _check_pairs(z1, z2)
    with _full_precision(z1):
        first, second = (_standardised(z.float()) for z in (z1, z2))
        correlation = first.T @ second / len(z1)
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + redundancy * off_diagonal


def _full_precision(z: Tensor) -> torch.autocast:
    # Mixed precision would round the products of embeddings, on which both losses rest, to three digits.
    return torch.autocast(z.device.type, enabled=False)


def _standardised(z: Tensor) -> Tensor:
    return (z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-5).sqrt()


def _check_pairs(z1: Tensor, z2: Tensor) -> None:
    if z1.shape != z2.shape or z1.ndim != 2 or len(z1) < 2:
        raise UserError(
            f"`z1` and `z2` must be (B, d) of equal shape with B >= 2, got {tuple(z1.shape)}, {tuple(z2.shape)}"
        )
