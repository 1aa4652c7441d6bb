"""A U-Net on a ResNet-18, to take times on."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two convolutions and a shortcut.

    Source: He et al. 2016, figure 5.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return cast(Tensor, self.relu(y + (x if self.downsample is None else self.downsample(x))))


class _Encoder(nn.Module):
    """A ResNet-18 without its head, which returns what comes out of each stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(_Block(width, width, 1), _Block(width, width, 1))
        self.layer2 = nn.Sequential(_Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(_Block(2 * width, 4 * width, 2), _Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(_Block(4 * width, 8 * width, 2), _Block(8 * width, 8 * width, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.relu(self.bn1(self.conv1(x)))]
        found.append(self.layer1(self.maxpool(found[0])))
        for layer in (self.layer2, self.layer3, self.layer4):
            found.append(layer(found[-1]))
        return found


class _Up(nn.Module):
    """Upsampling to the size of what it is joined with, then two convolutions."""

    def __init__(self, inputs: int, skipped: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(inputs + skipped, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )
        self.attention1 = nn.Identity()
        self.conv2 = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor, height: int, width: int, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, size=(height, width), mode="nearest")
        if skip is not None:
            x = self.attention1(torch.cat([x, skip], dim=1))
        return cast(Tensor, self.conv2(self.conv1(x)))


class UNet(nn.Module):
    """An encoder and a decoder joined at five sizes: 14,328,354 parameters for two classes and a width of 64.

    Source: Ronneberger et al. 2015, with the encoder and the widths that libraries of segmentation give it now.
    """

    def __init__(self, classes: int = 2, width: int = 64) -> None:
        super().__init__()
        self.encoder = _Encoder(width)
        half, quarter = width // 2, width // 4
        widths = [
            (8 * width, 4 * width, 4 * width),
            (4 * width, 2 * width, 2 * width),
            (2 * width, width, width),
            (width, width, half),
            (half, 0, quarter),
        ]
        self.blocks = nn.ModuleList(_Up(*sizes) for sizes in widths)
        self.head = nn.Sequential(nn.Conv2d(quarter, classes, 3, padding=1), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        sizes = [x.shape[2:]]
        features = self.encoder(x)
        sizes += [f.shape[2:] for f in features]
        y = features[-1]
        for at, block in enumerate(self.blocks):
            height, width = sizes[-at - 2]
            skip = features[-at - 2] if at + 2 <= len(features) else None
            y = block(y, height, width, skip)
        return cast(Tensor, self.head(y))
