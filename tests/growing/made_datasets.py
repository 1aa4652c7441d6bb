"""Data sets that give their examples one by one, for the tests of splits that are not in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from archir.growing.examples import Examples


class Rows(Dataset[Any]):
    """The examples of a split one by one, as pairs; it counts those that were read in this process.

    Attributes:
        read: numbers of the examples that were read.
    """

    def __init__(self, split: Examples, length: int | None = None) -> None:
        self.split, self.length, self.read = split, len(split) if length is None else length, list[int]()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Any:
        self.read.append(number)
        assert isinstance(self.split.inputs, torch.Tensor) and isinstance(self.split.targets, torch.Tensor)
        return self.split.inputs[number], self.split.targets[number]


class Made(Dataset[Any]):
    """Examples that a function makes of their numbers."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


class Columns(Dataset[Any]):
    """A map-style data set as the package `datasets` has them: examples are mappings of plain numbers and lists."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, number: int) -> dict[str, Any]:
        assert type(number) is int
        return {name: column[number].tolist() for name, column in self.columns.items()}


def noisy(number: int) -> Any:
    """Return an example that is another one each time, by each of the generators data sets draw from."""
    drawn = [float(number), float(torch.rand(())), random.random(), float(np.random.rand())]
    return torch.tensor(drawn, dtype=torch.float64), number % 3


def fails_at_seven(number: int) -> Any:
    return torch.ones(2) / (number != 7), 1 // (number - 7)
