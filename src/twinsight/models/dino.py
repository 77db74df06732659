"""DINO as it is trained: a student that looks at view 1, and its teacher at view 2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinsight.errors import UserError
from twinsight.models.checkpoints import read_tensors, sha256, shapes
from twinsight.models.ssl_checkpoints import LoadReport, build_head, build_network, left_over, trunk_in
from twinsight.models.two_view import Normalization, TwoViewModel, named_normalization
from twinsight.similarity import DistillationScore, Similarity

_SIDES = {"student": ("student.module.", "student."), "teacher": ("teacher.module.", "teacher.")}


class StudentTeacher(TwoViewModel):
    """Two networks of one architecture, one for each view: student for view 1, teacher for view 2.

    Args:
        student, teacher: two-view models, of the same feature maps.
        similarity: of the student's embedding and the teacher's.

    >>> from twinsight.models import small_two_view
    >>> model = StudentTeacher(small_two_view(), small_two_view(), "cosine").eval()
    >>> x = torch.rand(1, 3, 64, 64)
    >>> torch.equal(model(x, view=1), model(x, view=2))
    False
    """

    symmetric = False

    def __init__(self, student: TwoViewModel, teacher: TwoViewModel, similarity: str | Similarity) -> None:
        super().__init__(
            nn.Identity(),
            normalization=student.normalization,
            similarity=similarity,
            input_size=student.input_size,
        )
        del self.trunk, self.head
        self.student = student
        self.teacher = teacher

    @property
    def prefix_rows(self) -> int:
        return self.student.prefix_rows

    @property
    def mean_pooled(self) -> bool:
        return self.student.mean_pooled and self.teacher.mean_pooled

    def features(self, x: Tensor, view: int = 1) -> Tensor:
        return self._network(view).features(x)

    def embed(self, features: Tensor, view: int = 1) -> Tensor:
        return self._network(view).embed(features)

    def forward(self, x: Tensor, view: int = 1) -> Tensor:
        return self._network(view)(x)

    def on_image(self, features: Tensor) -> Tensor:
        return self.student.on_image(features)

    def _network(self, view: int) -> TwoViewModel:
        return self.student if view == 1 else self.teacher


class DINOHead(nn.Module):
    """``(B, D) -> (B, K)`` logits: a perceptron with GELUs, length 1, and the cosine to each of K prototypes.

    Args:
        perceptron: ``(B, D) -> (B, bottleneck)``.
        prototypes: ``(K, bottleneck)``, of any length (weight norm, Caron et al. 2021, appendix C).
        lengths: ``(K, 1)`` that logits are scaled with, 1 in published files.
    """

    def __init__(self, perceptron: nn.Module, prototypes: Tensor, lengths: Tensor) -> None:
        super().__init__()
        self.mlp = perceptron
        self.prototypes = nn.Parameter(F.normalize(prototypes, dim=1) * lengths)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.mlp(pooled), dim=-1) @ self.prototypes.T


def dino_model(
    checkpoint: str | Path,
    architecture: str | None = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    similarity: str | Similarity = "distillation",
    normalization: Normalization | str | None = "imagenet",
    input_size: int = 224,
) -> StudentTeacher:
    """Student and teacher of a full checkpoint of DINO, with the score that training maximises.

    Args:
        checkpoint: the full checkpoint, ``{"student": ..., "teacher": ..., "dino_loss": ...}``. One of the backbone
            alone is for :func:`twinsight.models.checkpoint_model`.
        architecture: name of a ResNet of torchvision, or of a transformer of timm (``vit_small_patch16_224``), whose
            keys are DINO's; None finds out which ResNet it is.
        student_temperature, teacher_temperature: of the two distributions.
        similarity: ``"distillation"``, the published score; or any other of the logits.
        normalization, input_size: of the input space.

    Raises:
        UserError: a file that cannot be read, or lacks one of the two networks or their heads.
    """
    path = Path(checkpoint).expanduser()
    tensors = read_tensors(path)
    used: set[str] = set()
    center = tensors.get("dino_loss.center")
    networks, name = {}, ""
    for side, beginnings in _SIDES.items():
        begin = next((begin for begin in beginnings if any(key.startswith(begin) for key in tensors)), None)
        if begin is None:
            raise UserError(f"`checkpoint={path}` holds no {side}: give the full checkpoint of DINO's training")
        own = {key.removeprefix(begin): value for key, value in tensors.items() if key.startswith(begin)}
        name, prefix, renamed = trunk_in(path, shapes(own), architecture, "backbone.")
        trunk, taken = build_network(name, own, prefix, renamed)
        head, of_head = _head(path, side, own)
        used |= {begin + key for key in taken | of_head}
        networks[side] = _two_view(trunk, head, named_normalization(normalization), input_size)
    if center is not None:
        used.add("dino_loss.center")
        center = center.flatten()
    if similarity == "distillation":
        similarity = DistillationScore(center, student_temperature, teacher_temperature)
    model = StudentTeacher(networks["student"], networks["teacher"], similarity)
    left = left_over(shapes(tensors), used)
    model.load_report = LoadReport(path.name, "DINO", name, "student., teacher.", "head.", len(used), left)
    model.checkpoint_sha256 = sha256(path)
    return model.eval()


def _two_view(trunk: nn.Module, head: nn.Module, normalization: Normalization | None, input_size: int) -> TwoViewModel:
    if isinstance(trunk, nn.Sequential):
        return TwoViewModel(trunk, head, normalization=normalization, input_size=input_size)
    whole = nn.Sequential(trunk, head)
    return TwoViewModel.from_module(whole, normalization=normalization, input_size=input_size)


def _head(path: Path, side: str, tensors: Mapping[str, Any]) -> tuple[DINOHead, set[str]]:
    perceptron = {key: value for key, value in tensors.items() if key.startswith("head.mlp.")}
    prototypes = tensors.get("head.last_layer.weight_v")
    if not perceptron or prototypes is None:
        raise UserError(f"`checkpoint={path}` holds no head of the {side} (head.mlp, head.last_layer)")
    built, used = build_head(perceptron, "head.mlp.", nn.GELU)
    lengths = tensors.get("head.last_layer.weight_g", torch.ones(len(prototypes), 1))
    names = {key for key in tensors if key.startswith("head.last_layer.")}
    return DINOHead(built, prototypes.clone(), lengths), used | names
