"""Shrinking in rounds: units keep their first numbers, and what is left is compensated for all that is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.errors import GrowError, ScoreError
from archir.ir.graph import Graph
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import parse_specs
from archir.scoring.budget import Budget
from archir.scoring.compensate import compensated
from archir.scoring.losses import find_loss
from archir.scoring.objective import make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.score import score
from archir.scoring.shrink import Shrunk, shrink
from frontends.pytorch import trace
from passes.prune import Prune

LOSS = find_loss("mse")


class Wide(nn.Module):
    """Two layers in which each unit weighs half of what the next one does, and a third that is wired beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(16, 3)
        with torch.no_grad():
            self.second.weight.mul_(2.0 ** torch.arange(8))
            self.last.weight.mul_(2.0 ** torch.arange(8).repeat(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y: Tensor = self.last(torch.cat([torch.relu(self.second(x)), x], 1))
        return y


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Wide().double(), (torch.randn(2, 6, dtype=torch.float64),))


def batches(graph: Graph, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches on which the network is nearly right."""
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(count, 16, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return [(x, graph.module()(x) + 0.01 * torch.randn(16, 3, generator=generator)) for x in xs]


def shrunk(graph: Graph, budget: Budget, rounds: int, *, compensates: bool = True, strategy: str = "sampled") -> Shrunk:
    seen = batches(graph)
    return shrink(
        graph,
        budget,
        prune=Prune(),
        loss=LOSS,
        batches=seen,
        compensate=seen if compensates else None,
        strategy=strategy,
        rounds=rounds,
    )


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_what_is_left_is_the_first_network_compensated_for_all_that_is_gone(graph: Graph, rounds: int) -> None:
    found = shrunk(graph, Budget(flops=0.5), rounds)
    assert 0.35 * cost(graph).flops < found.cost.flops <= 0.5 * cost(graph).flops
    assert found.cost == cost(found.graph) and len(found.predicted) <= rounds
    wanted = compensated(graph, batches(graph), found.prunes)
    assert str(wanted) == str(found.graph)
    assert all(torch.equal(found.graph.tensor(n), wanted.tensor(n)) for n in wanted.by_name)
    assert len({p.width for p in found.prunes}) == len(found.prunes)
    # The texts do the same, one after the other.
    plain = apply_passes(graph, parse_specs("; ".join(found.specs), {"prune": Prune}))
    assert cost(plain) == found.cost


def test_rounds_without_compensation_remove_the_units_that_weigh_least(graph: Graph) -> None:
    """Whatever numbers they have in between: those that are left at the end weighed most at the beginning."""
    found = shrunk(graph, Budget(parameters=0.6), 6, compensates=False, strategy="magnitude")
    kept = {w.name: set(range(w.size)) for w in infer_widths(graph)}
    for prune in found.prunes:
        assert isinstance(prune, Prune)
        kept[prune.width] -= set(prune.units)
    left = {n: sum(found.graph.tensor(n).shape) for n in ("first.weight", "second.weight")}
    assert sum(map(len, kept.values())) == left["second.weight"]
    rows = {tuple(row.tolist()) for row in graph.tensor("first.weight")}
    assert all(tuple(row.tolist()) in rows for row in found.graph.tensor("first.weight"))


def test_compensation_in_rounds_loses_less(graph: Graph) -> None:
    def loss(of: Graph) -> float:
        with torch.no_grad():
            return sum(float((of.module()(x) - y).square().mean()) for x, y in batches(graph, 8))

    plain, mended = (loss(shrunk(graph, Budget(flops=0.6), 3, compensates=c).graph) for c in (False, True))
    assert mended < plain


def test_widths_go_down_to_one_unit(graph: Graph) -> None:
    found = shrunk(graph, Budget(parameters=20), 4)
    assert [w.size for w in infer_widths(found.graph)] in ([1, 1], []) and found.cost.parameters <= 20


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda g: shrunk(g, Budget(flops=0.5), 0), ScoreError),
        (lambda g: Budget(flops=0.5).allows(cost(g)), GrowError),
    ],
)
def test_what_makes_no_sense_is_refused(graph: Graph, call: Callable[[Graph], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(graph)


def test_scores_choose_under_a_part_of_the_cost(graph: Graph) -> None:
    scores = score(
        make_objective(graph, LOSS),
        batches(graph),
        morphisms=(Prune(),),
        strategy="sampled",
        options=ScoreOptions(steps=0),
    )
    chosen = scores.select(Budget(flops=0.7))
    assert scores.cost_of(chosen.path).flops <= 0.7 * cost(graph).flops
    assert [s.spec for s in scores.choose(budget=Budget(flops=0.7))] == [s.spec for s in chosen.path]
