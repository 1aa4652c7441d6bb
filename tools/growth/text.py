"""The task on text: a language model of the characters of Python's own help texts."""

from __future__ import annotations

from pydoc_data import topics
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.growing.data import Dataset
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.scoring.losses import LOSSES
from tools.growth.tasks import Task

LENGTH = 64
"""Characters of a window."""


class Attention(nn.Module):
    """Causal attention; keys and values may have heads of different sizes, and the scale is that of heads of nine."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, heads * size)
        self.k = nn.Linear(width, heads * size)
        self.v = nn.Linear(width, heads * size)
        self.out = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each place takes from those before it, `[batch, length, width]`."""
        batch, length, _ = x.shape
        q, k, v = (p(x).reshape(batch, length, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / 3)
        return cast(Tensor, self.out(y.transpose(1, 2).reshape(batch, length, -1)))


class Block(nn.Module):
    """Attention and a perceptron, each beside a residual stream that is normalised before them."""

    def __init__(self, width: int, heads: int, size: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, size)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream, `[batch, length, width]`."""
        x = x + self.attention(self.norm1(x))
        return cast(Tensor, x + self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """A language model of characters, after GPT-2 (Radford et al. 2019), with separate queries, keys and values."""

    def __init__(self, vocabulary: int, times: int, width: int = 8, heads: int = 2, blocks: int = 3) -> None:
        super().__init__()
        sizes = times * width, times * heads, times * width // heads, times * 4 * width
        self.tokens = nn.Embedding(vocabulary, sizes[0])
        self.positions = nn.Embedding(LENGTH, sizes[0])
        self.blocks = nn.Sequential(*(Block(*sizes) for _ in range(blocks)))
        self.norm = nn.LayerNorm(sizes[0])
        self.head = nn.Linear(sizes[0], vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the following characters, `[batch, length, vocabulary]`."""
        places = torch.arange(tokens.shape[1])
        x = self.blocks(self.tokens(tokens) + self.positions(places))
        return cast(Tensor, self.head(self.norm(x)))


def text() -> Task:
    """Return the task."""
    dataset, vocabulary = _windows()
    return Task(
        "text",
        dataset,
        lambda times: GPT(vocabulary, times),
        LOSSES["cross_entropy"],
        "loss",
        16_000,
        GrowOptions(steps=4000, batch_size=32, optimiser=OptimiserOptions("adamw", 12e-3, 0.1)),
        (6e-3, 12e-3, 24e-3),
        held=("w1", "w5", "w9"),
    )


def _windows() -> tuple[Dataset, int]:
    """Return windows of characters and those that follow them, and the number of different characters.

    Paragraphs that occur twice are left out once; a tenth of the others validates and a tenth tests.
    """
    every = "\n\n".join(topics.topics[key] for key in sorted(topics.topics)).split("\n\n")
    paragraphs = [p for p in dict.fromkeys(p.strip("\n") for p in every) if p]
    known = sorted({c for p in paragraphs for c in p if c.isascii() and c.isprintable()} | {"\n"})
    number = {c: i for i, c in enumerate(known)}
    order = torch.randperm(len(paragraphs), generator=torch.Generator().manual_seed(0)).tolist()
    tenth = len(order) // 10
    parts = {"validation": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}

    def split(name: str) -> Examples:
        joined = "\n\n".join(paragraphs[i] for i in sorted(parts[name]))
        codes = torch.tensor([number[c] for c in joined if c in number])
        count = (len(codes) - 1) // LENGTH * LENGTH
        return Examples(
            codes[:count].reshape(-1, LENGTH), codes[1 : count + 1].reshape(-1, LENGTH), f"help texts, {name}"
        )

    train, validation = split("train"), split("validation")
    name = f"{LENGTH * len(train)} + {LENGTH * len(validation)} characters of Python's help texts"
    return Dataset(name, train, validation, (), lambda: split("test")), len(known)
