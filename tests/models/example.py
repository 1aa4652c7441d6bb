"""A model and what to call it with, and makers of random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """A model and what to call it with.

    Attributes:
        build: makes the model; seed first for the same weights again.
        arguments: makes the positional arguments for a batch size.
        keywords: makes the keyword arguments for a batch size.
        batch: the batch size of `inputs`.
        static_batch: capture it for that batch size only, since `torch.export` cannot keep it open.
    """

    build: Callable[[], nn.Module]
    arguments: Callable[[int], tuple[Any, ...]]
    keywords: Callable[[int], Mapping[str, Any]] = field(default=lambda batch: {})
    batch: int = 4
    static_batch: bool = False

    def inputs(self, batch: int | None = None) -> tuple[Any, ...]:
        """Return random positional arguments."""
        return self.arguments(batch or self.batch)

    def kwargs(self, batch: int | None = None) -> dict[str, Any]:
        """Return random keyword arguments."""
        return dict(self.keywords(batch or self.batch))


def normal(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Return what makes one input of random numbers; `[batch, *shape]`."""
    return lambda batch: (torch.randn(batch, *shape),)


def tokens(
    vocabulary: int = 50, length: int = 6, count: int = 1, first: int = 3
) -> Callable[[int], tuple[Tensor, ...]]:
    """Return what makes inputs of random token numbers from `first` on; each `[batch, length]`."""
    return lambda batch: tuple(torch.randint(first, vocabulary, (batch, length)) for _ in range(count))
