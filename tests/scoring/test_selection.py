"""Sets under a budget on real graphs: limits are reached from both sides, exactly, and it is said how."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from archir.axes.infer import infer_widths
from archir.cost import Cost, cost
from archir.rewrite.morphism import Morphism
from archir.scoring.budget import Budget
from archir.scoring.families import find_families
from archir.scoring.options import ScoreOptions
from archir.scoring.scores import Scores
from archir.scoring.selection import Ended
from archir.scoring.strategies.worth import scarcity
from passes.merge import Merge
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from passes.widen import Widen
from tests.scoring.strategies.nets import images, make_scores

UNITS: tuple[Morphism, ...] = (Split(), Prune(), Merge())


@cache
def scored(strategy: str = "linearised", refine: int = 100, *, splices: bool = False) -> Scores:
    graph, batches = images()
    kinds = (*UNITS, ResidualBranch(hidden=2), Widen(count=2)) if splices else UNITS
    return make_scores(strategy, graph, batches, *kinds, options=ScoreOptions(steps=3, refine=refine))


def part(now: Cost, of: float, *names: str) -> Budget:
    """Return limits at a part of what the graph costs."""
    return Budget(**{name: int(getattr(now, name) * of) for name in names})


@pytest.mark.parametrize("names", [("flops",), ("parameters", "flops"), ("peak_bytes",)], ids="-".join)
@pytest.mark.parametrize("of", [0.4, 0.7, 1.0, 1.4])
@pytest.mark.parametrize(("splices", "refine"), [(False, 100), (True, 100), (False, 8)])
def test_limits_are_kept_from_both_sides(names: tuple[str, ...], of: float, splices: bool, refine: int) -> None:
    scores = scored(refine=refine, splices=splices)
    now = cost(scores.graph)
    budget = part(now, of, *names)
    found = scores.select(budget)
    assert cost(scores.apply(found.path)) == found.cost
    assert [s.spec for s in scores.choose(budget=budget)] == [s.spec for s in found.path]
    assert budget.allows(found.cost)
    assert all(w.size >= 1 for w in infer_widths(scores.apply(found.path)))
    inside = [budget.allows(scores.cost_of(found.path[:i])) for i in range(len(found.path) + 1)]
    assert inside == sorted(inside), "from the first prefix within the budget on all are"
    assert found.reached or of >= 1
    if of < 1:
        assert found.price > 0 and any(getattr(found.prices, n) > 0 for n in names)
        assert found.price == pytest.approx(sum(getattr(found.prices, n) * getattr(budget, n) for n in names))
        for i in range(len(found.path)):  # no member is more than the limit asks for
            fewer = [s for j, s in enumerate(found.path) if j != i]
            predicted = found.path[i].predicted
            assert predicted is not None
            if refine == 100 and not splices and budget.allows(scores.cost_of(fewer)):
                assert scores.joint(fewer) >= scores.joint(found.path) - 1e-12


def test_what_no_set_reaches_is_said_with_the_smallest_cost_there_is() -> None:
    scores = scored()
    found = scores.select(Budget(parameters=10))
    assert found.ended is Ended.UNREACHED and not found.reached
    assert all(w.size == 1 for w in infer_widths(scores.apply(found.path)))
    assert found.cost == cost(scores.apply(found.path)) and found.price == 0
    assert f"the smallest that was found costs {found.cost.parameters} parameters" in found.reason


def test_growth_ends_for_a_reason() -> None:
    now = cost(scored().graph)
    assert scored().select(part(now, 50, "flops")).ended in (Ended.GAINLESS, Ended.TAKEN)
    assert scored(refine=8).select(part(now, 50, "flops")).ended is Ended.UNREFINED
    assert scored().select(part(now, 50, "flops"), k=2).ended is Ended.MOST
    grown = scored().select(Budget(flops=now.flops + 500))
    assert grown.ended is Ended.LIMIT and grown.reason == "the budget is reached" and grown.prices.flops > 0
    assert grown.predicted == pytest.approx(scored().linearised(grown.path))


def test_below_the_budget_it_is_better_than_asking_whether_each_fits() -> None:
    scores = scored(splices=True)
    now = cost(scores.graph)
    gained: list[float] = []
    for of in (1.0, 1.2, 1.5, 2.0, 50.0):
        budget = part(now, of, "flops")
        asked = scores.linearised(scores.choose(budget=budget.allows))
        gained.append(scores.linearised(scores.choose(budget=budget)) / asked)
    assert min(gained) > 0.97 and sum(gained) / len(gained) > 1.03


def test_prices_are_paid_within_a_budget_as_well() -> None:
    scores = scored()
    now = cost(scores.graph)
    dear = scores.select(part(now, 1.5, "flops"), price=lambda c: 1.0 * c.parameters)
    assert dear.cost.parameters < now.parameters


def test_what_was_not_refined_frees_room_and_does_not_grow() -> None:
    scores = scored(refine=4)
    now = cost(scores.graph)
    grown = scores.choose(budget=part(now, 2, "flops"))
    assert all(s.refined for s in grown)
    shrunk = scores.select(part(now, 0.3, "flops"))
    others = [s for s in shrunk.path if not s.refined]
    assert shrunk.reached and others and all(s.candidate.cost.flops < 0 for s in others)
    alone = scores.additive(others)
    assert shrunk.predicted == pytest.approx(scores.linearised([s for s in shrunk.path if s.refined]) + alone)


def test_as_many_are_refined_as_the_budget_asks_for() -> None:
    graph, batches = images()
    now = cost(graph)

    def refined(budget: Budget | None) -> int:
        options = ScoreOptions(steps=3, refine=2, budget=budget)
        return make_scores("joint", graph, batches, *UNITS, options=options).refined

    assert refined(None) == 2
    assert refined(part(now, 0.4, "flops")) > 2 < refined(part(now, 1.2, "flops"))


@pytest.mark.parametrize("strategy", ["magnitude", "random", "additive", "joint"])
def test_every_strategy_comes_down_to_a_limit(strategy: str) -> None:
    scores = scored(strategy)
    now = cost(scores.graph)
    for of in (0.5, 0.7):
        budget = part(now, of, "flops")
        found = scores.select(budget)
        assert found.reached and budget.allows(found.cost) and cost(scores.apply(found.path)) == found.cost
        if scores.model is None:
            assert not budget.allows(scores.cost_of(found.path[:-1])), "it ends where the limit is reached"


def test_what_is_scarce_is_priced_so_that_what_pays_for_it_just_fits() -> None:
    """Taken as additive, the candidates that are worth their price are within the limits, one more is not."""
    graph, _ = images()
    families, _ = find_families(graph, UNITS)
    sizes = torch.tensor([len(f.candidates) for f in families])
    worth = torch.randn(int(sizes.sum()), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    now, costs = cost(graph), [c.cost for f in families for c in f.candidates]
    for of in (0.3, 0.7, 1.0, 1.4):
        for names in (("flops",), ("parameters", "flops")):
            budget = part(now, of, *names)
            price = scarcity(families, worth, sizes, budget)
            order = (worth + price).argsort()
            taken = int(((worth + price) < 0).sum())
            fits = [budget.allows(sum((costs[i] for i in order[:n].tolist()), now)) for n in (taken, taken + 1)]
            assert fits[0] and (not bool(price.any()) or of < 1 or not fits[1])
    assert not scarcity(families, worth, sizes, part(now, 50, "flops")).any()
