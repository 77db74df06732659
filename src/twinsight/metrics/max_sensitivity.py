"""Average of max-sensitivity over pairs; :func:`.functional.max_sensitivity` has the mathematics."""

from types import SimpleNamespace

from torch import Tensor

from twinsight.metrics.base import PairMetric


class MaxSensitivity(PairMetric):
    """MS: mean of how much the maps change, at most, under small noise on both views. Lower is better.

    ``update()`` takes the functional's ``(B,)`` tensor, or a result that has it as ``ms``.

    >>> import torch
    >>> metric = MaxSensitivity()
    >>> metric.update(torch.tensor([0.5, 1.5, float("nan")]))
    >>> metric.compute(), int(metric.missing)
    (tensor(1., dtype=torch.float64), 1)
    """

    field = "ms"
    higher_is_better = False

    def update(self, result: object) -> None:
        """Add the pairs of a functional's result."""
        super().update(SimpleNamespace(ms=result) if isinstance(result, Tensor) else result)
