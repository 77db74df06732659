"""The rival: every method and metric written out literally, at the cost that SPEC's section 6 calls published.

One image at a time for gradients and metrics, batches of 32 for occlusion, memory layouts as they come, parameters that
collect gradients wherever gradients are asked for, and the partner encoded again at every step. Where no gradient is
asked for none is recorded, which favours the rival.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from benchmarks.measure import Passes
from twinsight.models import TwoViewModel

BATCH = 32
Boxes = list[tuple[int, int, int, int]]


class Rival:
    """Counts its passes."""

    def __init__(self, model: TwoViewModel) -> None:
        self.model = model
        self._forwards = 0
        self._backwards = 0

    def passes(self) -> Passes:
        """How many there were since the last call."""
        done = Passes(self._forwards, self._backwards)
        self._forwards = self._backwards = 0
        return done

    def encode(self, images: Tensor) -> Tensor:
        self._forwards += len(images)
        return self.model(images)

    def score(self, images: Tensor, partners: Tensor) -> Tensor:
        return F.cosine_similarity(self.encode(images), self.encode(partners))

    def gradients(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """At both views, by a backward pass that reaches every parameter."""
        x1, x2 = x1.clone().requires_grad_(), x2.clone().requires_grad_()
        self.score(x1, x2).sum().backward()
        self._backwards += 2
        assert x1.grad is not None
        assert x2.grad is not None
        self.model.zero_grad()
        return x1.grad, x2.grad

    @torch.no_grad()
    def occlusion(self, x1: Tensor, x2: Tensor, boxes: Boxes) -> tuple[list[Tensor], list[Tensor]]:
        """Conditional occlusion with windows of zeros."""
        z1, z2 = self.encode(x1), self.encode(x2)
        base = F.cosine_similarity(z1, z2)
        maps = []
        for image, z in ((x1, z2), (x2, z1)):
            images = self._in_batches(_erased(image, box) for box in boxes)
            maps.append([base - F.cosine_similarity(self.encode(batch), z) for batch in images])
        return maps[0], maps[1]

    @torch.no_grad()
    def context_agnostic_occlusion(self, x1: Tensor, x2: Tensor, boxes: Boxes) -> list[list[Tensor]]:
        z1, z2 = self.encode(x1), self.encode(x2)
        maps = []
        for image, z in ((x1, z2), (x2, z1)):
            erased = self._in_batches(_erased(image, box) for box in boxes)
            kept = self._in_batches(image - _erased(image, box) for box in boxes)
            pairs = zip(erased, kept, strict=True)
            maps.append([F.cosine_similarity(self.encode(alone) - self.encode(rest), z) for rest, alone in pairs])
        return maps

    @torch.no_grad()
    def pairwise_occlusion(self, x1: Tensor, x2: Tensor, boxes: Boxes) -> list[Tensor]:
        base = self.score(x1, x2)
        return [base - self.score(_erased(x1, a), _erased(x2, b)) for a, b in zip(boxes, boxes, strict=True)]

    def cams(self, x1: Tensor, x2: Tensor) -> list[Tensor]:
        """Grad-CAM and three Interaction-CAMs, each with its own passes; the latter weigh by embeddings made again."""
        maps = []
        for interacting in (False, True, True, True):
            a1, a2 = self.model.features(x1), self.model.features(x2)
            a1.retain_grad()
            a2.retain_grad()
            self._forwards += 2
            F.cosine_similarity(self.model.embed(a1), self.model.embed(a2)).sum().backward()
            self._backwards += 2
            self.model.zero_grad()
            if interacting:
                with torch.no_grad():
                    self.encode(x1), self.encode(x2)
            for a in (a1, a2):
                assert a.grad is not None
                maps.append((a * a.grad.relu()).sum(dim=1))
        return maps

    def input_x_gradient(self, x1: Tensor, x2: Tensor) -> list[Tensor]:
        return [(x * g).abs().amax(dim=1) for x, g in zip((x1, x2), self.gradients(x1, x2), strict=True)]

    def smoothgrad(self, x1: Tensor, x2: Tensor, samples: int) -> list[Tensor]:
        sums = [torch.zeros_like(x1), torch.zeros_like(x2)]
        for _ in range(samples):
            noise = 0.15 * torch.randn_like(x1)
            for total, gradient in zip(sums, self.gradients(x1 + noise, x2 + noise), strict=True):
                total += gradient
        return [(x * total / samples).abs().amax(dim=1) for x, total in zip((x1, x2), sums, strict=True)]

    def averaged_transforms(self, x1: Tensor, x2: Tensor, weights: list[float]) -> list[Tensor]:
        sums = [torch.zeros_like(x1), torch.zeros_like(x2)]
        for weight in weights:
            mixed = weight * x1 + (1 - weight) * x2
            for total, gradient in zip(sums, self.gradients(x1, mixed), strict=True):
                total += gradient
        return [(x * total / len(weights)).abs().amax(dim=1) for x, total in zip((x1, mixed), sums, strict=True)]

    @torch.no_grad()
    def insertion_deletion(self, x1: Tensor, x2: Tensor, map1: Tensor, map2: Tensor, points: int) -> list[list[Tensor]]:
        """SI, SD and both directions of CI and CD: 12 passes a point."""
        curves = []
        for end in ("blur", "zero"):
            paths = [list(_path(x, heatmap, end, points)) for x, heatmap in ((x1, map1), (x2, map2))]
            curves.append([self.score(a, b) for a, b in zip(*paths, strict=True)])
            curves.append([self.score(a, x2) for a in paths[0]])
            curves.append([self.score(x1, b) for b in paths[1]])
        return curves

    @torch.no_grad()
    def average_drop(self, x1: Tensor, x2: Tensor, map1: Tensor, map2: Tensor) -> list[Tensor]:
        """SAD with SIC, CAD and CIC in both directions: 12 passes."""
        first, second = x1 * _scaled(map1), x2 * _scaled(map2)
        cases = ((first, second), (first, x2), (x1, second))
        return [(self.score(x1, x2) - self.score(a, b)).clamp(min=0) for a, b in cases]

    @staticmethod
    def _in_batches(images: Iterable[Tensor]) -> Iterable[Tensor]:
        batch: list[Tensor] = []
        for image in images:
            batch.append(image)
            if len(batch) == BATCH:
                yield torch.cat(batch)
                batch = []
        if batch:
            yield torch.cat(batch)


def _erased(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    top, left, height, width = box
    erased = image.clone()
    erased[..., top : top + height, left : left + width] = 0
    return erased


def _path(image: Tensor, heatmap: Tensor, end: str, points: int) -> Iterable[Tensor]:
    """``points + 1`` images: pixels copied step by step, most important first."""
    start, finish = (gaussian_blur(image, [11, 11], [5.0, 5.0]), image) if end == "blur" else (image, 0 * image)
    order = heatmap.flatten().argsort(descending=True)
    step = -(-order.numel() // points)
    current = start.clone()
    yield current.clone()
    for place in range(0, order.numel(), step):
        pixels = order[place : place + step]
        current.view(*current.shape[:2], -1)[..., pixels] = finish.flatten(2)[..., pixels]
        yield current.clone()


def _scaled(heatmap: Tensor) -> Tensor:
    return (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
