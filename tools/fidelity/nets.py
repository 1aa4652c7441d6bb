"""The networks whose candidates are scored: of images, with convolutions and with attention, and of characters."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two convolutions with batch normalisation, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(y)) + cast(Tensor, self.shortcut(x)))


class ResidualNet(nn.Module):
    """A residual network of about 11,000 parameters."""

    def __init__(self, channels: int, classes: int, *, stride: int = 1, dilation: int = 1) -> None:
        """Make the layers.

        Args:
            channels: of the images.
            classes: number of classes.
            stride: of the first convolution.
            dilation: of the second convolution of each block.
        """
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*(Residual(*sizes, dilation) for sizes in ((8, 8, 1), (8, 16, 2), (16, 16, 1))))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return cast(Tensor, self.head(x.mean((2, 3))))


class Attention(nn.Module):
    """Attention with fused queries, keys and values."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = batch, length, self.heads, width // self.heads
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return cast(Tensor, self.out(y.transpose(1, 2).reshape(batch, length, width)))


class Block(nn.Module):
    """Attention and a multi-layer perceptron, each beside a residual stream that is normalised before them."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """A language model of about 13,000 parameters, after GPT-2 (Radford et al. 2019)."""

    def __init__(self, vocabulary: int, length: int, width: int = 24, heads: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.tokens(tokens) + self.positions(places))
        return cast(Tensor, self.head(self.norm(x)))


class ViT(nn.Module):
    """A classifier of patches of images of about 6,000 parameters, after Dosovitskiy et al. 2021."""

    def __init__(
        self, channels: int, side: int, classes: int, width: int = 16, heads: int = 2, blocks: int = 2
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 2, stride=2)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, 1 + (side // 2) ** 2, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return cast(Tensor, self.head(self.norm(self.blocks(x))[:, 0]))
