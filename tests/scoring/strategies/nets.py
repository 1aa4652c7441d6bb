"""Small nets with data that the rules are tested on, all in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from archir.scoring.scores import Scores
from archir.scoring.strategies.strategy import Strategy
from archir.testing import randomise
from frontends.pytorch import trace

Batch = tuple[Tensor, Tensor]


class Perceptron(nn.Module):
    """One hidden layer."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.tanh, inputs: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(inputs, hidden), nn.Linear(hidden, 2), act

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(self.act(self.inner(x)))
        return found


class Images(nn.Module):
    """Convolutions of several wirings: batch normalisation, pooling, flattening."""

    def __init__(self, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), act())
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), act(), nn.MaxPool2d(2))
        self.last = nn.Sequential(nn.Conv2d(4, 2, 1), act(), nn.Flatten())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.last(self.body(self.stem(x))))
        return found


def perceptron(act: Callable[[Tensor], Tensor] = torch.tanh, hidden: int = 4) -> tuple[Graph, list[Batch]]:
    torch.manual_seed(0)
    graph = randomise(trace(Perceptron(act, hidden=hidden), (torch.randn(4, 3),)).to(torch.float64))
    return graph, [(torch.randn(n, 3, dtype=torch.float64), torch.randint(0, 2, (n,))) for n in (6, 5)]


def images(act: type[nn.Module] = nn.Tanh) -> tuple[Graph, list[Batch]]:
    torch.manual_seed(0)
    graph = randomise(trace(Images(act), (torch.randn(4, 1, 4, 4),)).to(torch.float64))
    return graph, [(torch.randn(n, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (6, 5)]


def make_scores(
    strategy: str | Strategy,
    graph: Graph,
    batches: Sequence[Batch],
    *morphisms: Morphism,
    options: ScoreOptions | None = None,
) -> Scores:
    how = options or ScoreOptions(steps=3)
    return score(make_objective(graph, "cross_entropy"), batches, morphisms=morphisms, strategy=strategy, options=how)


def mean_loss(graph: Graph, batches: Sequence[Batch]) -> Tensor:
    """Return the mean loss of the module of a graph over all examples."""
    module = graph.module().eval()
    losses = [nn.functional.cross_entropy(module(x), y, reduction="none") for x, y in batches]
    return torch.cat(losses).mean()


def weight(graph: Graph, name: str) -> Tensor:
    return graph.tensors[graph.by_name[name].id]


class Residual(nn.Module):
    """Two blocks on a stream, and a head: widths of 12, 10 and 14."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 12)
        self.inner = nn.ModuleList([nn.Linear(12, 10), nn.Linear(12, 14)])
        self.outer = nn.ModuleList([nn.Linear(10, 12), nn.Linear(14, 12)])
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(F.gelu(inner(x)))
        logits: Tensor = self.head(x)
        return logits


def drawn(count: int, seed: int) -> list[Batch]:
    """Return batches of digits."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    inputs, targets = torch.tensor(images / 16)[order], torch.tensor(labels)[order]
    return [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 64 * count, 64)]


@cache
def network() -> Graph:
    """Return a network trained for a while."""
    torch.manual_seed(0)
    model, batches = Residual().double(), drawn(28, 0)
    optimiser = torch.optim.Adam(model.parameters(), 0.005)
    for x, y in batches:
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), y))
        optimiser.step()
    return trace(model, (batches[0][0][:2],))
