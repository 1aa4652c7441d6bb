"""A small multi-layer perceptron for scikit-learn's digits."""

from __future__ import annotations

from torch import nn


def seed(width: int = 8) -> nn.Module:
    """Return the network growth starts from, for images `[batch, 1, 8, 8]`."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
