"""Linear surrogates of a similarity: what of an image predicts it."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Fit(NamedTuple):
    """A linear surrogate.

    Attributes:
        weights: ``(C, h, w)``.
        bias: scalar.
        r2_in_sample: scalar, share of the labels' variance explained.
        r2: the same with each label predicted without itself; None where that is not known.
    """

    weights: Tensor
    bias: Tensor
    r2_in_sample: Tensor
    r2: Tensor | None


def fit_logistic(
    images: Tensor,
    plain: Tensor,
    labels: Tensor,
    initial: Tensor,
    learning_rate: float = 0.1,
    epochs: int = 1000,
    l1: float = 0.2,
    target: Tensor | None = None,
    target_weight: float = 0.0,
) -> Fit:
    """The published surrogate: ``y'_n = ((w.x + b) + (w.x_n + b)) / 2`` by full-batch gradient descent.

    The loss is ``sum_n BCE-with-logits(y'_n, y_n) + l1 (|w|_1 + |b|)``, and with a target ``t_n``
    ``+ target_weight MSE(sigmoid(y'_n), t_n)``.

    Args:
        images: ``(N, C, h, w)`` augmented images ``x_n``.
        plain: ``(C, h, w)`` the image ``x`` itself.
        labels: ``(N,)``.
        initial: ``(C, h, w)`` weights to start from; the bias starts at 0.
        target: ``(N,)``.

    >>> zeros = torch.zeros(1, 2, 2)
    >>> fit_logistic(torch.ones(2, 1, 2, 2), zeros, torch.ones(2), zeros, learning_rate=1.0, epochs=1).weights
    tensor([[[0.5000, 0.5000],
             [0.5000, 0.5000]]])
    """
    means = (images.flatten(1) + plain.flatten()) / 2
    weights, bias = initial.flatten().clone(), labels.new_zeros(())
    for _ in range(epochs):
        predicted = torch.sigmoid(means @ weights + bias)
        slope = predicted - labels  # of the cross-entropy, by the logit
        if target is not None and target_weight:
            slope = slope + 2 * target_weight / len(labels) * (predicted - target) * predicted * (1 - predicted)
        weights, bias = (
            weights - learning_rate * (means.T @ slope + l1 * weights.sign()),
            bias - learning_rate * (slope.sum() + l1 * bias.sign()),
        )
    fitted = torch.sigmoid(means @ weights + bias).double().cpu().numpy()
    return Fit(weights.view(initial.shape), bias, labels.new_tensor(_r2(labels.double().cpu().numpy(), fitted)), None)


def fit_ridge(images: Tensor, labels: Tensor, target: Tensor | None = None, target_weight: float = 0.0) -> Fit:
    """The sound surrogate: ridge regression ``y_n = w.x_n + b``, its strength chosen by leave-one-out.

    Convex and deterministic; negative labels are as good as any. The strength is the best of 25, spaced evenly on a
    logarithmic scale from 1e-6 to 100 times the mean squared norm of the centred images. With a target ``t_n``, the sum
    of squares ``sum_n (y'_n - y_n)^2 + target_weight (y'_n - t_n)^2`` is that of one regression, on their weighted mean
    ``(y_n + target_weight t_n) / (1 + target_weight)``, which takes the place of the labels, in ``r2`` too.

    Args:
        images: ``(N, C, h, w)``, N >= 2.
        labels: ``(N,)``, finite and not all equal.
        target: ``(N,)``.

    >>> images = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    >>> fit = fit_ridge(images, images[:, 0, 0, 0] - 2 * images[:, 0, 1, 1])
    >>> fit.weights.mul(100).round().int().tolist(), round(float(fit.r2), 3)
    ([[[100, 0], [0, -200]]], 1.0)
    """
    from sklearn.linear_model import RidgeCV  # brings pandas along: two seconds of the start of whoever fits nothing

    x = images.flatten(1).double().cpu().numpy()
    y = labels.double().cpu().numpy()
    if target is not None and target_weight:
        y = (y + target_weight * target.double().cpu().numpy()) / (1 + target_weight)
    scale = max(float(x.var(axis=0).sum()), 1e-12)
    model = RidgeCV(scale * np.logspace(-6, 2, 25)).fit(x, y)  # with few samples it works on their inner products
    # Without a scoring of its own, best_score_ is minus the mean squared leave-one-out error.
    left_out = 1 + model.best_score_ / max(float(y.var()), 1e-24)
    weights = torch.from_numpy(model.coef_).view(images.shape[1:]).to(images)
    in_sample = _r2(y, model.predict(x))
    return Fit(weights, *(labels.new_tensor(value) for value in (float(model.intercept_), in_sample, left_out)))


def nmf_targets(embeddings: Tensor, components: int = 10) -> Tensor:
    """``t_n = mean_k W[n, k]`` of the non-negative factorisation ``relu(f(x_n)) = W H``, ``(N, d) -> (N,)``.

    Deterministic: factors start from the singular vectors. At most as many as the matrix has rows or columns; zeros
    where no embedding has a positive part.
    """
    from sklearn.decomposition import NMF  # as slow to import

    positive: NDArray = embeddings.relu().double().cpu().numpy()
    if not positive.any():
        return embeddings.new_zeros(len(embeddings))
    rank = min(components, *positive.shape)
    factors = NMF(rank, init="nndsvda", random_state=0, tol=1e-4, max_iter=2000).fit_transform(positive)
    return torch.from_numpy(factors.mean(axis=1)).to(embeddings)


def _r2(labels: NDArray, predicted: NDArray) -> float:
    return 1 - float(((labels - predicted) ** 2).mean()) / max(float(labels.var()), 1e-24)
