"""Models of a few layers: each one hard use of tensors, of modules, or of the calling convention."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """A multilayer perceptron with batch normalisation and dropout."""

    def __init__(self, inputs: int = 8, hidden: int = 16, classes: int = 4, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


class ShapeBranch(nn.Module):
    """Control flow on shapes, an assertion, an optional argument, a dict as result."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        assert x.dim() == 2
        if x.shape[0] > 1:
            x = x - x.mean(0)
        if mask is not None:
            x = x * mask
        return {"y": self.fc(x)}


class Nested(nn.Module):
    """Keyword arguments and nested containers in and out, a constant among them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)

    def forward(
        self, features: dict[str, Tensor], *, pair: tuple[Tensor, Tensor], scale: float = 1.0, extra: None = None
    ) -> dict[str, Tensor | list[Tensor] | float | None]:
        left, right = pair
        hidden = self.fc(features["x"] + features["y"]) * scale
        return {"hidden": hidden, "parts": [hidden[:, :3] * left, hidden[:, 3:] * right], "scale": scale, "none": extra}


class RawParameters(nn.Module):
    """Parameters used directly: matmul, scale, einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 16))
        self.blocks = nn.Parameter(torch.randn(4, 4, 6))
        self.gain = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        y = ((x @ self.weight) * self.gain).reshape(-1, 4, 4)
        return torch.einsum("bhd,hde->bhe", y, self.blocks).flatten(1)


class Permutation(nn.Module):
    """Units picked by an index buffer."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 2)
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.first(x)[:, self.order]))


class FlipCumsum(nn.Module):
    """Operators for which the order of the units matters."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 8)
        self.right = nn.Linear(4, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.left(x).flip(-1) + self.right(x).cumsum(-1)))


class LowRank(nn.Module):
    """A weight plus a product of two thin ones, as LoRA merges them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.down = nn.Parameter(torch.randn(2, 4))
        self.up = nn.Parameter(torch.randn(8, 2))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(F.linear(x, self.weight + self.up @ self.down)))


class MisalignedSums(nn.Module):
    """Two concatenations with different break points, added."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(4, 10)
        self.c = nn.Linear(4, 8)
        self.d = nn.Linear(4, 8)
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.cat([self.a(x), self.b(x)], -1)
        return cast(Tensor, self.last(left + torch.cat([self.c(x), self.d(x)], -1)))


class OuterProduct(nn.Module):
    """Every unit times every other, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return cast(Tensor, self.last((y[:, :, None] * y[:, None, :]).flatten(1)))


class SortedUnits(nn.Module):
    """Advanced indexing by a literal list, and sorting."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return cast(Tensor, self.last(y[:, [0, 2, 1, 3, 5, 4]] + y.sort(-1)[0]))


class SharedModule(nn.Module):
    """One layer under two names, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(torch.tanh(self.again(torch.tanh(self.first(torch.tanh(self.first(x))))))))


class TwoHeads(nn.Module):
    """Several results: a tuple of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 12)
        self.classes = nn.Linear(12, 5)
        self.value = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.trunk(x))
        return self.classes(y), self.value(y).squeeze(-1)


class DataBranch(nn.Module):
    """Control flow on values: cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return cast(Tensor, self.a(x))
        return cast(Tensor, self.b(x))


class DataLoop(nn.Module):
    """A loop whose length is read from a tensor: cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum().item()) % 3 + 1):
            x = self.a(x)
        return x
