"""How a set of candidates is chosen: without limits, under one that says yes or no, or under a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch

from archir.cost import Cost, cost
from archir.ir.graph import Graph
from archir.rewrite.morphism import WidthMorphism
from archir.rewrite.set_cost import cost_of_set
from archir.scoring.budget import Budget, Prices
from archir.scoring.combination import Combination
from archir.scoring.cost_model import CostModel, model_costs
from archir.scoring.families import Candidate
from archir.scoring.fill import Filled, fill, inspect
from archir.scoring.knapsack import Knapsack
from archir.scoring.options import Limit, Price
from archir.scoring.select import select
from archir.scoring.set_models import SetModel

NEAR = 1e-9
"""By what part of a limit the model of the cost may be off."""

CORRECTIONS, JUDGED = 8, 4
"""How often the model of the cost is corrected at most by the exact cost of what was chosen on it, while sets are found
on the quadratic model of the loss, and then while they are judged by another one."""


class Ended(StrEnum):
    """Why a set holds no more."""

    LIMIT = "limit"
    GAINLESS = "gainless"
    FILLED = "filled"
    TAKEN = "taken"
    UNREFINED = "unrefined"
    MOST = "most"
    UNREACHED = "unreached"

    @property
    def sentence(self) -> str:
        """The same for people."""
        return {
            Ended.LIMIT: "the budget is reached",
            Ended.GAINLESS: "no candidate that is left lowers the loss",
            Ended.FILLED: "what is predicted to gain nothing takes what room was left",
            Ended.TAKEN: "all candidates that go together are taken",
            Ended.UNREFINED: "no refined candidate that is left lowers the loss, and others were not refined",
            Ended.MOST: "it has as many members as it may have",
            Ended.UNREACHED: "no set of the candidates comes down to the budget",
        }[self]


@dataclass(frozen=True)
class Choice:
    """A set of candidates, given by their numbers, and how it came about.

    Attributes:
        path: its members: every prefix is a set to fall back on.
        predicted: predicted change of the loss, in nats for likelihoods; None if nothing is predicted.
        cost: exact cost of the graph with it.
        prices: the prices of what is scarce that were found, in nats a unit of it; 0 where no limit is tight.
        price: what all of the limits are worth, in nats: the sum of prices times limits.
        ended: why it holds no more.
        spare: how many members at the end of the path only take room that would be left.
    """

    path: tuple[int, ...]
    predicted: float | None
    cost: Cost
    prices: Prices
    price: float
    ended: Ended
    spare: int = 0


@dataclass(frozen=True)
class Pool:
    """The candidates that a set may be chosen from.

    Attributes:
        graph: the graph they were found in.
        candidates: the candidates, refined ones first, in an order in which they are taken where nothing is predicted.
        model: what is predicted for sets of the first of them; None if nothing is.
        beyond: what is predicted for each of the others alone; `[others]`. They are taken only to come down to a limit.
        shortlist: number of candidates that are judged in each step, see `select`.
        unrefined: whether there are candidates that a set cannot be grown by as they were not refined.
    """

    graph: Graph = field(repr=False)
    candidates: Sequence[Candidate]
    model: SetModel | None
    beyond: torch.Tensor
    shortlist: int
    unrefined: bool

    @property
    def refined(self) -> int:
        """Number of candidates that the model knows; all of them where there is none."""
        return len(self.candidates) - len(self.beyond)


def choose(pool: Pool, *, k: int | None = None, limit: Limit | None = None, price: Price | None = None) -> list[int]:
    """Choose a set that can be applied together, one member after another.

    Args:
        pool: what there is to choose from: that with the lowest objective is added, while it falls. Where nothing is
            predicted they are taken in their order; no price stops that.
        k: most members.
        limit: says whether a graph of some cost may be made; asked about the exact cost of every set on the way.
        price: what a difference of cost is worth, in nats.

    Returns:
        The numbers of the members as they were added: every prefix is a smaller set to fall back on.
    """
    candidates = pool.candidates[: pool.refined]

    def fits(chosen: Sequence[int]) -> bool:
        return limit is None or limit(_cost(pool, chosen))

    combination = Combination(pool.graph)
    if pool.model is None:
        chosen: list[int] = []
        for number, candidate in enumerate(candidates):
            if k is not None and len(chosen) >= k:
                break
            more = combination.plus(candidate)
            if more is not None and fits([*chosen, number]):
                combination = more
                chosen.append(number)
        return chosen
    return select(
        pool.model.start(),
        torch.tensor([0.0 if price is None else price(c.cost) for c in candidates], dtype=torch.float64),
        combination=combination,
        plus=lambda combined, number: combined.plus(candidates[number]),
        fits=fits,
        frees=[limit is not None and c.cost.frees for c in candidates],
        shortlist=pool.shortlist,
        k=k,
    )


def choose_within(pool: Pool, budget: Budget, *, k: int | None = None, price: Price | None = None) -> Choice:
    """Choose the set with the least predicted loss within a budget, which may be below what the graph costs now.

    The set is found by `fill` on a model of the cost. This is corrected by the exact cost of what was found, and by
    which of its members turn out not to go together, until that changes nothing. Candidates that were not refined are
    left out unless the others do not reach the budget; what they are predicted to gain then counts for nothing.

    Args:
        pool: what there is to choose from. Where nothing is predicted they are taken in their order, those that fit,
            or, if the graph is above the budget, those that take it down, until it is within.
        budget: the limits; that on latency is left to whoever measures it.
        k: most members.
        price: what a difference of cost is worth, in nats; added to the loss.
    """
    now = cost(pool.graph)
    if pool.model is None:
        return _in_order(pool, budget, now, k)
    known = replace(pool, candidates=pool.candidates[: pool.refined], beyond=pool.beyond[:0])
    found = _choose_within(known, pool.model, budget, k, price)
    if budget.allows(found.cost) or budget.allows(now) or not len(pool.beyond):
        return found
    return _choose_within(pool, pool.model, budget, k, price)


def _choose_within(pool: Pool, model: SetModel, budget: Budget, k: int | None, price: Price | None) -> Choice:
    """Choose a set within a budget; candidates that were not refined only free what is scarce."""
    costs = model_costs(pool.graph, pool.candidates, budget)
    more = torch.tensor([0.0 if price is None else price(c.cost) for c in pool.candidates], dtype=torch.float64)
    more[pool.refined :] += pool.beyond.clamp(min=0)
    problem, judged = _problem(pool, model, costs, k, more), model.start(more)
    best: tuple[Filled, Cost] | None = None
    shift = [0.0] * len(costs.limits)
    for by, rounds in ((None, CORRECTIONS), (judged, 0 if judged.exact else JUDGED)):
        seen: set[frozenset[int]] = set()
        for _ in range(rounds):
            filled = fill(problem.shifted(shift), by, pool.shortlist)
            whole = Combination(pool.graph).plus(*(pool.candidates[c] for c in filled.path))
            if whole is None:
                path, found, clashes = _applied(pool, budget, filled.path)
            else:
                path, found, clashes = list(filled.path), whole.cost(), []
            value = model.predict([c for c in path if c < pool.refined]) + float(more[path].sum())
            modelled = replace(inspect(problem, path, filled.prices), change=value)
            if best is None or _is_better(budget, (modelled, found), best):
                best = modelled, found
            off = [e - u for e, u in zip(costs.used(found), modelled.used, strict=True)]
            if not clashes and (frozenset(path) in seen or _are_near(off, shift)):
                break
            for clash in clashes:
                _part(problem, pool.candidates, *clash)
            seen.add(frozenset(path))
            shift = off
    assert best is not None
    path, _, _ = _applied(pool, budget, best[0].path)
    asked = _as_far_as_asked(pool, budget, path)
    return _told(pool, model, budget, inspect(problem, asked, best[0].prices), k)


def _problem(pool: Pool, model: SetModel, costs: CostModel, k: int | None, more: torch.Tensor) -> Knapsack:
    """Return what there is to choose from as a knapsack; what was not refined may only free room."""
    alone, gram = model.quadratic
    barred = torch.zeros(len(pool.candidates), dtype=torch.bool)
    if len(pool.beyond):
        frees = torch.zeros(len(costs.effects), dtype=torch.bool)
        for resource in costs.resources:
            frees |= torch.from_numpy((resource.used > 1) & (resource.added < 0))
        barred[len(alone) :] = ~frees[costs.kinds[len(alone) :]]
    return Knapsack(
        alone=torch.cat([alone, torch.zeros_like(pool.beyond)]) + more,
        gram=gram,
        kinds=costs.kinds,
        resources=costs.resources,
        apart=costs.apart,
        sizes=costs.sizes,
        effects=costs.effects,
        barred=barred,
        most=k,
    )


def _applied(pool: Pool, budget: Budget, path: Sequence[int]) -> tuple[list[int], Cost, list[tuple[int, int | None]]]:
    """Return the part of a path that can be applied together, what it costs, and which candidates clash.

    From the first prefix within the budget on all are within it: what does not fit yet waits until room is freed.
    """
    grown, found = [Combination(pool.graph)], cost(pool.graph)
    within = budget.allows(found)
    taken: list[int] = []
    clashes: list[tuple[int, int | None]] = []
    waiting = list(path)
    while waiting:
        later: list[int] = []
        for number in waiting:
            candidate = pool.candidates[number]
            more = grown[-1].plus(candidate)
            if more is None:
                clashes.append((number, _clashing(grown, taken, candidate)))
                continue
            costs = more.cost()
            if within and not budget.allows(costs):
                later.append(number)
                continue
            grown.append(more)
            found, within = costs, budget.allows(costs)
            taken.append(number)
        if len(later) == len(waiting):
            break
        waiting = later
    return taken, found, clashes


def _as_far_as_asked(pool: Pool, budget: Budget, path: Sequence[int]) -> Sequence[int]:
    """Return the members of a path up to the one that comes down to the budget, if all of them only remove.

    A quadratic model lets the effects of further removals cancel each other out on the examples it was made of. That
    is seldom so on others, and nothing has asked for it.
    """
    if budget.allows(cost(pool.graph)) or not all(_only_removes(pool.candidates[c].cost) for c in path):
        return path
    enough = (n for n in range(1, len(path)) if budget.allows(_cost(pool, path[:n])))
    return path[: next(enough, len(path))]


def _only_removes(change: Cost) -> bool:
    return max(change.parameters, change.flops, change.peak_bytes) <= 0


def _clashing(grown: Sequence[Combination], taken: Sequence[int], candidate: Candidate) -> int | None:
    """Return the first member that a candidate does not go with after those before; None if it does not even alone."""
    place = bisect_left(grown, True, key=lambda combination: combination.plus(candidate) is None)
    return taken[place - 1] if place else None


def _part(problem: Knapsack, candidates: Sequence[Candidate], one: int, other: int | None) -> None:
    """Keep two candidates apart, and all like them unless both change single units; bar one that clashes with none."""
    if other is None:
        problem.barred[one] = True
        return
    alike = [torch.tensor([c]) for c in (one, other)]
    if not all(isinstance(candidates[c].morphism, WidthMorphism) for c in (one, other)):
        alike = [(problem.kinds == problem.kinds[c]).nonzero().flatten() for c in (one, other)]
    problem.apart[alike[0][:, None], alike[1]] = problem.apart[alike[1][:, None], alike[0]] = True


def _are_near(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) < NEAR for a, b in zip(one, other, strict=True))


def _is_better(budget: Budget, one: tuple[Filled, Cost], other: tuple[Filled, Cost]) -> bool:
    """Say whether a set is within the budget, or nearer to it, or as near with less loss."""

    def rank(of: tuple[Filled, Cost]) -> tuple[float, float]:
        return _over(budget, of[1]), of[0].change

    return rank(one) < rank(other)


def _told(pool: Pool, model: SetModel, budget: Budget, found: Filled, k: int | None) -> Choice:
    """Return a set with why it ended."""
    now, grown = cost(pool.graph), _cost(pool, found.path)
    names = list(budget.scarce)
    tight = budget.allows(grown) and (found.gains or not budget.allows(now))
    prices = dict(zip(names, found.prices, strict=True)) if tight else {}
    if k is not None and len(found.path) >= k:
        ended = Ended.MOST
    elif not budget.allows(grown):
        ended = Ended.UNREACHED
    elif tight:
        ended = Ended.LIMIT
    elif pool.unrefined:
        ended = Ended.UNREFINED
    else:
        ended = Ended.TAKEN if found.all else Ended.GAINLESS
    each = Prices(**{n: p / max(budget.scarce[n], 1) for n, p in prices.items()})
    others = [c - pool.refined for c in found.path if c >= pool.refined]
    predicted = model.predict([c for c in found.path if c < pool.refined]) + float(pool.beyond[others].sum())
    return Choice(found.path, predicted, grown, each, sum(prices.values()), ended)


def _in_order(pool: Pool, budget: Budget, now: Cost, k: int | None) -> Choice:
    """Take candidates in their order: those that fit; or those that take the graph down, until it is within."""
    combination, found, within = Combination(pool.graph), now, budget.allows(now)
    path: list[int] = []
    left = False
    for number, candidate in enumerate(pool.candidates):
        if (k is not None and len(path) >= k) or (not budget.allows(now) and within):
            break
        more = combination.plus(candidate)
        if more is None:
            continue
        costs = more.cost()
        if budget.allows(costs) if within else _over(budget, costs) < _over(budget, found):
            combination, found, within = more, costs, budget.allows(costs)
            path.append(number)
        else:
            left = True
    if k is not None and len(path) >= k:
        ended = Ended.MOST
    elif not within:
        ended = Ended.UNREACHED
    else:
        ended = Ended.LIMIT if left or not budget.allows(now) else Ended.TAKEN
    return Choice(tuple(path), None, found, Prices(), 0.0, ended)


def _cost(pool: Pool, chosen: Sequence[int]) -> Cost:
    """Return the exact cost of the graph with a set of candidates applied."""
    return cost_of_set(pool.graph, [pool.candidates[c].morphism for c in chosen])


def _over(budget: Budget, of: Cost) -> float:
    """Return by what part of its limits a cost is above them, summed over them."""
    return sum(max(0.0, (float(getattr(of, n)) - limit) / max(limit, 1.0)) for n, limit in budget.scarce.items())
