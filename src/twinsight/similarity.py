"""Scores of a pair of embeddings: what the model calls similar."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from twinsight.errors import UserError, unknown
from twinsight.files import NO_ARRAYS

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


def negative_distance(z1: Tensor, z2: Tensor) -> Tensor:
    """Minus the Euclidean distance, at most 0; shapes as in :func:`cosine`. Its gradient is 0 where both are equal.

    >>> import torch
    >>> negative_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([-5.])
    """
    squared = (z1 - z2).square().sum(dim=-1)
    apart = squared > 0
    return -torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


class InfoNCE:
    """SimCLR's logit of a pair against a bank of negatives (Chen et al. 2020, equation 1): at most 0.

    ``c(z1, z2) / t - log(exp(c(z1, z2) / t) + sum_k exp(c(z1, n_k) / t))`` with ``c`` the cosine: the logarithm of the
    probability that view 1 finds view 2 among the negatives. Asymmetric: view 1 is the one that looks.

    Args:
        negatives: ``(K, d)`` embeddings of other photos, or a ``.npy`` file of them.
        temperature: ``t``; 0.1 is SimCLR's on ImageNet, 0.5 on CIFAR-10.

    Raises:
        UserError: no such file, embeddings that are not ``(K, d)``, or a temperature that is not positive.

    >>> import torch
    >>> score = InfoNCE(torch.tensor([[0.0, 1.0]]), temperature=1.0)
    >>> score(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))  # one of two that are alike
    tensor([-0.6931])
    """

    def __init__(self, negatives: Tensor | str | Path, temperature: float = 0.1) -> None:
        self.negatives = _embeddings("negatives", negatives)
        self.temperature = _positive("temperature", temperature)
        self.digest = _digest(self.negatives)

    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
        z1, z2 = torch.broadcast_tensors(z1, z2)
        others = F.normalize(self.negatives.to(z1), dim=-1)
        negative = F.normalize(z1, dim=-1) @ others.T / self.temperature
        positive = cosine(z1, z2) / self.temperature
        return positive - torch.cat([positive.unsqueeze(-1), negative], dim=-1).logsumexp(dim=-1)


class CrossCorrelation:
    """What a pair adds to the diagonal of Barlow Twins' cross-correlation matrix, which training pulls to 1.

    ``mean over i of u1_i u2_i``, ``u`` the embedding standardised by mean and deviation of each dimension over a bank
    of embeddings (Zbontar et al. 2021, equation 2). Its mean over the pairs of the bank is the mean of the diagonal.

    Args:
        embeddings: ``(K, d)`` embeddings that mean and deviation are taken from, or a ``.npy`` file of them.

    Raises:
        UserError: no such file, or embeddings that are not ``(K, d)`` with K above 1.

    >>> import torch
    >>> bank = torch.tensor([[0.0, 5.0], [2.0, 7.0]])
    >>> CrossCorrelation(bank)(bank[:1], bank[:1]), CrossCorrelation(bank)(bank[:1], bank[1:])
    (tensor([1.]), tensor([-1.]))
    """

    def __init__(self, embeddings: Tensor | str | Path) -> None:
        bank = _embeddings("embeddings", embeddings)
        if len(bank) < 2:
            raise UserError("`embeddings` must be of two photos at least: they give a mean and a deviation")
        self.mean, self.deviation = bank.mean(dim=0), bank.std(dim=0, correction=0).clamp(min=1e-12)
        self.digest = _digest(torch.stack([self.mean, self.deviation]))

    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
        u1, u2 = ((z - self.mean.to(z)) / self.deviation.to(z) for z in (z1, z2))
        return (u1 * u2).mean(dim=-1)


class DistillationScore:
    """DINO's score of a student's logits of view 1 and a teacher's of view 2: at most 0.

    Minus (Caron et al. 2021, equation 1) the cross-entropy of the teacher's distribution, centred and sharpened, and
    the student's.

    Args:
        center: ``(K,)`` running mean of the teacher's logits; None is 0.
        student_temperature, teacher_temperature: 0.1 and 0.04 as published (0.07 at the end of some trainings).

    >>> import torch
    >>> score = DistillationScore(student_temperature=1.0, teacher_temperature=1.0)
    >>> score(torch.zeros(1, 4), torch.rand(1, 4))  # a student that knows nothing: log 4
    tensor([-1.3863])
    """

    def __init__(
        self, center: Tensor | None = None, student_temperature: float = 0.1, teacher_temperature: float = 0.04
    ) -> None:
        self.center = center
        self.student_temperature = _positive("student_temperature", student_temperature)
        self.teacher_temperature = _positive("teacher_temperature", teacher_temperature)
        self.digest = None if center is None else _digest(center)

    def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
        centred = z2 if self.center is None else z2 - self.center.to(z2)
        teacher = (centred / self.teacher_temperature).softmax(dim=-1)
        return (teacher * (z1 / self.student_temperature).log_softmax(dim=-1)).sum(dim=-1)


SIMILARITIES: dict[str, Similarity] = {
    "cosine": cosine,
    "dot": dot,
    "negative_distance": negative_distance,
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


def _embeddings(argument: str, given: Tensor | str | Path) -> Tensor:
    if isinstance(given, str | Path):
        path = Path(given).expanduser()
        try:
            given = torch.from_numpy(np.load(path, allow_pickle=False))
        except (*NO_ARRAYS, TypeError) as error:
            raise UserError(f"`{argument}={path}` is no .npy file of embeddings: {error}") from None
    if given.ndim != 2 or not given.is_floating_point() or not len(given):
        raise UserError(f"`{argument}` must be (K, d) embeddings, got {given.dtype} {tuple(given.shape)}")
    return given.detach().float().cpu()


def _positive(argument: str, value: float) -> float:
    if not value > 0:
        raise UserError(f"`{argument}` must be positive, got {value}")
    return float(value)


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
