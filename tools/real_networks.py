"""Networks as large as people train them, to measure on: a ResNet-18, a VGG-19, a GPT-2 and a ViT, of any width."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0)
"""Channels of each convolution; 0 halves the images."""


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut.

    Source: He et al. 2016, figure 5.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(inputs, outputs, 3, stride), nn.ReLU(), *convolution(outputs, outputs, 3, 1)
        )
        alike = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(*(() if alike else convolution(inputs, outputs, 1, stride)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int = 64, classes: int = 10) -> nn.Module:
    """Return a ResNet-18 for images of 32 x 32: 11,173,962 parameters at a width of 64.

    Args:
        width: channels of the first stage; each stage doubles them.
        classes: number of classes.

    Source: He et al. 2016, table 1, with the stem that is usual for small images.
    """
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        for number in range(2):
            blocks.append(BasicBlock(inputs, width * 2**stage, 2 if stage and not number else 1))
            inputs = width * 2**stage
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    return nn.Sequential(*convolution(3, width, 3, 1), nn.ReLU(), *blocks, *head)


def vgg19(width: int = 64, classes: int = 10) -> nn.Module:
    """Return a VGG-19 with batch normalisation for images of 32 x 32: 20,035,018 parameters at a width of 64.

    Args:
        width: channels of the first convolutions; the others have as many times more as in the original.
        classes: number of classes.

    Source: Simonyan and Zisserman 2015, table 1, column E, with one linear layer as is usual for small images.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for channels in VGG19:
        outputs = channels * width // 64
        layers += [*convolution(inputs, outputs, 3, 1), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
        inputs = outputs or inputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, classes))


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each normalised before and added to what comes in.

    Source: Radford et al. 2019.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(found.transpose(1, 2).reshape(batch, length, width))
        return cast(Tensor, x + self.layers(self.before_layers(x)))


class GPT2(nn.Module):
    """A language model; the scores of each next token come out, `[batch, tokens, length]`.

    Source: Radford et al. 2019; its smallest has 124,439,808 parameters.
    """

    def __init__(
        self, width: int = 768, blocks: int = 12, heads: int = 12, tokens: int = 50257, length: int = 1024
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, True) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return cast(Tensor, self.head(self.norm(self.blocks(hidden))).transpose(1, 2))


class ViT(nn.Module):
    """A transformer on patches of images; the small one with patches of 16 has 22,050,664 parameters.

    Source: Dosovitskiy et al. 2021; the sizes of the small one are those of Touvron et al. 2021.
    """

    def __init__(
        self, width: int = 384, blocks: int = 12, heads: int = 6, image: int = 224, patch: int = 16, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, False) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        found = self.patches(x).flatten(2).mT
        found = torch.cat([self.token.expand(x.shape[0], -1, -1), found], 1) + self.places
        return cast(Tensor, self.head(self.norm(self.blocks(found))[:, 0]))


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution and its normalisation."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
