"""The task of segmentation: a U-Net that tells which pixels of a noisy canvas belong to which digit."""

from __future__ import annotations

from archir.cli.canvases import UNet, canvases
from archir.growing.data import Dataset
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.scoring.losses import LOSSES
from tools.growth.tasks import Task

SIDE, DIGITS = 32, 4
"""Pixels along a canvas, and digits on it."""

CANVASES = {"train": 4000, "validation": 1000, "test": 1000}
"""Canvases of each part; no digit is on those of two parts."""


def unet() -> Task:
    """Return the task."""
    return Task(
        "unet",
        _canvases(),
        UNet,
        LOSSES["cross_entropy"],
        "loss",
        5_000,
        GrowOptions(steps=4000, batch_size=32, optimiser=OptimiserOptions("adamw", 2e-2, 0.05)),
        (1e-2, 2e-2, 4e-2),
    )


def _canvases() -> Dataset:
    made = canvases(CANVASES, side=SIDE, digits=DIGITS)
    parts = {name: Examples(*some, f"canvases, {name}") for name, some in made.items()}
    name = f"{CANVASES['train']} + {CANVASES['validation']} canvases of {DIGITS} of scikit-learn's digits"
    return Dataset(name, parts["train"], parts["validation"], (), lambda: parts["test"])
