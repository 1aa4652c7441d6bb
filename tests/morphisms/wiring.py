"""Small nets for tests of splices, and what a rewrite does to a net in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.testing import evaluate, outputs, randomise, relative_difference
from frontends.pytorch import trace
from tests.morphisms.every import capture

CONVOLUTION: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Images(nn.Module):
    """Two convolutions, the second with a stride, and a linear layer, in one to three dimensions."""

    def __init__(self, spatial: int) -> None:
        super().__init__()
        conv = CONVOLUTION[spatial]
        self.first = conv(2, 4, 3, padding=1)
        self.second = conv(4, 6, 3, padding=1, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        found: Tensor = self.head(x.flatten(2).mean(2))
        return found


def traced(net: nn.Module, *shape: int) -> tuple[Graph, list[Tensor]]:
    """Return the randomised graph of a net in float64, and a batch of three inputs of a shape."""
    torch.manual_seed(0)
    x = torch.randn(3, *shape, dtype=torch.float64)
    return randomise(trace(net.double(), (x,))), [x]


def change(before: Graph, after: Graph, inputs: Sequence[Tensor]) -> float:
    """Return the relative difference between the outputs of two graphs."""
    return relative_difference(outputs(after, inputs), outputs(before, inputs))


def change_in_training(morphism: Morphism, name: str) -> float:
    """Return the most that candidates change the outputs of a model of the zoo in training mode."""
    graph, inputs, _ = capture(name)

    def train(of: Graph) -> Tensor:
        torch.manual_seed(1)
        found: Tensor = of.module().train()(*inputs)
        return found

    expected = train(graph)
    found = [train(site.members[0].apply(graph)) for site in morphism.sites(graph)]
    assert found
    return max(relative_difference([f], [expected]) for f in found)


def reason(morphism: Morphism, graph: Graph) -> str:
    """Return why a morphism does not apply."""
    miss = morphism.match(graph)
    assert isinstance(miss, Miss)
    return miss.reason


def value_after(graph: Graph, inputs: Sequence[Tensor], number: int) -> Tensor:
    """Return what a call of a graph makes, by its number in the text."""
    node = list(graph.calls)[number]
    found: Tensor = next(t for v, t in evaluate(graph, inputs).items() if v.node == node.id)
    return found
