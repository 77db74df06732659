"""Pixel invariance: the published surrogate sample by sample, and ridge regression with each label left out."""

import torch
from torch import Tensor

from oracles.images import gaussian_blur, min_max


def published_surrogate(
    plain: Tensor,
    augmented: Tensor,
    labels: Tensor,
    initial: Tensor,
    learning_rate: float,
    epochs: int,
    l1: float = 0.2,
    targets: Tensor | None = None,
    nmf_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Weights and bias after ``epochs`` full-batch steps down ``sum_n BCE(y'_n, y_n) + l1 (|w|_1 + |b|)``.

    With ``targets``, ``nmf_weight * mean_n (sigmoid(y'_n) - t_n)^2`` is added. The bias starts at 0.
    """
    w = initial.clone()
    b = torch.zeros((), dtype=initial.dtype)
    for _ in range(epochs):
        w.requires_grad_()
        b.requires_grad_()
        loss = l1 * (w.abs().sum() + b.abs())
        for n in range(len(augmented)):
            logit = ((w * plain).sum() + b + (w * augmented[n]).sum() + b) / 2
            p = 1 / (1 + torch.exp(-logit))
            loss = loss - labels[n] * torch.log(p) - (1 - labels[n]) * torch.log(1 - p)
            if targets is not None:
                loss = loss + nmf_weight * (p - targets[n]) ** 2 / len(augmented)
        dw, db = torch.autograd.grad(loss, (w, b))
        w, b = (w - learning_rate * dw).detach(), (b - learning_rate * db).detach()
    return w, b


def published_map(weights: Tensor, threshold: float = 0.5, blur: bool = True) -> Tensor:
    """Channel maximum, min-max scaled, zero below ``threshold``, blurred (Gaussian, kernel 11, sigma 5)."""
    found = weights[0].clone()
    for channel in weights:
        found = torch.maximum(found, channel)
    found = min_max(found)
    for y in range(found.shape[0]):
        for x in range(found.shape[1]):
            if found[y, x] < threshold:
                found[y, x] = 0
    return gaussian_blur(found[None, None])[0, 0] if blur else found


def ridge(images: Tensor, labels: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights and bias that minimise ``sum_n (w.x_n + b - y_n)^2 + strength |w|^2``: the normal equations."""
    x = images.flatten(1)
    centred, y = x - x.mean(dim=0), labels - labels.mean()
    w = torch.linalg.solve(centred.T @ centred + strength * torch.eye(x.shape[1], dtype=x.dtype), centred.T @ y)
    return w.view(images.shape[1:]), labels.mean() - x.mean(dim=0) @ w


def left_out_errors(images: Tensor, labels: Tensor, strength: float) -> Tensor:
    """What each label is missed by when it is predicted by a fit to all others, ``(N,)``."""
    errors = torch.zeros_like(labels)
    for n in range(len(labels)):
        others = [m for m in range(len(labels)) if m != n]
        w, b = ridge(images[others], labels[others], strength)
        errors[n] = (w * images[n]).sum() + b - labels[n]
    return errors
