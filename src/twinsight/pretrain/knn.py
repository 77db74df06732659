"""How good features are without training on them: nearest neighbours vote."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from twinsight.errors import UserError


class KNNAccuracy(Metric):
    """Weighted k-nearest-neighbour accuracy (Wu et al. 2018, section 3.4) of query features against references.

    The ``k`` references nearest by cosine vote for their class with weight ``exp(cosine / temperature)``.

    Args:
        k: neighbours that vote, 200 by default; all references where there are fewer.
        temperature: of the votes' weights, 0.1 by default.
        kwargs: for :class:`torchmetrics.Metric`.

    ``compute()`` returns the share of queries classified correctly, in [0, 1].

    Raises:
        UserError: ``k`` or ``temperature`` is not positive.

    >>> accuracy = KNNAccuracy(k=1)
    >>> accuracy.update(torch.eye(2), torch.tensor([0, 1]), reference=True)
    >>> accuracy.update(torch.tensor([[1.0, 0.1], [0.9, 0.0]]), torch.tensor([0, 1]), reference=False)
    >>> accuracy.compute()
    tensor(0.5000)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    references: list[Tensor]
    reference_labels: list[Tensor]
    queries: list[Tensor]
    query_labels: list[Tensor]

    def __init__(self, k: int = 200, temperature: float = 0.1, **kwargs) -> None:
        super().__init__(**kwargs)
        if k < 1 or temperature <= 0:
            raise UserError(f"`k` and `temperature` must be positive, got {k} and {temperature}")
        self.k = k
        self.temperature = temperature
        for state in ("references", "reference_labels", "queries", "query_labels"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor, reference: bool) -> None:
        """Add ``(B, d)`` features with ``(B,)`` class indices, as references or as queries."""
        features = F.normalize(features.float(), dim=1)
        (self.references if reference else self.queries).append(features)
        (self.reference_labels if reference else self.query_labels).append(labels)

    def compute(self) -> Tensor:
        references, reference_labels = dim_zero_cat(self.references), dim_zero_cat(self.reference_labels)
        queries, query_labels = dim_zero_cat(self.queries), dim_zero_cat(self.query_labels)
        classes = int(max(reference_labels.max(), query_labels.max())) + 1
        votes_of = F.one_hot(reference_labels, classes).to(references)
        correct = torch.zeros((), device=queries.device)
        for chunk, truth in zip(queries.split(512), query_labels.split(512), strict=True):
            cosines, neighbours = (chunk @ references.T).topk(min(self.k, len(references)), dim=1)
            # Relative to the nearest, which changes no winner: the exponential alone overflows at low temperatures.
            weights = ((cosines - cosines[:, :1]) / self.temperature).exp()
            votes = (weights.unsqueeze(-1) * votes_of[neighbours]).sum(dim=1)
            correct += (votes.argmax(dim=1) == truth).sum()
        return correct / len(queries)
