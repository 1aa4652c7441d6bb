"""A ResNet-18 for 32 x 32 colour images, to start growing from.

Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition (2016), table 1; the stem is one
convolution of 3 x 3 as is usual for small images.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if inputs != width or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return features, of half the height and width where the stride is two."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Eight blocks in four stages of rising width, an average over all positions, and a linear classifier."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            blocks += [Block(inputs, outputs, 2 if stage else 1), Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `[batch, 3, 32, 32]`."""
        hidden = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.head(hidden.mean((2, 3)))  # type: ignore[no-any-return]


def seed(part: float = 0.25) -> nn.Module:
    """Return the network growth starts from, so narrow a part of the full one."""
    return ResNet18(round(64 * part))
