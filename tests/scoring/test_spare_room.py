"""Room that the best set leaves is taken by candidates that cost something and can do no harm, and by no others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import nn

from archir.api import score
from archir.cost import cost
from archir.scoring.budget import Budget
from archir.scoring.scores import Score, Scores
from archir.scoring.selection import Ended
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split


@cache
def scores(*, prunes: bool = False) -> Scores:
    """Return scores of a network whose θ is far too large, so that much of it raises the loss."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    graph = trace(net, (torch.zeros(2, 6, dtype=torch.float64),))
    examples = torch.randn(64, 6, dtype=torch.float64), torch.randint(4, (64,))
    kinds = (Split(), Prune()) if prunes else (Split(),)
    return score(graph, [examples], morphisms=kinds, learn=[examples], steps=1, radius=100.0, rate=2.0, refine=64)


def room(times: float) -> Budget:
    return Budget(parameters=round(times * cost(scores().graph).parameters))


def beside(path: Sequence[Score]) -> list[Score]:
    taken = {s.spec for s in path}
    return [s for s in scores() if s.spec not in taken]


@pytest.mark.parametrize("times", [1.7, 1.9, 2.2])
def test_room_is_taken_after_what_gains(times: float) -> None:
    budget = room(times)
    best, filled = scores().select(budget), scores().select(budget, fill=True)
    assert best.ended is Ended.GAINLESS and not best.spare
    assert filled.ended is Ended.FILLED and filled.spare == len(filled.path) - len(best.path) > 0
    assert filled.path[: len(best.path)] == best.path
    spare = filled.path[len(best.path) :]
    assert all(s.candidate.cost.parameters > 0 for s in spare)
    assert filled.cost == cost(scores().apply(filled.path)) and budget.share(best.cost) < budget.share(filled.cost) <= 1
    # Nothing that could be added would fit.
    left = beside(filled.path)
    assert left and all(not budget.allows(scores().cost_of([*filled.path, s])) for s in left)
    assert filled.predicted == pytest.approx(scores().linearised(filled.path), rel=1e-9)


def test_those_come_first_that_do_the_least_harm_for_what_they_take() -> None:
    best, filled = scores().select(room(1.9)), scores().select(room(1.9), fill=True)
    first, *_ = filled.path[len(best.path) :]
    before = scores().joint(best.path)
    left = beside(best.path)
    harm = {s.spec: (scores().joint([*best.path, s]) - before) / s.candidate.cost.parameters for s in left}
    assert harm[first.spec] == min(harm.values())


def test_no_more_members_are_taken_than_a_set_may_have() -> None:
    best = scores().select(room(1.9))
    for more in (0, 1, 2):
        found = scores().select(room(1.9), k=len(best.path) + more, fill=True)
        assert (len(found.path), found.spare) == (len(best.path) + more, more)


def test_what_frees_room_or_goes_with_nothing_that_was_chosen_does_not_take_it() -> None:
    both = scores(prunes=True)
    best, filled = both.select(room(1.8)), both.select(room(1.8), fill=True)
    assert filled.spare and {s.candidate.morphism.name for s in best.path} == {"split", "prune"}
    assert {s.candidate.morphism.name for s in filled.path[-filled.spare :]} == {"split"}
    assert filled.cost == cost(both.apply(filled.path))


def test_a_budget_that_is_reached_or_has_to_be_reached_from_above_stays_as_it_is() -> None:
    for budget in (room(1.02), room(0.7)):
        assert scores().select(budget, fill=True) == scores().select(budget)
