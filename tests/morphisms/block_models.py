"""Models made of blocks: residual ones of several kinds, and some that cannot be copied as the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.ir.graph import Graph
from archir.testing import leaves_of, randomise
from frontends.pytorch import trace


class Attention(nn.Module):
    """Causal self-attention with a mask from outside."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        found: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, width))
        return found


class TokenBlock(nn.Module):
    """A block of a transformer whose norms come first, with dropout and a layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.drop = nn.Dropout(0.1)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), mask))
        found: Tensor = x + self.scale * self.mlp(self.norm2(x))
        return found


class Transformer(nn.Module):
    """Blocks of a transformer that share a mask."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, mask)
        found: Tensor = self.head(self.norm(x))
        return found


class RawBlock(nn.Module):
    """A residual block of raw weights: on flattened tokens, the last with its axes exchanged, and a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.randn(width, width))
        self.two = nn.Parameter(torch.randn(width, width))
        self.scale = nn.Parameter(torch.ones(1, 1))
        self.bias = nn.Parameter(torch.randn(width))
        self.three = nn.Parameter(torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        x = x + self.scale * (torch.sin(x @ self.one) @ self.two.T)
        return (x + torch.addmm(self.bias, torch.tanh(x), self.three)).reshape(shape)


class Gated(nn.Module):
    """A residual block of a convolutional net with squeeze and excitation, clamped at 6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        gate = torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return F.relu6(x + gate * y)


class Parallel(nn.Module):
    """A residual block whose branch is itself a sum, and that shares a layer with itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.left = nn.Conv2d(width, width, 1)
        self.right = nn.Conv2d(width, width, 1, bias=False)
        self.last = self.left

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.inner(x))
        x = x + (self.left(y) + self.right(y))
        found: Tensor = x - self.last(y)
        return found


class Images(nn.Module):
    """A convolutional net of two kinds of blocks, the first of which follow an activation that is clamped too."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.gated = nn.Sequential(Gated(width), Gated(width))
        self.parallel = Parallel(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.parallel(self.gated(F.relu6(self.stem(x))))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


class Residual(nn.Module):
    """A residual block of linear layers, of which every wrong kind is a variation."""

    def __init__(self, kind: str, width: int = 8) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        branch = torch.tanh(self.linear(x))
        if self.kind == "plain":
            return (branch,)
        if self.kind == "post_norm":
            return (self.norm(x + branch),)
        if self.kind == "cosine":
            return (x + torch.cos(branch),)
        if self.kind == "activated":
            return (F.relu(x + branch),)
        if self.kind == "two":
            return x + branch, branch
        if self.kind == "both":
            return (self.linear(x) * y,)
        return (x.clone(),)


class Odd(nn.Module):
    """A net with one block of a given kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.block = Residual(kind)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        parts = self.block(x, x.sigmoid())
        return torch.cat([self.last(part) for part in parts])


def capture(model: nn.Module, *args: Any) -> tuple[Graph, list[torch.Tensor]]:
    """Return the randomised graph of a model in float64, and its inputs."""
    return randomise(trace(model, args).to(torch.float64)), leaves_of(args)


def images() -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(0)
    return capture(Images(), torch.randn(3, 1, 8, 8))


def tokens() -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(0)
    return capture(Transformer(), torch.randint(0, 20, (3, 6)))
