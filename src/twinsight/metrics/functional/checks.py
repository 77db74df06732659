"""What every metric asks of its maps."""

from torch import Tensor
from torch.nn import functional as F

from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.models import TwoViewModel


def at_image_size(maps: Tensor, views: Tensor, name: str) -> Tensor:
    """Maps ``(B, h, w)`` at the size of the views ``(B, C, H, W)``, bilinear where they differ.

    Raises:
        UserError: not ``(B, h, w)`` for the batch of the views.
    """
    if maps.ndim != 3 or len(maps) != len(views):
        raise UserError(f"`{name}` must be ({len(views)}, h, w), one map per pair, got {tuple(maps.shape)}")
    size = (views.shape[-2], views.shape[-1])
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def bank_for(model: TwoViewModel, bank: PairBank | None) -> PairBank:
    """The given bank, or a new one.

    Raises:
        UserError: the bank belongs to another model.
    """
    if bank is not None and bank.model is not model:
        raise UserError("`bank` was made for another model")
    return PairBank(model) if bank is None else bank
