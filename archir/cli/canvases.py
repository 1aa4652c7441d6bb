"""Noisy canvases with some of scikit-learn's digits, and a U-Net that tells which pixels belong to which digit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

CLASSES = 11
"""Classes of a pixel: the digits, and none of them."""

INK = 0.3
"""Where a digit has more ink than this, the pixel belongs to it."""

NOISE = 0.3
"""Standard deviation of the noise, where ink is 1."""


class Twice(nn.Module):
    """Two convolutions with batch normalisation."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        """Make the layers, from channels to channels: `inputs`, `inner` between the two, and `outputs`."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, `[batch, outputs, height, width]`."""
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Two sizes or more down and up again, joined where they are alike.

    Source: Ronneberger et al. 2015, narrowed.
    """

    def __init__(self, times: int = 1, sizes: int = 3) -> None:
        """Make the layers.

        Args:
            times: how many times wider than the narrowest they are.
            sizes: how many sizes the features have, each half the one before.
        """
        super().__init__()
        widths = [(2 + size) * times for size in range(sizes)]
        self.down = nn.ModuleList(Twice(i, o, o) for i, o in pairwise([1, *widths[:-1]]))
        self.bottom = Twice(widths[-2], widths[-1], widths[-1])
        self.up = nn.ModuleList(Twice(i + o, o, o) for i, o in pairwise(reversed(widths)))
        self.head = nn.Conv2d(widths[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every pixel, `[batch, classes, height, width]`, of `[batch, 1, height, width]`."""
        beside = []
        for layer in self.down:
            x = layer(x)
            beside.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for layer in self.up:
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), beside.pop()], 1))
        return cast(Tensor, self.head(x))


def canvases(counts: Mapping[str, int], *, side: int, digits: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return canvases and the classes of their pixels, the same every time; no digit is on those of two parts.

    Args:
        counts: number of canvases of each part; digits are shared out among them in proportion.
        side: pixels along a canvas, 16 at the least.
        digits: how many are on each.

    Returns:
        For each part `[canvases, 1, side, side]` and `[canvases, side, side]`.
    """
    images, labels = load_digits(return_X_y=True)
    ink, numbers = torch.from_numpy(images).float().reshape(-1, 8, 8) / 16, torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(0)
    order, parts, start = torch.randperm(len(ink), generator=generator), {}, 0
    for name, count in counts.items():
        end = start + len(ink) * count // sum(counts.values())
        some = order[start:end]
        parts[name], start = _drawn(ink[some], numbers[some], count, side, digits, generator), end
    return parts


def _drawn(
    ink: Tensor, numbers: Tensor, count: int, side: int, digits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return canvases, each with some digits of a size between once and twice their own, the later over the earlier.

    Args:
        ink: digits `[digits, 8, 8]`, from 0 to 1.
        numbers: which they are, `[digits]`.
        count: number of canvases.
        side: pixels along a canvas.
        digits: how many are on each.
        generator: draws digits, sizes, places and noise.
    """
    drawn = torch.zeros(count, 1, side, side)
    classes = torch.full((count, side, side), CLASSES - 1)
    for canvas, pixels in zip(drawn, classes, strict=True):
        for which in torch.randint(len(ink), (digits,), generator=generator).tolist():
            long = int(torch.randint(8, 17, (), generator=generator))
            digit = F.interpolate(ink[which][None, None], (long, long), mode="bilinear")[0, 0]
            top, left = torch.randint(side - long + 1, (2,), generator=generator).tolist()
            rows, columns = slice(top, top + long), slice(left, left + long)
            canvas[0, rows, columns] = torch.where(digit > INK, digit, canvas[0, rows, columns])
            pixels[rows, columns] = torch.where(digit > INK, numbers[which], pixels[rows, columns])
    return drawn + NOISE * torch.randn(drawn.shape, generator=generator), classes
