"""SimSiam as it is trained: a predictor on top of the projector, on one side of the score."""

from typing import Any, ClassVar

from torch import Tensor, nn

from twinsight.errors import unknown
from twinsight.models.two_view import AveragePool, TwoViewModel
from twinsight.protocol import resolve

PREDICTORS = ("both", "view1")


class SimSiam(TwoViewModel):
    """Two views whose embeddings differ in kind: the prediction made from view 1, the projection of view 2.

    SimSiam is trained to predict one view's projection from the other's (Chen & He 2021, equation 1), so the sound
    score compares ``prediction_head(head(p1))`` with ``head(p2)``. The published explanations predict on both sides.

    Args:
        trunk: ``(B, C, H, W)`` images to ``(B, D, h, w)`` feature maps.
        head: the projector, ``(B, D) -> (B, d)``.
        prediction_head: the predictor, ``(B, d) -> (B, d)``.
        predictor: the views it is applied to, ``"view1"`` or ``"both"``; None takes it from ``protocol``.
        protocol: ``"sound"`` means ``predictor="view1"``, ``"paper"`` means ``"both"``.
        options: further arguments of :class:`TwoViewModel`.

    Raises:
        UserError: as :class:`TwoViewModel`, or an unknown predictor or protocol.

    >>> import torch
    >>> parts = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4), nn.Linear(4, 4)
    >>> x = torch.rand(1, 3, 32, 32)
    >>> sound, paper = (SimSiam(*parts, protocol=name, input_size=32) for name in ("sound", "paper"))
    >>> torch.equal(sound(x, view=1), sound(x, view=2)), torch.equal(paper(x, view=1), paper(x, view=2))
    (False, True)
    """

    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {"predictor": {"paper": "both", "sound": "view1"}}

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        prediction_head: nn.Module,
        predictor: str | None = None,
        protocol: str = "sound",
        **options: Any,
    ) -> None:
        predictor = resolve(protocol, self.protocol_options, {"predictor": predictor})["predictor"]
        if predictor not in PREDICTORS:
            raise unknown("`predictor`", predictor, PREDICTORS)
        super().__init__(trunk, head, **options)
        self.prediction_head = prediction_head
        self.symmetric = predictor == "both"

    def embed(self, features: Tensor, view: int = 1) -> Tensor:
        projection = super().embed(features, view)
        return self.prediction_head(projection) if view == 1 or self.symmetric else projection

    @property
    def mean_pooled(self) -> bool:
        return isinstance(self.pool, AveragePool)
