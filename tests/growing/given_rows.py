"""A few rows that are given in many ways, and the run on them that all of these are to make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import archir
from archir.growing.grow import Run
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions

COUNT = 24
OPTIONS = GrowOptions(
    steps=3, growth_steps=0, batch_size=8, evaluate_every=0, optimiser=OptimiserOptions("sgd", rate=0.1)
)

_drawn = np.random.default_rng(0)
X, Y = _drawn.normal(size=(COUNT, 4)), _drawn.integers(0, 3, COUNT)
ROWS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


def batches(size: int) -> Iterator[Any]:
    """Yield the rows in batches of so many."""
    for first in range(0, COUNT, size):
        yield X[first : first + size], Y[first : first + size]


class ConcatTwice(Dataset[Any]):
    """The rows, and the same again with other labels."""

    def __len__(self) -> int:
        return 2 * COUNT

    def __getitem__(self, number: int) -> Any:
        return X[number % COUNT], Y[number] if number < COUNT else 0


def grow(given: Any, dtype: torch.dtype = torch.float32) -> Run:
    """Train a small network on what is given for both splits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)
    return archir.grow(model, train=given, validation=given, budget=200, options=OPTIONS)
