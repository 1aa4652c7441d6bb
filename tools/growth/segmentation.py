"""The task of segmentation: a U-Net that tells which pixels of a noisy canvas belong to which digit."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from archir.growing.data import Dataset
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.scoring.losses import LOSSES
from tools.growth.tasks import Task

SIDE, DIGITS, CLASSES = 32, 4, 11
"""Pixels along a canvas, digits on it, and classes of a pixel: the digits, and none of them."""

CANVASES = {"train": 4000, "validation": 1000, "test": 1000}
"""Canvases of each part; no digit is on those of two parts."""

NOISE = 0.3
"""Standard deviation of the noise, where ink is 1."""


class Twice(nn.Module):
    """Two convolutions with batch normalisation."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same height and width."""
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Three sizes down and up again, joined where they are alike.

    Source: Ronneberger et al. 2015, narrowed.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        a, b, c = 2 * times, 3 * times, 4 * times
        self.down1 = Twice(1, a, a)
        self.down2 = Twice(a, b, b)
        self.bottom = Twice(b, c, c)
        self.up2 = Twice(c + b, b, b)
        self.up1 = Twice(b + a, a, a)
        self.head = nn.Conv2d(a, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every pixel, `[batch, classes, height, width]`."""
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        y = self.bottom(F.max_pool2d(second, 2))
        y = self.up2(torch.cat([F.interpolate(y, scale_factor=2.0), second], 1))
        y = self.up1(torch.cat([F.interpolate(y, scale_factor=2.0), first], 1))
        return cast(Tensor, self.head(y))


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
    images, labels = load_digits(return_X_y=True)
    ink, numbers = torch.from_numpy(images).float().reshape(-1, 8, 8) / 16, torch.from_numpy(labels)
    generator, parts, start = torch.Generator().manual_seed(0), {}, 0
    order = torch.randperm(len(ink), generator=generator)
    for name, count in CANVASES.items():
        end = start + len(ink) * count // sum(CANVASES.values())
        some = order[start:end]
        parts[name], start = drawn(ink[some], numbers[some], count, generator, name), end
    name = f"{CANVASES['train']} + {CANVASES['validation']} canvases of {DIGITS} of scikit-learn's digits"
    return Dataset(name, parts["train"], parts["validation"], (), lambda: parts["test"])


def drawn(ink: Tensor, numbers: Tensor, count: int, generator: torch.Generator, name: str) -> Examples:
    """Return canvases, each with some digits of a size between once and twice their own, the later over the earlier.

    Args:
        ink: digits `[digits, 8, 8]`, from 0 to 1.
        numbers: which they are, `[digits]`.
        count: number of canvases.
        generator: draws digits, sizes, places and noise.
        name: of the part, for errors.
    """
    canvases = torch.zeros(count, 1, SIDE, SIDE)
    classes = torch.full((count, SIDE, SIDE), CLASSES - 1)
    for canvas, pixels in zip(canvases, classes, strict=True):
        for which in torch.randint(len(ink), (DIGITS,), generator=generator).tolist():
            side = int(torch.randint(8, 17, (), generator=generator))
            digit = F.interpolate(ink[which][None, None], (side, side), mode="bilinear")[0, 0]
            top, left = torch.randint(SIDE - side + 1, (2,), generator=generator).tolist()
            rows, columns = slice(top, top + side), slice(left, left + side)
            canvas[0, rows, columns] = torch.where(digit > 0.3, digit, canvas[0, rows, columns])
            pixels[rows, columns] = torch.where(digit > 0.3, numbers[which], pixels[rows, columns])
    return Examples(canvases + NOISE * torch.randn(canvases.shape, generator=generator), classes, f"canvases, {name}")
