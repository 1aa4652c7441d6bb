"""The derivative of the outputs in changes on edges, by two reverse passes through the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from archir.ir.execute import call
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.perturbation import Edge, Perturbation


def injected(graph: Graph, values: Mapping[Value, Any], deltas: Mapping[Edge, Tensor], scale: Tensor) -> Tensor:
    """Return the outputs of a graph side by side, `[examples, outputs]`, with changes, times `scale`, on edges."""
    found: dict[Value, Any] = {Value(n.id): values[Value(n.id)] for n in (*graph.inputs, *graph.parameters)}
    for node in graph.calls:
        moved = {value: found[value] + scale * deltas[use] for use, value in node.operands() if use in deltas}
        results = call(node, {**found, **moved}.__getitem__)
        for i, result in enumerate(results):
            value = Value(node.id, i)
            found[value] = result + scale * deltas[value] if value in deltas else result
    outputs = [found[v] for _, v in graph.output.operands()]
    return torch.cat([o.reshape(len(o), -1) for o in outputs], 1)


def pushed(graph: Graph, values: Mapping[Value, Any], deltas: Mapping[Edge, Tensor]) -> Tensor:
    """Return the derivative of the output in the scale of the changes, by two reverse passes; `[examples, outputs]`."""
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        output = injected(graph, values, deltas, scale)
        dummy = torch.ones_like(output, requires_grad=True)
        (slope,) = torch.autograd.grad(output, scale, dummy, create_graph=True, allow_unused=True)
        if slope is None or not slope.requires_grad:
            return torch.zeros_like(output).flatten(1)
        (found,) = torch.autograd.grad(slope, dummy)
    return found.flatten(1).detach()


def member_of(perturbation: Perturbation, deltas: Mapping[Edge, Tensor], member: int) -> dict[Edge, Tensor]:
    """Return the changes that one member makes."""
    found: dict[Edge, Tensor] = {}
    for edge, delta in deltas.items():
        members = perturbation.edges[edge]
        shape = [-1 if d == members.axis else 1 for d in range(delta.dim())]
        index = members.index
        if len(index) != delta.shape[members.axis]:
            index = torch.zeros(delta.shape[members.axis], dtype=torch.long)
        found[edge] = delta * (index == member).reshape(shape)
    return found
