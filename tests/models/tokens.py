"""Sequence models: attention in its variants, and recurrence."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GPT(nn.Module):
    """One block of a GPT with fused qkv weights and causal attention; embedding and head tied on request."""

    def __init__(
        self, vocabulary: int = 50, width: int = 32, heads: int = 4, tied: bool = False, length: int = 16
    ) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        width = x.shape[-1]
        parts = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (p.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(batch, length, width))
        x = x + self.mlp(self.norm2(x))
        return cast(Tensor, self.head(x))


class GroupedQueryAttention(nn.Module):
    """A Llama-like block: root-mean-square norm, grouped-query attention by repeated heads, SwiGLU."""

    def __init__(self, width: int = 32, heads: int = 8, groups: int = 2, size: int = 4) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, size
        self.scale = nn.Parameter(torch.ones(width))
        self.query = nn.Linear(width, heads * size)
        self.key = nn.Linear(width, groups * size)
        self.value = nn.Linear(width, groups * size)
        self.out = nn.Linear(heads * size, width)
        self.gate = nn.Linear(width, 48)
        self.up = nn.Linear(width, 48)
        self.down = nn.Linear(48, width)
        self.embedding = nn.Embedding(20, width)
        self.head = nn.Linear(width, 20)

    def _repeat(self, x: Tensor) -> Tensor:
        batch, _, length, _ = x.shape
        repeats = self.heads // self.groups
        x = x[:, :, None].expand(batch, self.groups, repeats, length, self.size)
        return x.reshape(batch, self.heads, length, self.size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        batch, length, _ = x.shape
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale
        query = self.query(y).view(batch, length, self.heads, self.size).transpose(1, 2)
        key = self._repeat(self.key(y).view(batch, length, self.groups, self.size).transpose(1, 2))
        value = self._repeat(self.value(y).view(batch, length, self.groups, self.size).transpose(1, 2))
        attended = torch.softmax(query @ key.transpose(-2, -1) / 2, -1) @ value
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, -1))
        return cast(Tensor, self.head(x + self.down(F.silu(self.gate(x)) * self.up(x))))


class RotaryEmbedding(nn.Module):
    """Rotary position embedding: halves swapped and negated, a buffer of angles."""

    angles: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.query = nn.Linear(8, width)
        self.key = nn.Linear(8, width)
        self.out = nn.Linear(width, 3)
        self.register_buffer("angles", torch.rand(5, width))

    def _rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * self.angles + torch.cat((-x[..., half:], x[..., :half]), -1) * self.angles

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.out(torch.sigmoid(self._rotate(self.query(x)) * self._rotate(self.key(x)))))


class Encoder(nn.Module):
    """A stock `nn.TransformerEncoder`, dropout included."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(x).mean(1)))


class LSTM(nn.Module):
    """A two-layer bidirectional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.recurrent = nn.LSTM(16, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return cast(Tensor, self.fc(states[:, -1]))


class GRU(nn.Module):
    """A one-layer GRU whose last state is read."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(6, 12, batch_first=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.recurrent(x)
        return cast(Tensor, self.fc(last[0]))
