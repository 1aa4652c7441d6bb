from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from archir.errors import GrowError, NotFiniteError
from archir.growing import learned
from archir.growing.batches import Batches, stream
from archir.growing.learned import Standing, compare_with_fresh
from archir.growing.training import Metrics, train
from archir.ir.graph import Graph
from archir.scoring.losses import find_loss
from frontends.pytorch import trace
from tests.growing.small_run import Seed, data

LOSS = find_loss("cross_entropy")
HELD_OUT = Batches(data(200, 2), 100)


@pytest.mark.parametrize("steps", [0, 200])
def test_what_was_trained_is_told_from_what_was_not(steps: int) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = Seed()
        if steps:
            batches = itertools.islice(stream(Batches(data(400, 1), 32, seed)), steps)
            train(model, batches, LOSS, torch.optim.Adam(model.parameters(), 5e-3))
        graph = trace(model.eval(), (torch.randn(4, 1, 6, 6),))
        standing = compare_with_fresh(graph, HELD_OUT, LOSS, seed)
        assert len(standing.drawn) == 16
        assert standing.learned is bool(steps)
        assert standing.birth == ("split" if steps else "fresh")


def test_a_network_that_says_nothing_has_learned_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    for tensor in model[3].parameters():
        nn.init.zeros_(tensor)
    standing = compare_with_fresh(trace(model, (torch.randn(4, 1, 6, 6),)), HELD_OUT, LOSS)
    assert len(set(standing.drawn)) == 1 and not standing.learned


def test_the_margin_is_how_much_the_lowest_are_apart() -> None:
    assert Standing(0.89, (1.0, 1.1, 5.0)).learned
    assert not Standing(0.91, (1.0, 1.1, 5.0)).learned
    assert not Standing(0.9995, (1.0, 1.0)).learned
    assert Standing(1.0, (math.inf, math.inf, 0.5)).learned
    assert not Standing(1.0, (math.inf, 0.5, 0.6)).learned


def test_losses_that_are_not_finite_are_infinite_and_memory_that_runs_out_is_told(
    seed_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: GrowError) -> None:
        left = [error]

        def judge(*_: object) -> Metrics:
            if len(left) == 2:
                raise left.pop()
            left.append(error)
            return Metrics(1.0, None)

        monkeypatch.setattr(learned, "evaluate", judge)

    fails(NotFiniteError("the loss is nan"))
    assert compare_with_fresh(seed_graph, HELD_OUT, LOSS).drawn == (math.inf, 1.0) * 8
    fails(GrowError("there is too little memory"))
    with pytest.raises(GrowError, match="too little memory"):
        compare_with_fresh(seed_graph, HELD_OUT, LOSS)
