"""Models that are hard to write as source: containers, sharing, states, constants, names that collide."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Mixer(nn.Module):
    """A block with two residual branches and a mask it is handed."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.gain = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + self.gain * y * mask


class Loops(nn.Module):
    """A container iterated over with a second argument, blocks of two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mixer(8, 16) for _ in range(3))
        self.others = nn.ModuleList([Mixer(8, 12), Mixer(8, 20)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return cast(Tensor, self.others[1](self.others[0](x, mask), mask))


class Containers(nn.Module):
    """Dictionaries and lists of modules and parameters, names that are no Python names."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"stem": nn.Linear(6, 8), "mid": nn.Linear(8, 8), "0": nn.Linear(8, 8)})
        self.scales = nn.ParameterList(torch.randn(8) for _ in range(2))
        self.sparse = nn.Sequential(nn.Identity(), nn.Linear(8, 8), nn.Dropout(0.2), nn.Identity(), nn.ReLU())
        self.unused = nn.Linear(3, 3)
        self.register_buffer("table", torch.randn(40), persistent=False)
        self.register_buffer("mask", torch.ones(8, 8).tril(), persistent=False)
        self.register_buffer("steps", torch.arange(8.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["0"](self.parts["mid"](self.parts["stem"](x)))
        x = x * self.scales[0] + self.scales[1]
        mask, table, steps = (self.get_buffer(n) for n in ("mask", "table", "steps"))
        return cast(Tensor, self.sparse(x @ mask + table[:8] * steps)) + torch.tensor([1.0, -2.0] * 4)


class Tied(nn.Module):
    """A weight used by two modules, a third module shared, a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8, padding_idx=0)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.again = self.inner
        self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 12)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.normed(self.again(self.inner(self.embed(tokens))))
        return F.log_softmax(self.head(x), -1) + F.linear(x, self.embed.weight)


class States(nn.Module):
    """Recurrent layers with states handed in, an unrolled cell, results in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.gru = nn.GRU(6, 4, num_layers=2, dropout=0.3, bias=False)
        self.cell = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> dict[str, object]:
        x, (h, c) = self.lstm(x, state)
        for _ in range(3):
            x = self.cell(x) + x
        y, _ = self.gru(x.transpose(0, 1))
        return {"x": x, "states": (h, [c]), "y": y, "kind": "lstm"}


class Norms(nn.Module):
    """Normalisation of every kind, and dropout that follows the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 8, (3, 1), padding="same", groups=2), nn.BatchNorm2d(8, momentum=None))
        self.second = nn.BatchNorm2d(8, affine=False, eps=1e-3)
        self.group = nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, bias=False)
        self.slope = nn.PReLU(4)
        self.flat = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.group(self.second(self.first(x))))
        x = F.max_pool2d(F.leaky_relu(x, 0.2), (2, 1))
        y: Tensor = self.flat(self.slope(self.up(x)).mean((2, 3)))
        return y.clamp(-1.0, 1.0)


class Stage(nn.Module):
    """Blocks of blocks, to be found again as one class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixer(width, 2 * width) for _ in range(2))
        self.heads = 2

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            y = x.reshape(x.shape[0], -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)
            x = block(x, y.amax(2).reshape(x.shape[0], 1, -1))
        return x


class Stages(nn.Module):
    """Two stages of different width, a convolution in one dimension between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Stage(8)
        self.between = nn.Conv1d(8, 12, 1)
        self.two = Stage(12)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.two(self.between(self.one(x).transpose(1, 2)).transpose(1, 2)))


class Operators(nn.Module):
    """Arithmetic whose precedence and order must survive."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a = 2.0 - (x - (y - x)) / (x * x + 1.0) / 2.0
        b = (-x) ** 2 + (2.0 ** (x * 0.1)) - (x.abs() + 1.0) ** -0.5
        c = (x > y) & ~(x < 0.5) | (x == y)
        d = torch.where(c, x, -y).flip(-1).cumsum(1)[:, 1:-1:2]
        values, index = x.topk(2, dim=-1)
        e = x.gather(1, index) - values + float("inf") * (x[:, :2] > 100.0).to(x.dtype).nan_to_num()
        f = torch.stack([x, y], 1).unbind(1)[1] // 2.0 % 3.0
        g = x.unsqueeze(1).repeat(1, 2, 1)[:, -1, ::2].masked_fill(c[:, ::2], -1.0)
        return a, b, c, d, e, f, g, F.hardshrink(x), x[:, torch.tensor([3, 1])], F.one_hot(index, x.shape[1])
