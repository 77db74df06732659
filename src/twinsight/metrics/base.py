"""State of the averaged metrics."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from twinsight.errors import UserError


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
    def why_not(cls, maps: int) -> str | None:
        """Why the metric makes no sense for a method of so many maps, None where it does.

        >>> PairMetric.why_not(0), PairMetric.why_not(1)
        ('the method makes images, not maps', None)
        """
        if maps == 0:
            return "the method makes images, not maps"
        return "both views need a map, the method makes one" if maps < cls.maps else None

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
