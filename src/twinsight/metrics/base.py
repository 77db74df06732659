"""State of the averaged metrics."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from twinsight.errors import UserError


class Declared(Protocol):
    """What an explainer, or its class, says of itself.

    Attributes:
        maps: how many maps it makes: 2, 1 (of view 1), or 0 (images instead).
        not_for: columns that make no sense for it though its maps would do, and why.
    """

    maps: int
    not_for: Mapping[str, str]


class PairMetric(Metric):
    """Mean over pairs of one field of a functional's result, in constant memory.

    Pairs without the field (NaN: the method makes only one map; infinite: relative to a similarity of zero) are left
    out and counted in ``missing``. Sums are kept in double precision, so that the mean does not depend on how pairs
    were split over processes.

    Args:
        kwargs: for :class:`torchmetrics.Metric`.

    ``compute()`` returns the mean, NaN when no pair had the field.

    Raises:
        UserError: ``update`` gets a result without the field.

    A subclass names its ``field``, ``higher_is_better``, and how many ``maps`` it needs.
    """

    field: ClassVar[str]
    maps: ClassVar[int] = 1
    """Maps that a pair must have: 2 where both views are perturbed at once, 1 where one is and the other is whole."""
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor
    missing: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("missing", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    @classmethod
    def why_not(cls, explainer: Declared | type[Any]) -> str | None:
        """Why the metric makes no sense for an explainer, or a class of them; None where it does.

        >>> from twinsight.explainers import ConditionalOcclusion, GradCAM
        >>> from twinsight.metrics import MaxSensitivity
        >>> MaxSensitivity.why_not(GradCAM), MaxSensitivity.why_not(ConditionalOcclusion)
        (None, 'the paper does not define it for occlusion')
        """
        if explainer.maps == 0:
            return "the method makes images, not maps"
        if explainer.maps < cls.maps:
            return "both views need a map, the method makes one"
        return explainer.not_for.get(cls.field)

    def update(self, result: object) -> None:
        """Add the pairs of a functional's result."""
        values = getattr(result, self.field, None)
        if not isinstance(values, Tensor):
            raise UserError(f"{type(self).__name__} needs a result with the field {self.field!r}, got {result!r:.80}")
        present = values.isfinite()
        self.total += values[present].double().sum().to(self.total)
        self.count += present.sum().to(self.count)
        self.missing += (~present).sum().to(self.missing)

    def compute(self) -> Tensor:
        return self.total / self.count

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value, or a sequence of them over steps, and return matplotlib's figure and axes."""
        return self._plot(val, ax)
