"""What explainers and metrics ask of a batch of pairs."""

import torch
from torch import Tensor, nn

from twinsight.errors import UserError


def check_views(model: nn.Module, view1: Tensor, view2: Tensor, seeds: Tensor | None) -> None:
    """Refuse what is not a batch of pairs: two float tensors ``(B, C, H, W)`` of one shape, B >= 1, ``(B,)`` seeds.

    They are float32, which mixed precision takes as well, or of the type of the model's weights.

    Raises:
        TypeError: not tensors, or seeds that are not integers.
        UserError: shapes or types do not fit.
    """
    kinds = {torch.float32, *(each.dtype for each in model.parameters() if each.is_floating_point())}
    for name, view in (("view1", view1), ("view2", view2)):
        if not isinstance(view, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(view).__name__}")
        if view.ndim != 4 or len(view) == 0 or not view.is_floating_point():
            given = f"{str(view.dtype).removeprefix('torch.')} {tuple(view.shape)}"
            raise UserError(f"`{name}` must be a float tensor (B, C, H, W) with B >= 1, got {given}")
        if view.dtype not in kinds:
            wanted = " or ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise UserError(f"`{name}` must be {wanted} for this model, got {str(view.dtype).removeprefix('torch.')}")
    if view1.shape != view2.shape:
        raise UserError(f"`view1` and `view2` must have one shape, got {tuple(view1.shape)} and {tuple(view2.shape)}")
    if seeds is None:
        return
    if not isinstance(seeds, Tensor) or seeds.is_floating_point():
        raise TypeError(f"`seeds` must be a tensor of integers, got {getattr(seeds, 'dtype', type(seeds).__name__)}")
    if tuple(seeds.shape) != (len(view1),):
        raise UserError(f"`seeds` must be ({len(view1)},), one per pair, got {tuple(seeds.shape)}")
