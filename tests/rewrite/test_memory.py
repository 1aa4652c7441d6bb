"""What is remembered about a graph goes when the graph goes."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from archir.axes.infer import infer_widths
from archir.rewrite.multiplicity import solve_exponents
from archir.rewrite.region import region_of
from frontends.pytorch import trace


def test_nothing_remembered_keeps_a_graph_alive() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    graph = trace(model, (torch.randn(2, 4),))
    widths = infer_widths.__wrapped__(graph)
    (width,) = widths
    assert solve_exponents(widths, width) is solve_exponents(widths, width)
    assert region_of(widths, width) is region_of(widths, width)
    gone = weakref.ref(graph)
    del graph, widths, width
    gc.collect()
    assert gone() is None
