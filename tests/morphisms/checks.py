"""What the tests of single morphisms check alike: what is emitted, which widths are free, what is predicted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archir.api import score
from archir.axes.infer import infer_widths
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from frontends.pytorch import trace


class Net(nn.Module):
    """Convolutions, linear layers, and several activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False)
        self.third = nn.Conv2d(6, 6, 1, bias=False)
        self.hidden = nn.Linear(6, 8, bias=False)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.second(F.relu(self.first(x))))
        x = torch.tanh(self.third(x)).amax((2, 3))
        found: Tensor = self.head(F.gelu(self.hidden(x)))
        return found


def emit(graph: Graph, directory: Path) -> str:
    """Write a graph as source and as ONNX, which both compare themselves with it, and return the source."""
    emitted = to_python(graph, directory)
    assert emitted.difference < 1e-5
    assert to_onnx(graph, directory / "net.onnx").difference < 1e-4
    return emitted.path.read_text()


def sizes(graph: Graph) -> list[int]:
    """Return the sizes of the free widths of a graph."""
    return sorted(w.size for w in infer_widths(graph))


def predictions(morphism: Morphism) -> list[tuple[float, float]]:
    """Return the predicted and the true change of the loss of a small net, for every candidate with a small θ."""
    torch.manual_seed(0)
    net, teacher = Net(), Net()
    graph = trace(net, (torch.randn(4, 1, 6, 6),))
    batches = []
    for _ in range(2):
        x = 2 * torch.randn(100, 1, 6, 6)
        logits = teacher(x).detach()
        batches.append((x, (logits - logits.mean(0)).argmax(1)))
    scores = score(graph, batches, morphisms=(morphism,), steps=30, radius=0.2)

    def loss(of: Graph) -> float:
        module = of.module().eval()
        with torch.no_grad():
            return sum(float(F.cross_entropy(module(x), y)) for x, y in batches) / len(batches)

    return [(scores.additive([s]), loss(scores.apply([s])) - loss(graph)) for s in scores]


def change_in_training(before: Graph, after: Graph, *inputs: Tensor) -> float:
    """Return the largest difference between the outputs of two graphs without dropout in training mode, in float64."""
    one, other = (g.to(torch.float64).module().train() for g in (before, after))
    with torch.no_grad():
        return float((one(*inputs) - other(*inputs)).abs().max())
