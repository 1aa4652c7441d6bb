"""Convolutions of every kind, for tests of rewrites that change kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.api import score
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.testing import evaluate, relative_difference
from frontends.pytorch import trace
from tests.morphisms.every import outputs_of

CONVOLUTIONS: Mapping[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 8)),
    "even": (nn.Conv2d(4, 6, (2, 4), stride=(2, 1), padding=(0, 2)), (4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 9, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, padding=(4, 1), dilation=(2, 3), stride=(1, 2)), (4, 9, 12)),
    "same": (nn.Conv2d(4, 6, (3, 4), padding="same", dilation=(2, 1)), (4, 9, 8)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid", dilation=2), (4, 9, 8)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9, 8)),
    "line": (nn.Conv1d(4, 6, 5, stride=3, padding=2, dilation=2), (4, 20)),
    "volume": (nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 3, 5, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1), (4, 5, 6)),
    "transposed dilated": (nn.ConvTranspose2d(4, 6, 3, stride=2, dilation=2, groups=2, padding=1), (4, 5, 6)),
    "transposed line": (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 7)),
    "transposed volume": (nn.ConvTranspose3d(2, 4, 3, stride=2, padding=1), (2, 3, 2, 3)),
}
"""Each with the shape of one example."""


def trace_layer(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, Tensor]:
    """Return the graph of a layer in float64, and an input for it."""
    torch.manual_seed(0)
    x = torch.randn(3, *shape, dtype=torch.float64)
    return trace(layer.double(), (x,)), x


def change_of_outputs(before: Graph, after: Graph, x: Tensor) -> float:
    """Return the relative difference between the outputs of two graphs."""
    one, other = (outputs_of(g, evaluate(g, [x])) for g in (before, after))
    return relative_difference(other, one)


def loss_of(graph: Graph, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the mean cross-entropy of a graph over batches of one size."""
    module = graph.module().eval()
    with torch.no_grad():
        return sum(float(F.cross_entropy(module(x), y)) for x, y in batches) / len(batches)


def predictions(morphism: Morphism, net: nn.Module) -> tuple[list[float], list[float]]:
    """Return the predicted and the true changes of the loss of a net in float64 on images `[batch, 2, 8, 8]`.

    Every candidate is scored four times, each time with another θ.
    """
    batches = [(torch.randn(32, 2, 8, 8, dtype=torch.float64), torch.randint(0, 4, (32,))) for _ in range(2)]
    graph = trace(net, (batches[0][0],))
    predicted, true = [], []
    for seed in range(4):
        scores = score(graph, batches, morphisms=[morphism], steps=3, radius=0.1 + 0.1 * seed, seed=seed)
        for s in scores:
            predicted.append(scores.additive([s]))
            true.append(loss_of(scores.apply([s]), batches) - loss_of(graph, batches))
    return predicted, true
