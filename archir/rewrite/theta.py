"""θ: the learnable tensors of a family of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, order=True, slots=True)
class Added:
    """A trainable stored tensor that a rewrite brings.

    Attributes:
        number: its number among them, in the order they are made.
    """

    number: int


Key = int | Added
"""What a tensor of θ is added to: the parameter node of a stored tensor, or one that is new."""

Theta = Mapping[Key, torch.Tensor]
"""Learnable tensors of a family of candidates, by what they are added to."""


def noise_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return normal random numbers in the shape and element type of a tensor and on its device, drawn on the CPU."""
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)


def by_node(theta: Theta) -> dict[int, torch.Tensor]:
    """Return what is added to stored tensors, by parameter node."""
    return {key: tensor for key, tensor in theta.items() if isinstance(key, int)}
