"""Graphs of the models of the zoo, which tests share: capturing one takes far longer than what is asked of it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from archir.ir.graph import Graph
from archir.testing import leaves_of, randomise
from frontends.pytorch import trace
from tests.models.zoo import ZOO


@cache
def graph_of(name: str) -> Graph:
    """Return the graph of a model of the zoo; random numbers go on as if it had not been captured."""
    example = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trace(example.build(), example.inputs(), example.kwargs(), static_batch=example.static_batch)


@cache
def randomised(name: str) -> tuple[Graph, tuple[Tensor, ...]]:
    """Return the randomised graph of a model of the zoo in float64, and inputs for it."""
    example = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = leaves_of(example.inputs(), example.kwargs())
    return randomise(graph_of(name).to(torch.float64)), tuple(inputs)


def without_dropout(graph: Graph) -> Graph:
    """Return the graph with every dropout probability zero."""
    with graph.edit(by="test") as edit:
        for node in graph.calls:
            for name in {"p", "dropout", "dropout_p"} & set(node.arguments):
                edit.update(node.id, arguments={name: 0.0})
    return edit.graph
