"""A tiny vision transformer whose attention is written out, so that tests can look into it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Attention by PyTorch's fused function, as most networks have it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.split(tokens)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(B, heads, N, d)``."""
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class TinyTransformer(nn.Module):
    """``(B, 3, 32, 32)`` images as 16 tokens, with a class token and registers; the embedding is either kind's."""

    def __init__(self, pool: str = "class", registers: int = 1, depth: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch = nn.Conv2d(3, 8, 8, stride=8)
            self.prefix = nn.Parameter(torch.randn(1, (1 + registers) * (pool == "class"), 8))
            self.position = nn.Parameter(torch.randn(1, 16, 8))
            self.blocks = nn.Sequential(*(Block(8, 2) for _ in range(depth)))
            self.norm = nn.LayerNorm(8)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.embedded(self.norm(self.blocks(self.entering(x))))

    def entering(self, x: Tensor) -> Tensor:
        """Tokens as they enter the first block."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return torch.cat([self.prefix.expand(len(x), -1, -1), tokens], dim=1)

    def embedded(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.pool == "class" else tokens.mean(dim=1)
