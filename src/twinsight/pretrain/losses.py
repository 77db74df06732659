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
    if z1.shape != z2.shape or z1.ndim != 2 or len(z1) < 2:
        raise UserError(
            f"`z1` and `z2` must be (B, d) of equal shape with B >= 2, got {tuple(z1.shape)}, {tuple(z2.shape)}"
        )
    pairs = len(z1)
    views = F.normalize(torch.cat([z1, z2]).float(), dim=1)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(2 * pairs, dtype=torch.bool, device=logits.device), -torch.inf)
    partners = torch.arange(2 * pairs, device=logits.device).roll(pairs)
    return F.cross_entropy(logits, partners)
