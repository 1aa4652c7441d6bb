"""A narrow MobileNet for 32 x 32 colour images, to start growing from.

Source: Howard et al., MobileNets (2017), table 1; with strides for small images.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Units of each block at full width, and its stride."""


class Separable(nn.Module):
    """A convolution of each channel for itself, and a linear map of the channels of each pixel."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, of less height and width if there is a stride."""
        x = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(self.norm2(self.pointwise(x)))


class MobileNet(nn.Module):
    """A stem, thirteen separable convolutions, and a linear classifier on the means over height and width."""

    def __init__(self, part: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        width = round(32 * part)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks = []
        for units, stride in BLOCKS:
            blocks.append(Separable(width, round(units * part), stride))
            width = round(units * part)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `[batch, 3, 32, 32]`."""
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def seed(part: float = 0.125) -> nn.Module:
    """Return the network growth starts from, so narrow a part of the full one."""
    return MobileNet(part)
