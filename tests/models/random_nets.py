"""Random nets on images, made of the operators with rules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from archir.ir.graph import Graph
from frontends.pytorch import trace

KINDS = (
    "conv", "grouped", "depthwise", "batch_norm", "group_norm", "relu", "add", "gate", "cat", "cut", "shuffle",
    "attention", "layer_norm", "linear", "pool",
)  # fmt: skip


class RandomNet(nn.Module):
    """A net on images `[batch, 3, 4, 4]`: each step reads earlier values and appends one.

    Args:
        steps: kind of each step, and two numbers that choose what it reads.
    """

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.steps, channels = [], [8]
        self.parts = nn.ModuleList()
        for kind, a, b in steps:
            left = a % len(channels)
            same = [i for i, c in enumerate(channels) if c == channels[left]]
            right = same[b % len(same)] if kind in ("add", "gate") else b % len(channels)
            size = channels[left]
            made = size
            part: nn.Module = nn.Identity()
            if kind in ("conv", "linear"):
                made = (4, 6, 8)[b % 3]
                part = nn.Conv2d(size, made, 3, padding=1) if kind == "conv" else nn.Linear(size, made)
            elif kind == "grouped" and size % 2 == 0:
                part = nn.Conv2d(size, size, 1, groups=2)
            elif kind == "depthwise":
                part = nn.Conv2d(size, size, 3, padding=1, groups=size)
            elif kind == "batch_norm":
                part = nn.BatchNorm2d(size)
            elif kind == "group_norm" and size % 2 == 0:
                part = nn.GroupNorm(2, size)
            elif kind == "layer_norm":
                part = nn.LayerNorm(size)
            elif kind == "attention" and size % 2 == 0:
                part = nn.Linear(size, 3 * size)
            elif kind == "cat":
                made = size + channels[right]
            self.parts.append(part)
            self.steps.append((kind, left, right))
            channels.append(made)
        self.head = nn.Linear(channels[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for (kind, left, right), part in zip(self.steps, self.parts, strict=True):
            values.append(self.step(kind, values[left], values[right], part))
        logits: Tensor = self.head(values[-1].mean((2, 3)))
        return logits

    def step(self, kind: str, x: Tensor, y: Tensor, part: nn.Module) -> Tensor:
        """Return what one step makes of the values it reads."""
        channels = x.shape[1]
        if kind == "add":
            return x + y
        if kind == "gate":
            return x * torch.sigmoid(y.mean((2, 3), keepdim=True))
        if kind == "cat":
            return torch.cat([x, y], 1)
        if kind == "cut" and channels % 2 == 0:
            a, b = x.chunk(2, 1)
            return torch.cat([b, torch.relu(a)], 1)
        if kind == "shuffle" and channels % 2 == 0:
            return x.reshape(-1, 2, channels // 2, 4, 4).transpose(1, 2).reshape(-1, channels, 4, 4)
        if kind == "relu":
            return torch.relu(x)
        if kind == "pool":
            return F.max_pool2d(x, 3, 1, 1)
        if kind in ("layer_norm", "linear"):
            moved: Tensor = part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return moved
        if kind == "attention" and isinstance(part, nn.Linear):
            tokens = x.flatten(2).transpose(1, 2)
            q, k, v = (t.reshape(-1, 16, 2, channels // 2).transpose(1, 2) for t in part(tokens).chunk(3, -1))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, channels)
            return mixed.transpose(1, 2).reshape(-1, channels, 4, 4)
        made: Tensor = part(x)
        return made


STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=8)


def capture(steps: list[tuple[str, int, int]]) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    return trace(RandomNet(steps), (x,)), x
