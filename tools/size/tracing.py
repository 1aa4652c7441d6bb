"""The time that tracing takes, and how much of it is that of torch's own export."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from frontends.pytorch import trace
from tools.size.timing import seconds

FEATURES, HIDDEN = 16, 24


class Block(nn.Module):
    """Two linear layers with an activation between, and a sum with what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        found: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return found


def trace_times(sizes: Sequence[int], trials: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of tracing and of `torch.export.export` alone, by name and number of nodes."""
    found: dict[str, dict[str, list[float]]] = {"trace": {}, "torch.export": {}}
    inputs = (torch.randn(2, FEATURES),)
    for _ in range(trials):
        for size in sizes:
            net = nn.Sequential(*(Block() for _ in range(size // 8))).eval()
            acts: dict[str, Callable[[], object]] = {"trace": partial(trace, net, inputs)}
            acts["torch.export"] = partial(torch.export.export, net, inputs)
            for name, act in acts.items():
                found[name].setdefault(str(size), []).append(seconds(act))
                print("trace", size, name, found[name][str(size)][-1], file=sys.stderr, flush=True)
    return {name: {size: statistics.median(taken) for size, taken in by.items()} for name, by in found.items()}
