"""How a layer's output lies on the image: feature maps, channels-last maps, tokens of transformers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twinsight.errors import UserError


@dataclass(frozen=True)
class MapLayout:
    """The way from a layer's output to a feature map ``(B, D, h, w)`` and back.

    Attributes:
        kind: ``"map"`` ``(B, D, h, w)``, ``"channels_last"`` ``(B, h, w, D)`` or ``"tokens"`` ``(B, N, D)``.
        width: columns of the map.
        prefix_tokens: tokens before those of the image: class tokens, registers.

    >>> layout = MapLayout("tokens", width=2, prefix_tokens=1)
    >>> tokens = torch.arange(5.0).view(1, 5, 1)
    >>> layout.to_map(tokens)[0, 0].tolist(), torch.equal(layout.from_map(layout.to_map(tokens)), tokens)
    ([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], True)
    """

    kind: Literal["map", "channels_last", "tokens"]
    width: int
    prefix_tokens: int = 0

    @property
    def prefix_rows(self) -> int:
        """Rows on top of the map that hold prefix tokens, filled up with zeros."""
        return math.ceil(self.prefix_tokens / self.width)

    def to_map(self, output: Tensor) -> Tensor:
        """The output as ``(B, D, prefix_rows + h, w)``."""
        if self.kind == "map":
            return output
        if self.kind == "channels_last":
            return output.permute(0, 3, 1, 2).contiguous()
        prefix, patches = output.split([self.prefix_tokens, output.shape[1] - self.prefix_tokens], dim=1)
        filling = output.new_zeros(len(output), self.prefix_rows * self.width - self.prefix_tokens, output.shape[2])
        return torch.cat([prefix, filling, patches], dim=1).transpose(1, 2).unflatten(2, (-1, self.width)).contiguous()

    def from_map(self, features: Tensor) -> Tensor:
        """What :meth:`to_map` was given."""
        if self.kind == "map":
            return features
        if self.kind == "channels_last":
            return features.permute(0, 2, 3, 1).contiguous()
        tokens = features.flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, : self.prefix_tokens], tokens[:, self.prefix_rows * self.width :]], dim=1)


def layout_of(shape: Sequence[int], prefix_tokens: int | None, where: str) -> MapLayout:
    """The layout of an output of this shape, for square images.

    Args:
        shape: four numbers are a map, channels last where its second and third alone are equal; three are tokens.
        prefix_tokens: None counts the tokens beyond the largest square number.
        where: what complaints call the output.

    Raises:
        UserError: it is no feature map, or has one position.

    >>> layout_of((1, 197, 384), None, "`feature_layer=blocks.11`")
    MapLayout(kind='tokens', width=14, prefix_tokens=1)
    >>> layout_of((1, 7, 7, 768), None, "`feature_layer=norm`").kind
    'channels_last'
    """
    shape = tuple(shape)
    if len(shape) == 4:
        last = shape[1] == shape[2] != shape[3]
        layout = MapLayout("channels_last" if last else "map", shape[2] if last else shape[3])
        positions = shape[1] * shape[2] if last else shape[2] * shape[3]
    elif len(shape) == 3 and shape[1] > (prefix_tokens or 0):
        tokens = shape[1]
        side = math.isqrt(tokens - (prefix_tokens or 0))
        prefix = tokens - side**2
        if prefix_tokens is not None and prefix != prefix_tokens:
            raise UserError(
                f"{where} must give a square number of tokens and {prefix_tokens} more, got {tokens}: "
                "see `prefix_tokens`"
            )
        layout, positions = MapLayout("tokens", side, prefix), side**2
    else:
        raise UserError(f"{where} must give feature maps (B, C, H, W), or tokens (B, N, C), got {shape}")
    if positions < 2:
        raise UserError(
            f"{where} must give feature maps (B, C, H, W) of several positions, got {shape}: "
            "choose an earlier layer, or a larger `input_size`"
        )
    return layout
