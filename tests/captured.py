"""Graphs of the models of the zoo, which tests share: capturing one takes far longer than what is asked of it."""

from __future__ import annotations

from functools import cache

import torch

from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.models import ZOO


@cache
def graph_of(name: str) -> Graph:
    """Return the graph of a model of the zoo; random numbers go on as if it had not been captured."""
    example = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trace(example.build(), example.inputs(), example.kwargs(), static_batch=example.static_batch)
