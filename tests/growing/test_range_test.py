"""The range test of learning rates: where it stops, what it takes, and that it leaves everything as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archir.errors import GrowError
from archir.growing.examples import Examples
from archir.growing.grow import Run, grow_graph
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.range_test import FEWEST, MOST, RANGES, USUAL, FoundRate, find_rate
from archir.growing.run import Event
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import LOSSES
from frontends.pytorch import trace
from tests.growing.static_training import train_static

DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(256, 4, generator=DRAW)
LABELS = (INPUTS @ torch.randn(4, 3, generator=DRAW)).argmax(1)
EXAMPLES, LOSS = Examples(INPUTS, LABELS), LOSSES["cross_entropy"]


def _graph() -> Graph:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.ones(2, 4),))


def _options(name: str = "adamw", rate: float | str = "auto", **changes: Any) -> GrowOptions:
    return GrowOptions(
        **{"steps": 150, "growth_steps": 0, "batch_size": 32, "optimiser": OptimiserOptions(name, rate), **changes}
    )


def _loss_at(rate: float, name: str) -> float:
    return evaluate(train_static(_graph(), EXAMPLES, LOSS, _options(name, rate, steps=60)), EXAMPLES, LOSS).loss


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_rate_that_is_found_trains_well(name: str) -> None:
    """Better than one that is thirty times lower or higher."""
    found = find_rate(_graph(), EXAMPLES, LOSS, _options(name))
    assert RANGES[name][0] < found.rate < RANGES[name][1] and 0 < found.steps <= 40
    at = {factor: _loss_at(found.rate * factor, name) for factor in (1 / 30, 1.0, 30.0)}
    assert at[1.0] < min(at[1 / 30], at[30.0])


def test_a_rate_that_is_given_is_taken() -> None:
    assert find_rate(_graph(), EXAMPLES, LOSS, _options(rate=0.25)) == FoundRate(0.25, 0)


def test_the_test_is_repeated_exactly_and_changes_nothing() -> None:
    graph = _graph()
    before = {i: t.clone() for i, t in graph.tensors.items()}
    first = find_rate(graph, EXAMPLES, LOSS, _options())
    torch.manual_seed(99)
    assert find_rate(graph, EXAMPLES, LOSS, _options()) == first
    assert all(torch.equal(t, before[i]) for i, t in graph.tensors.items())


def test_a_loss_that_does_not_fall_leaves_the_usual_rate() -> None:
    """The labels are all the same already, and the loss is next to nothing from the start."""
    graph = _graph()
    sure = graph.with_tensors({"2.weight": torch.zeros(3, 8), "2.bias": torch.tensor([50.0, 0.0, 0.0])})
    nothing = Examples(INPUTS, torch.zeros(256, dtype=torch.long))
    for name, rate in USUAL.items():
        assert find_rate(sure, nothing, LOSS, _options(name)).rate == rate


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_network_that_is_trained_already_stays_where_it_is(name: str) -> None:
    """The loss only rises: what is taken lies below the rate where it does so, and it does not rise there."""
    chance = Examples(INPUTS, torch.randint(3, (256,), generator=torch.Generator().manual_seed(1)))
    options = _options(name, 10 * USUAL[name], steps=600)
    trained = _graph().with_tensors(train_static(_graph(), chance, LOSS, options).state_dict())
    found = find_rate(trained, chance, LOSS, _options(name))
    assert found.rate <= USUAL[name]
    short = _options(name, found.rate, steps=40, schedule="constant")
    after = train_static(trained, chance, LOSS, short)
    assert evaluate(after, chance, LOSS).loss < 1.05 * evaluate(trained.module(), chance, LOSS).loss


def test_inputs_that_overflow_stop_the_test() -> None:
    """The first batch is not finite, so that nothing is known."""
    nothing = Examples(INPUTS * 1e38, LABELS)
    assert find_rate(_graph(), nothing, LOSS, _options()) == FoundRate(USUAL["adamw"], 0)


def test_a_short_run_is_tested_briefly() -> None:
    nothing = Examples(0 * INPUTS, LABELS)
    for steps, tried in ((5, FEWEST), (200, 50), (9999, MOST)):
        assert find_rate(_graph(), nothing, LOSS, _options(steps=steps)).steps == tried


def _run(**rest: Any) -> Run:
    return grow_graph(
        _graph(),
        train=EXAMPLES,
        validation=EXAMPLES,
        budget=Budget(parameters=99),
        morphisms=(),
        options=_options(steps=40, checkpoint_every=10, evaluate_every=20),
        **rest,
    )


def test_a_run_that_goes_on_keeps_the_rate_it_found(tmp_path: Path) -> None:
    whole = _run(directory=tmp_path / "whole")
    (event,) = [e for e in whole.history if e["event"] == "rate"]
    found = find_rate(_graph(), EXAMPLES, LOSS, _options(steps=40))
    assert (event["rate"], event["steps"]) == (found.rate, found.steps)
    assert next(e["rate"] for e in whole.history if e["event"] == "train") <= found.rate

    def cut(event: Event) -> None:
        if event["event"] == "train" and event["step"] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(directory=tmp_path / "cut", on_event=cut)
    resumed = _run(directory=tmp_path / "cut", resume=True)
    assert [e["event"] for e in resumed.history].count("rate") == 1
    assert all(torch.equal(whole.graph.tensor(n), resumed.graph.tensor(n)) for n in whole.graph.by_name)


def test_a_rate_that_is_to_be_found_is_none_yet() -> None:
    options = _options()
    with pytest.raises(GrowError, match="the learning rate is still to be found"):
        _ = options.rate
    with pytest.raises(GrowError, match="still to be found"):
        options.optimiser.build(nn.Linear(2, 2))
    with pytest.raises(GrowError, match="rate is 'auot', not a finite number from 0 or 'auto'"):
        OptimiserOptions(rate="auot")
