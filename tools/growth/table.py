"""The task on a table: a perceptron for rows of features of several kinds, made from a fixed seed."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.growing.data import Dataset
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.scoring.losses import LOSSES
from tools.growth.tasks import Task

PARTS = {"train": 200_000, "validation": 10_000, "test": 10_000}
"""Rows of each part."""

NOISE = 0.3
"""Standard deviation of the noise on targets whose signal has 1: no network has a lower mean square than its square."""

NORMAL, SKEWED, BINARY, LEVELS = 10, 6, 4, (6, 10)
"""Correlated normal features, log-normal ones, binary ones, and the levels of the categorical ones."""

TERMS = 40
"""Products that the signal is the sum of, each of one to three functions of one feature."""


def table() -> Task:
    """Return the task: the mean square error of one number, whose noise is known."""
    features = NORMAL + SKEWED + BINARY + sum(LEVELS)
    return Task(
        "table",
        _rows(),
        lambda times: perceptron((features, *(16 * times,) * 4, 1)),
        LOSSES["mse"],
        "loss",
        10_000,
        GrowOptions(steps=8000, batch_size=256, optimiser=OptimiserOptions("adamw", 1e-2, 0.01)),
        (5e-3, 1e-2, 2e-2),
    )


def perceptron(widths: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers from width to width, rectified in between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _rows() -> Dataset:
    inputs, targets = made(sum(PARTS.values()))
    parts, start = {}, 0
    for name, count in PARTS.items():
        some = slice(start, start + count)
        parts[name], start = Examples(inputs[some], targets[some], f"made rows, {name}"), start + count
    name = f"{PARTS['train']} + {PARTS['validation']} made rows"
    return Dataset(name, parts["train"], parts["validation"], (), lambda: parts["test"])


def made(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features `[rows, features]` and noisy targets `[rows, 1]`.

    The functions are waves of a normal feature, steps of a skewed one, signs of a binary one, and a number for each
    level of a categorical one; which, and of which feature, is drawn.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    mixed = normal(rows, NORMAL) @ (torch.eye(NORMAL) + 0.3 * normal(NORMAL, NORMAL))
    waves, skewed = mixed / mixed.std(0), normal(rows, SKEWED)
    signs = (uniform(rows, BINARY) < 0.1 + 0.8 * uniform(BINARY)).float()
    levels = [torch.multinomial(uniform(n) + 0.1, rows, True, generator=generator) for n in LEVELS]

    def factor() -> Tensor:
        kind = below(4)
        if kind == 0:
            return torch.sin((1 + 2 * uniform(1)) * waves[:, below(NORMAL)] + 2 * torch.pi * uniform(1))
        if kind == 1:
            return (skewed[:, below(SKEWED)] > 0.7 * normal(1)).float() * 2 - 1
        if kind == 2:
            return signs[:, below(BINARY)] * 2 - 1
        which = below(len(LEVELS))
        return normal(LEVELS[which])[levels[which]]

    signal = torch.zeros(rows)
    for _ in range(TERMS):
        term = normal(1).expand(rows)
        for _ in range(1 + below(3)):
            term = term * factor()
        signal = signal + term
    signal = (signal - signal.mean()) / signal.std()
    coded = [F.one_hot(level, n).float() for level, n in zip(levels, LEVELS, strict=True)]
    features = torch.cat([waves, skewed.exp().clamp(max=10) / 3, signs, *coded], 1)
    return features, (signal + NOISE * normal(rows))[:, None]
