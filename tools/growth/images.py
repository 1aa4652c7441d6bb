"""Tasks on images: CIFAR-10 averaged down to 16 x 16, for a residual network and for a plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.growing.batches import Augmentation
from archir.growing.data import Dataset, load_data
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.scoring.losses import LOSSES
from examples.cifar10 import Net
from tools.growth.tasks import Task

EXAMPLES, VALIDATION = 25_000, 0.2


class Plain(nn.Module):
    """Six convolutions with batch normalisation in three stages, no shortcuts.

    Source: Simonyan and Zisserman 2015, narrowed.
    """

    def __init__(self, times: int, widths: tuple[int, ...] = (3, 4, 6, 7, 9, 10), classes: int = 10) -> None:
        super().__init__()
        sizes = [3, *(times * w for w in widths)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in sizes[1:])
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if i % 2 == 1:
                x = F.max_pool2d(x, 2)
        return cast(Tensor, self.head(x.mean((2, 3))))


def residual(data: str) -> Task:
    """Return the task of the residual network of the example.

    Args:
        data: spec of CIFAR-10, as `archir.growing.data.load_data` takes it.
    """
    return _task("residual", data, lambda times: Net((3 * times, 5 * times, 8 * times, 10 * times)))


def vgg(data: str) -> Task:
    """Return the task of a plain network."""
    return _task("vgg", data, Plain)


def _task(name: str, data: str, build: Callable[[int], nn.Module]) -> Task:
    return Task(
        name,
        _averaged(data),
        build,
        LOSSES["cross_entropy"],
        "accuracy",
        15_000,
        GrowOptions(
            steps=6000,
            batch_size=128,
            optimiser=OptimiserOptions("sgd", 0.1, 5e-4),
            augmentation=Augmentation(flip=True, crop=2),
        ),
        (0.05, 0.1, 0.2),
    )


@lru_cache(maxsize=1)
def _averaged(data: str) -> Dataset:
    """Return the images, standardised and averaged over squares of two by two pixels."""
    found = load_data(data, validation=VALIDATION, limit=EXAMPLES)
    name = f"{len(found.train)} + {len(found.validation)} images of CIFAR-10 at 16 x 16"
    return replace(found.changed(_halved), name=name)


def _halved(split: Examples) -> Examples:
    assert isinstance(split.inputs, torch.Tensor)
    return replace(split, inputs=F.avg_pool2d(split.inputs, 2))
