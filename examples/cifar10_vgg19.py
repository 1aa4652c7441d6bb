"""A narrow VGG-19 for 32 x 32 colour images, to start growing from.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks (2015), configuration E; batch normalisation and one
linear classifier as is usual for small images.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Units of each convolution of a stage at full width, and how many there are."""


class Unit(nn.Module):
    """A convolution with batch normalisation."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same height and width."""
        return F.relu(self.norm(self.conv(x)))


class Vgg(nn.Module):
    """Sixteen convolutions in five stages, each halved in height and width, and a linear classifier."""

    def __init__(self, part: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        stages, inputs = [], 3
        for units, depth in STAGES:
            width = round(part * units)
            stages.append(nn.Sequential(*(Unit(width if k else inputs, width) for k in range(depth))))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `[batch, 3, 32, 32]`."""
        for stage in self.stages:
            x = F.max_pool2d(stage(x), 2)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def seed(part: float = 0.125) -> nn.Module:
    """Return the network growth starts from, so narrow a part of the full one."""
    return Vgg(part)
