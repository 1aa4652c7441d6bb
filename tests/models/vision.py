"""Image models: each one hard structure of convolutional networks and vision transformers."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class VGG(nn.Module):
    """A plain chain: convolutions, then a flatten that multiplies channels by positions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_block(3, 16), nn.MaxPool2d(2), conv_block(16, 32), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(32 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(torch.flatten(self.features(x), 1)))


class BasicBlock(nn.Module):
    """The residual block of a ResNet, with an in-place sum."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.down is None else self.down(x)
        y: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += identity
        return F.relu(y)


class ResNet(nn.Module):
    """Two residual blocks, the second with a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_block(3, 16)
        self.layers = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 32, 2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.layers(self.stem(x)), 1)
        return cast(Tensor, self.fc(x.view(x.size(0), -1)))


class ResNet20(nn.Module):
    """The CIFAR ResNet-20: three stages of three blocks, of one, two and four times the width."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_block(3, width)
        widths = (width, width, 2 * width, 4 * width)
        blocks = [
            BasicBlock(widths[stage] if block == 0 else widths[stage + 1], widths[stage + 1], stride)
            for stage in range(3)
            for block in range(3)
            for stride in (2 if stage and block == 0 else 1,)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.blocks(self.stem(x)).mean((2, 3))))


def resnet20(width: int = 16, classes: int = 10) -> nn.Module:
    """Return a ResNet-20 whose first stage has `width` channels."""
    return ResNet20(width, classes)


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self, growth: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1))
            for width in range(16, 16 + depth * growth, growth)
        )
        self.fc = nn.Linear(16 + depth * growth, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for block in self.blocks:
            features.append(block(torch.cat(features, 1)))
        return cast(Tensor, self.fc(torch.cat(features, 1).mean((2, 3))))


class MobileNet(nn.Module):
    """An inverted residual's expansion and depthwise convolution, then squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_block(3, 16),
            conv_block(16, 64, 1),
            conv_block(64, 64, 3, 1, 64),
            nn.Conv2d(64, 16, 1),
            nn.BatchNorm2d(16),
        )
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return cast(Tensor, self.fc((y * scale).mean((2, 3))))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """Channel split, channel shuffle, depthwise and grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_block(3, 32)
        self.branch = nn.Sequential(
            conv_block(16, 16, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            conv_block(16, 16, 1),
        )
        self.grouped = nn.Conv2d(32, 64, 1, groups=4)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.stem(x).chunk(2, dim=1)
        x = channel_shuffle(torch.cat((kept, self.branch(changed)), 1), 2)
        return cast(Tensor, self.fc(self.grouped(x).mean((2, 3))))


class UNet(nn.Module):
    """Transposed convolution, padding computed from shapes, a skip by concatenation, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_block(3, 16)
        self.down2 = conv_block(16, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge = conv_block(32, 16)
        self.shuffle = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.PixelShuffle(2))
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        up = self.up(self.down2(F.max_pool2d(fine, 2)))
        up = F.pad(up, (0, 0, 0, fine.size(2) - up.size(2)))
        return cast(Tensor, self.out(self.shuffle(self.merge(torch.cat([fine, up], 1)))))


class ViT(nn.Module):
    """One block of a vision transformer: class token, positions, `nn.MultiheadAttention`."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 17, width))
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return cast(Tensor, self.head(x[:, 0]))


class Swin(nn.Module):
    """Cyclic shift, window partition and its inverse, patch merging by strided slices."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.merge_norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        rows, columns = height // 4, width // 4
        y = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(batch, rows, 4, columns, 4, channels)
        y = self.mix(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels))
        y = y.view(batch, rows, columns, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        x = x + y.reshape(batch, height, width, channels)
        quarters = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return cast(Tensor, self.head(self.reduce(self.merge_norm(torch.cat(quarters, -1))).mean((1, 2))))


class Siamese(nn.Module):
    """One backbone run on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv_block(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(32, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.backbone(x), self.backbone(y)
        return cast(Tensor, self.fc(torch.cat([(a - b).abs(), a * b], 1)))


class WeightStandardisation(nn.Module):
    """A convolution whose weight is computed, then group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.norm = nn.GroupNorm(4, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        y = F.conv2d(self.first(x), weight, self.second.bias)
        return cast(Tensor, self.fc(self.norm(y).mean((2, 3))))


class BroadcastMask(nn.Module):
    """A mask of one channel multiplied onto many."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3)
        self.mask = nn.Conv2d(3, 1, 3)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.out(torch.sigmoid(self.mask(x)) * self.features(x)))


class SplitCascade(nn.Module):
    """The C2f block of YOLOv8: a split whose second half is refined in a cascade, all parts concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.cascade = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for layer in self.cascade:
            parts.append(layer(parts[-1]))
        return cast(Tensor, self.last(torch.cat(parts, 1)))


class Decoder(nn.Module):
    """A linear layer viewed as an image, then transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 8 * 4 * 4)
        self.up1 = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(6, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        image = F.relu(self.fc(x)).view(-1, 8, 4, 4)
        return cast(Tensor, self.up2(F.relu(self.up1(image))))


class DilatedPyramid(nn.Module):
    """The head of DeepLab: convolutions of several dilations side by side, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_block(3, 8, stride=2)
        self.branches = nn.ModuleList(
            nn.Conv2d(8, 8, 3, padding=d if d < 4 else "same", dilation=d, groups=groups)
            for d, groups in ((1, 1), (2, 8), (4, 1))
        )
        self.out = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return cast(Tensor, self.out(F.relu(torch.cat([branch(x) for branch in self.branches], 1))))


class Resampled(nn.Module):
    """Bilinear sampling on a grid, which has no forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.grid = nn.Buffer(2 * torch.rand(1, 4, 4, 2) - 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return nn.functional.grid_sample(y, self.grid.expand(y.shape[0], -1, -1, -1), align_corners=False).flatten(1)
