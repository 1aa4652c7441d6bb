from __future__ import annotations

import random

import pytest
import torch

from archir.api import apply
from archir.testing import leaves_of, outputs, relative_difference
from passes.prune import Prune
from tools.benchmarks.apply import draw
from tools.residual import residual_network
from tools.resnet import resnet50


def test_the_residual_network_of_fifty_layers_has_its_parameters() -> None:
    with torch.device("meta"):
        net = resnet50()
    assert sum(p.numel() for p in net.parameters()) == 25_557_032
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in net.modules()) == 50 + 4


@pytest.mark.slow
def test_drawn_rewrites_apply_and_keep_the_function() -> None:
    graph = residual_network(20).to(torch.float64)
    inputs = leaves_of((torch.randn(3, 8, dtype=torch.float64),))
    dice, kinds = random.Random(0), set()
    for _ in range(30):
        rewrite = draw(graph, dice)
        kinds.add(rewrite.name)
        after = apply(graph, rewrite)
        if not isinstance(rewrite, Prune):
            assert relative_difference(outputs(after, inputs), outputs(graph, inputs)) == pytest.approx(0, abs=1e-9)
        graph = after
    assert kinds == {"split", "prune", "widen", "residual-branch", "deepen"}
