"""Budgets and prices: what is within them, what they say, and latency, which is measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from archir.cost import Cost, cost
from archir.errors import GrowError
from archir.growing import step as step_module
from archir.growing.examples import Examples
from archir.growing.growth import Growth, grow_once
from archir.growing.latency import ROUNDS, measure_latency
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.scoring.budget import Budget, Prices
from archir.scoring.losses import find_loss
from frontends.pytorch import trace
from passes.split import Split

SEED = Cost(parameters=100, flops=1000, bytes=4000, peak_bytes=400)


@pytest.fixture(scope="module")
def examples() -> Examples:
    torch.manual_seed(0)
    inputs = torch.randn(300, 6)
    return Examples(inputs, (inputs @ torch.randn(6, 3)).argmax(1))


@pytest.fixture(scope="module")
def graph(examples: Examples) -> Graph:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    assert isinstance(examples.inputs, torch.Tensor) and isinstance(examples.targets, torch.Tensor)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(examples.inputs), examples.targets))
        optimiser.step()
    return trace(net, (examples.inputs[:2],))


def grow_it(graph: Graph, examples: Examples, budget: Budget, prices: Prices | None = None) -> Growth:
    return grow_once(
        graph,
        train=examples,
        selection=examples,
        check=examples,
        loss=find_loss("cross_entropy"),
        budget=budget,
        options=GrowOptions(learn_steps=20, prices=prices or Prices()),
        morphisms=(Split(),),
        seed=0,
    )


@pytest.mark.parametrize("name", ["parameters", "flops", "peak_bytes"])
def test_every_limit_is_hard(name: str) -> None:
    budget = Budget(**{name: 500})
    assert budget.allows(Cost(**{name: 500}))
    assert not budget.allows(Cost(**{name: 501}))
    assert budget.limits == {name: 500}


def test_a_budget_needs_a_limit_the_seed_is_within() -> None:
    with pytest.raises(GrowError, match="growth needs a budget"):
        Budget().check(SEED)
    with pytest.raises(GrowError, match=r"400 peak bytes(.|\n)*budget: 399 peak bytes"):
        Budget(peak_bytes=399).check(SEED)
    Budget(latency=0.1).check(SEED)


def test_stages_are_spaced_geometrically_and_latency_is_not() -> None:
    budget = Budget(parameters=400, peak_bytes=1600, latency=0.5)
    assert budget.stage(SEED, 1, 2) == Budget(200, None, 800, 0.5)
    assert budget.stage(SEED, 2, 2) == budget


def test_prices() -> None:
    prices = Prices(parameters=1.0, flops=0.1, peak_bytes=0.01, latency=5.0)
    assert prices.of(Cost(1, 10, 7, 100)) == pytest.approx(3)
    assert Prices(flops=0.1, latency=5.0).given == {"flops": 0.1, "latency": 5.0}
    assert prices.by_flops(0.2) == Prices(1.0, 1.1, 0.01, 0.0)


def test_latency_is_the_median_after_warming_up() -> None:
    durations = [9.0, 9.0, 9.0, *([1.0, 2.0, 4.0] * (ROUNDS // 3))]
    ticks: Iterator[float] = itertools.accumulate(d for one in durations for d in (0.0, one))
    module = nn.Linear(2, 2).train()
    assert measure_latency(module, Examples(torch.randn(3, 2), torch.zeros(3)), clock=lambda: next(ticks)) == 2.0
    assert not module.training


def test_peak_bytes_bound_growth(graph: Graph, examples: Examples) -> None:
    limit = cost(graph).peak_bytes + 2 * 8  # of the hidden layer before and after the activation, two units more
    grown = grow_it(graph, examples, Budget(peak_bytes=limit))
    assert cost(graph).peak_bytes < grown.cost.peak_bytes <= limit
    assert len(grow_it(graph, examples, Budget(peak_bytes=10**6)).specs) > len(grown.specs)
    assert grown.latency is None


def test_latency_bounds_growth_and_has_a_price(
    graph: Graph, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that takes a millisecond for each hidden unit."""

    def units(module: nn.Module, _: Examples) -> float:
        return 1e-3 * len(dict(module.named_parameters())["0.weight"])

    monkeypatch.setattr(step_module, "measure_latency", units)
    free = grow_it(graph, examples, Budget(latency=1.0))
    bound = grow_it(graph, examples, Budget(latency=7.5e-3))
    assert free.latency is not None and bound.latency is not None
    assert len(free.specs) > 2 and free.latency == pytest.approx(1e-3 * (5 + len(free.specs)))
    assert 5e-3 < bound.latency <= 7.5e-3
    assert not grow_it(graph, examples, Budget(latency=1.0), Prices(latency=1e4)).specs


def test_a_multiple_of_a_budget() -> None:
    assert Budget(parameters=1001, latency=0.5).scaled(2.5) == Budget(parameters=2502, latency=1.25)
    assert Budget(flops=10, peak_bytes=7).scaled(0.5) == Budget(flops=5, peak_bytes=3)


def test_parts_are_those_of_a_cost_rounded_down() -> None:
    budget = Budget(parameters=0.5, flops=7, peak_bytes=1.0, latency=0.25)
    assert budget.resolved(Cost(11, 100, 0, 30)) == Budget(5, 7, 30, 0.25)
    assert str(budget) == "0.5 of its parameters, 7 FLOPs, 1.0 of its peak bytes, 0.25 seconds"
    with pytest.raises(GrowError, match=r"is a part of what a network costs: 0\.5 of its parameters"):
        budget.allows(Cost(1, 1, 1, 1))
    resolved = budget.resolved(Cost(11, 100, 0, 30))
    assert resolved.resolved(Cost(1, 1, 1, 1)) == resolved
