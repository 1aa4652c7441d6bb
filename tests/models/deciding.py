"""A model whose control flow depends on the size of its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SIZES = (1, 2, 3, 4, 7, 8, 99, 100, 101, 200)
Choice = Callable[[int], bool]


class Deciding(nn.Module):
    """Uses a layer or none, by the number of rows."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 5)
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if self.choice(x.shape[0]) else 2 * y
