"""Small models whose inputs may have several sizes besides that of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.ir.graph import Graph
from archir.testing import randomise
from frontends.pytorch import trace


class Encoder(nn.Module):
    """A transformer encoder over tokens, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(40, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        found: Tensor = self.head(self.body(h, src_key_padding_mask=mask).mean(1))
        return found


class Decoder(nn.Module):
    """A causal language model whose mask is a buffer, so that it is no longer than that."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.seen = nn.Buffer(torch.tril(torch.ones(32, 32)))
        self.head = nn.Linear(8, 11)

    def forward(self, x: Tensor) -> Tensor:
        length, h = x.shape[1], self.tokens(x)
        weights = self.q(h) @ self.k(h).transpose(1, 2) * 8**-0.5
        weights = weights.masked_fill(self.seen[:length, :length] == 0, float("-inf")).softmax(-1)
        h = h + self.o(weights @ self.v(h))
        found: Tensor = self.head(h + self.down(F.gelu(self.up(h))))
        return found


class Recurrent(nn.Module):
    """An LSTM of two layers, and a GRU in both directions, on top of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 7, num_layers=2, batch_first=True)
        self.gru = nn.GRU(7, 4, bidirectional=True, batch_first=True)
        self.inner, self.head = nn.Linear(8, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(F.relu(self.inner(self.gru(self.lstm(self.tokens(x))[0])[0][:, -1])))
        return found


class FullyConvolutional(nn.Module):
    """Convolutions of stride 1 and 2, with normalisation, and a map of classes as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))))
        return found


class UNet(nn.Module):
    """Down by pooling and up by a transposed convolution, so that sizes are even."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.down(x))
        found: Tensor = self.head(torch.cat([wide, self.up(F.relu(self.deep(F.max_pool2d(wide, 2))))], 1))
        return found


class Residual(nn.Module):
    """A residual block with normalisation, and pooling over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(6, 6, 3, padding=1, bias=False),
                "norm1": nn.BatchNorm2d(6),
                "conv2": nn.Conv2d(6, 6, 3, padding=1, bias=False),
                "norm2": nn.BatchNorm2d(6),
            }
        )
        self.down, self.head = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        inner = F.relu(self.block["norm1"](self.block["conv1"](h)))
        h = F.relu(h + self.block["norm2"](self.block["conv2"](inner)))
        found: Tensor = self.head(F.adaptive_avg_pool2d(F.relu(self.down(h)), 1).flatten(1))
        return found


class Windows(nn.Module):
    """Attention within windows of four by four positions, so that sizes are multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.head = nn.Linear(8, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        b, height, width, c = h.shape
        seen = h.view(b, height // 4, 4, width // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        seen = seen + self.attention(seen, seen, seen)[0]
        seen = seen.view(b, height // 4, width // 4, 4, 4, c).transpose(2, 3).reshape(b, height, width, c)
        found: Tensor = self.head(F.relu(self.inner(seen))).mean((1, 2))
        return found


@dataclass(frozen=True)
class AnySize:
    """A model, the names of its dynamic axes, and sizes of them that it takes.

    Attributes:
        build: makes the model.
        dynamic: the names of the axes of its input.
        sizes: sizes by name; the first are those it is captured with.
        shape: of an example of such sizes, without the batch.
        per_position: whether it returns classes for each position: along the last axis, or along the second.
    """

    build: Callable[[], nn.Module]
    dynamic: Mapping[int, str]
    sizes: tuple[Mapping[str, int], ...]
    shape: Callable[[Mapping[str, int]], tuple[int, ...]]
    per_position: str = ""

    def inputs(self, batch: int, sizes: Mapping[str, int], seed: int = 0) -> Tensor:
        """Return random inputs."""
        generator, shape = torch.Generator().manual_seed(seed), (batch, *self.shape(sizes))
        if len(shape) == 2:
            return torch.randint(0, 11, shape, generator=generator)
        return torch.randn(shape, generator=generator)

    def graph(self, sizes: Mapping[str, int] | None = None) -> Graph:
        """Return the graph in float64 with random weights: for any sizes, or for given ones alone."""
        torch.manual_seed(0)
        model = self.build().eval()
        if sizes is None:
            found = trace(model, self.inputs(3, self.sizes[0]), dynamic={"x": self.dynamic})
        else:
            found = trace(model, self.inputs(3, sizes))
        return randomise(found.to(torch.float64))


def _tokens(sizes: Mapping[str, int]) -> tuple[int, ...]:
    return (sizes["T"],)


def _images(sizes: Mapping[str, int]) -> tuple[int, ...]:
    return 3, sizes["H"], sizes["W"]


_LENGTHS = ({"T": 7}, {"T": 4}, {"T": 12})
_EVEN = ({"H": 8, "W": 12}, {"H": 6, "W": 4}, {"H": 10, "W": 14})
_ODD = ({"H": 9, "W": 11}, {"H": 6, "W": 8}, {"H": 12, "W": 7})

MODELS: Mapping[str, AnySize] = {
    "encoder": AnySize(Encoder, {1: "T"}, _LENGTHS, _tokens),
    "decoder": AnySize(Decoder, {1: "T"}, _LENGTHS, _tokens, "last"),
    "recurrent": AnySize(Recurrent, {1: "T"}, _LENGTHS, _tokens),
    "fully_convolutional": AnySize(FullyConvolutional, {2: "H", 3: "W"}, _ODD, _images, "second"),
    "unet": AnySize(UNet, {2: "H", 3: "W"}, _EVEN, _images, "second"),
    "residual": AnySize(Residual, {2: "H", 3: "W"}, _ODD, _images),
    "windows": AnySize(
        Windows,
        {1: "H", 2: "W"},
        ({"H": 8, "W": 12}, {"H": 4, "W": 8}, {"H": 12, "W": 8}),
        lambda sizes: (sizes["H"], sizes["W"], 3),
    ),
}
"""Models of all kinds by name."""
