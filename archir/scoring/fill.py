"""The set with the least loss within limits on its cost, found by prices of the limits and by exchanges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from archir.scoring.knapsack import ROUNDING, Knapsack, KnapsackSet
from archir.scoring.resources import Floats
from archir.scoring.set_models import FlippingSet

DOUBLINGS = 40
"""How often a price is doubled at most until a limit holds."""

HALVINGS = 14
"""How often the interval in which a price lies is halved at most."""

FORCED, FORCED_AND_JUDGED = 64, 32
"""The number of flips that are forced at most, on the quadratic model of the loss and on another one."""

ROUNDS = 3
"""How often the prices of several limits are found in turn, each given the others."""


@dataclass(frozen=True)
class Filled:
    """A set of candidates.

    Attributes:
        path: its members; every prefix is a set to fall back on.
        change: the predicted change of the loss.
        used: what it uses of each resource, 1 at the limit.
        prices: the price of each limit that was found, in nats for all of the limit; 0 where it is not tight.
        gains: whether some candidate is left out that would lower the loss but does not fit.
        all: whether no candidate is left that goes with it.
    """

    path: tuple[int, ...]
    change: float
    used: tuple[float, ...]
    prices: tuple[float, ...]
    gains: bool
    all: bool

    @property
    def fits(self) -> bool:
        """Whether it is within all limits."""
        return all(u <= 1 + ROUNDING for u in self.used)


def fill(problem: Knapsack, judged: FlippingSet | None = None, shortlist: int = 1) -> Filled:
    """Return the best set that is found: least loss within the limits, or else as near to them as can be.

    It minimises `L(S) + Σ λ_i c_i(S)` by single flips, with the prices λ_i of the limits found by bisection, one after
    another: that of a limit which holds anyway is zero. From the sets at both ends of the last interval, and from the
    one that gain per price alone leads to, members are then added and dropped until the limits hold with the least
    loss for what is freed, room that is left is used, and single candidates and pairs are exchanged while that lowers
    the loss within the limits. At last single flips are forced, each with what it takes to be within the limits again.

    All of this is done on the quadratic model. Under another one the last steps are done again, from the set that was
    found, from the one that single flips lead to at the prices that were found, and from the one that they lead to
    where nothing has a price and what does not fit is left out.

    Args:
        problem: the knapsack.
        judged: the empty set under another model of the loss, which is asked about few flips.
        shortlist: the number of flips that it judges at first in each step.

    Source: ours; the relaxation is Lagrange's (Everett 1963).
    """
    start = KnapsackSet(problem)
    prices, ends = _find_prices(start, start.copy().descend(np.zeros(len(problem.resources))))
    found = _forced(_best([*ends, start], prices), prices, FORCED)
    if judged is None or judged.exact:
        return _ordered(problem, found, prices.tolist())
    same, priced, fitting = (KnapsackSet(problem, judged, shortlist) for _ in range(3))
    for candidate in np.flatnonzero(found.inside).tolist():
        same.flip(candidate)
    starts = [same, priced.descend(prices)]
    if fitting.fits:
        fitting.exchange(prices, pairs=False)
        starts.append(fitting)
    found = _forced(_best(starts, prices), prices, FORCED_AND_JUDGED)
    return _ordered(problem, found, prices.tolist(), KnapsackSet(problem, judged, shortlist))


def _best(starts: Sequence[KnapsackSet], prices: Floats) -> KnapsackSet:
    """Return the best of some sets after each was taken within the limits and improved by exchanges."""
    found: KnapsackSet | None = None
    for state in starts:
        state.reach(prices)
        state.exchange(prices)
        if found is None or state.better_than(found):
            found = state
    assert found is not None
    return found


def _forced(found: KnapsackSet, prices: Floats, most: int) -> KnapsackSet:
    """Return a set after some single flips were forced, those nearest to their price, while that makes it better."""
    tried: set[int] = set()
    for _ in range(most):
        left = [c for c in found.nearest(prices, most) if c not in tried]
        if not left:
            break
        tried.add(left[0])
        other = found.force(left[0], prices)
        if other.better_than(found) and not (found.fits and other.change >= found.change - found.least):
            other.exchange(prices)
            found, tried = other, set()
    return found


def _find_prices(start: KnapsackSet, free: KnapsackSet) -> tuple[Floats, Sequence[KnapsackSet]]:
    """Return the prices of the limits, and the sets at both ends of the last interval in which one lies.

    Args:
        start: the empty set.
        free: the set where nothing has a price.
    """
    count = len(free.used)
    prices = np.zeros(count)
    state, ends = free, [free]
    for _ in range(ROUNDS if count > 1 else 1):
        if state.fits:
            break
        for i in (1 - state.used).argsort(kind="stable").tolist():
            if state.used[i] > 1 + ROUNDING or prices[i]:
                prices[i], ends = _find_price(start, prices, i)
                state = ends[-1]
    return prices, ends


def _find_price(start: KnapsackSet, prices: Floats, which: int) -> tuple[float, list[KnapsackSet]]:
    """Return the lowest price of one limit at which it holds, and the sets right below and at it."""

    def at(price: float, of: KnapsackSet) -> KnapsackSet:
        with_it = prices.copy()
        with_it[which] = price
        return of.copy().descend(with_it)

    def holds(found: KnapsackSet) -> bool:
        return float(found.used[which]) <= 1 + ROUNDING

    below = at(0.0, start)
    if holds(below):
        return 0.0, [below]
    costs, losses = np.abs(start.costs[which]), np.abs(start.losses)
    known = costs > 0
    worth = np.sort(losses[known] / costs[known])
    low, high = 0.0, float(worth[(len(worth) - 1) // 2]) if len(worth) else 1.0
    high = max(high, 1e-12)
    above = at(high, start)
    for _ in range(DOUBLINGS):
        if holds(above):
            break
        low, high, below = high, 2 * high, above
        above = at(high, above)
    for _ in range(HALVINGS):
        if not holds(above) or (high - low < 1e-3 * high and low) or int((above.inside ^ below.inside).sum()) <= 1:
            break
        middle = math.sqrt(low * high) if low else high / 8
        found = at(middle, start)
        if holds(found):
            high, above = middle, found
        else:
            low, below = middle, found
    return high, [below, above]


def inspect(problem: Knapsack, path: Sequence[int], prices: Sequence[float] | None = None) -> Filled:
    """Return what is known of a set that was found in some way, with the prices it was found at."""
    state = KnapsackSet(problem)
    for candidate in path:
        state.flip(candidate)
    left = state.open & ~state.inside
    gains = left & (state.losses < -state.least) & ~state.fitting
    return Filled(
        path=tuple(path),
        change=state.change,
        used=tuple(state.amounts),
        prices=tuple(prices or (0.0,) * len(problem.resources)),
        gains=bool(gains.any()),
        all=not bool(left.any()),
    )


def _ordered(problem: Knapsack, found: KnapsackSet, prices: Sequence[float], by: KnapsackSet | None = None) -> Filled:
    """Return a set with its members in an order whose prefixes are sets to fall back on."""
    path: list[int] = []
    left, paid = found.inside.copy(), np.array(prices, dtype=np.float64)
    state = KnapsackSet(problem) if by is None else by
    while left.any():
        path.append(state.add_next(paid, left))
        left[path[-1]] = False
    highest = np.abs(state.losses) / np.maximum(np.abs(state.costs), 1e-30) * (state.costs != 0)
    steepest = highest.max(1).tolist() if highest.size else prices
    told = [min(p, s) for p, s in zip(prices, steepest, strict=True)]
    return replace(inspect(problem, path, told), change=state.change)
