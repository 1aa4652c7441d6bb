"""A knapsack whose loss is quadratic and whose costs do not add up, and a set of it that changes by flips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch

from archir.scoring.judging import Judging, Rank
from archir.scoring.resources import Resource
from archir.scoring.set_models import FlippingSet, QuadraticSet

ROUNDING = 1e-9
"""By what part of a limit a set may be above it in numbers that are rounded."""

NEAREST = 192
"""The number of candidates of which all pairs are tried as exchanges: those whose worth is nearest to their price."""

TRIED = 16
"""The number of exchanges, the most promising, of which the best is looked for in each step."""

FREE = 1e18
"""How much more something is worth that costs nothing."""


@dataclass(frozen=True)
class Knapsack:
    """Candidates, what sets of them do to the loss, and what they cost.

    Attributes:
        alone: predicted change of the loss for each candidate alone, its price included; `[candidates]`.
        gram: what two of them do together beyond that, `[first candidates, first candidates]`; the others have no such
            terms. The diagonal counts for nothing.
        kinds: the number of each candidate's kind; all of a kind cost the same; `[candidates]`.
        resources: what is limited, each 1 at its limit, for the empty set.
        apart: which candidates do not go together; `[candidates, candidates]`.
        sizes: the sizes of the widths, of which some unit always has to stay; `[widths]`.
        effects: what a candidate of each kind adds to them; `[kinds, widths]`.
        barred: candidates that are left out; `[candidates]`.
        most: most members.
    """

    alone: torch.Tensor
    gram: torch.Tensor
    kinds: torch.Tensor
    resources: tuple[Resource, ...]
    apart: torch.Tensor = field(repr=False)
    sizes: torch.Tensor
    effects: torch.Tensor
    barred: torch.Tensor
    most: int | None = None

    def shifted(self, by: Sequence[float]) -> Knapsack:
        """Return the same with so much more used of each resource."""
        return replace(self, resources=tuple(r.shifted(b) for r, b in zip(self.resources, by, strict=True)))


class KnapsackSet:
    """A set that candidates are added to and dropped from; what each such flip would do is known at all times.

    Attributes:
        inside: which candidates are its members; `[candidates]`.
        size: their number.
        least: the least by which the loss has to fall to count.
    """

    def __init__(self, problem: Knapsack, loss: FlippingSet | None = None, shortlist: int = 1) -> None:
        """Start with the empty set.

        Args:
            problem: the knapsack.
            loss: the empty set under another model of the loss than the quadratic one.
            shortlist: the number of flips, the best by estimate, that it judges at first to find the best.
        """
        self._problem, self._shortlist, count = problem, shortlist, len(problem.alone)
        self._loss: FlippingSet = QuadraticSet(problem.alone, problem.gram) if loss is None else loss.copy()
        self.inside, self.size = torch.zeros(count, dtype=torch.bool), 0
        self._blocked, self._sizes = torch.zeros(count, dtype=torch.int32), problem.sizes
        self._resources = [r.shifted(0) for r in problem.resources]
        self._held, self._judged = torch.zeros(count, dtype=torch.bool), torch.full((count,), -1)
        self.least = 1e-12 * float(problem.alone.abs().max()) if count else 0.0

    def copy(self) -> KnapsackSet:
        """Return the same set, apart from this one."""
        found = copy(self)
        for name in ("inside", "_blocked", "_held", "_judged"):
            setattr(found, name, getattr(self, name).clone())
        found._resources = [r.shifted(0) for r in self._resources]
        found._loss = self._loss.copy()
        return found

    @property
    def change(self) -> float:
        """The predicted change of the loss."""
        return self._loss.change

    @property
    def losses(self) -> torch.Tensor:
        """About what each flip does to the loss; `[candidates]`."""
        return self._loss.flips

    @property
    def used(self) -> torch.Tensor:
        """What it uses of each resource, 1 at the limit; `[resources]`."""
        return torch.tensor([r.used for r in self._resources], dtype=torch.float64)

    @property
    def amounts(self) -> list[float]:
        """The same without what is added above a limit."""
        return [r.amount for r in self._resources]

    @property
    def over(self) -> float:
        """By how much it is above the limits, summed over them."""
        return sum(max(0.0, r.used - 1) for r in self._resources)

    @property
    def fits(self) -> bool:
        """Whether it is within the limits."""
        return all(r.used <= 1 + ROUNDING for r in self._resources)

    @property
    def costs(self) -> torch.Tensor:
        """What each flip adds to what is used of each resource; `[resources, candidates]`."""
        kinds = self._problem.kinds
        found = [torch.where(self.inside, r.dropped[kinds], r.added[kinds]) for r in self._resources]
        return torch.stack(found) if found else torch.zeros(0, len(kinds), dtype=torch.float64)

    @property
    def open(self) -> torch.Tensor:
        """Which flips may be done; `[candidates]`."""
        kinds = self._problem.kinds
        found = self.inside | (self._blocked == 0) & ~self._problem.barred
        if self._problem.most is not None and self.size >= self._problem.most:
            found &= self.inside
        adding, dropping = ((self._sizes + sign * self._problem.effects >= 1).all(1)[kinds] for sign in (1, -1))
        return found & torch.where(self.inside, dropping, adding) & ~self._held

    @property
    def fitting(self) -> torch.Tensor:
        """After which flips the limits hold; `[candidates]`."""
        return ((self.used[:, None] + self.costs) <= 1 + ROUNDING).all(0)

    def flip(self, candidate: int) -> None:
        """Add a candidate, or drop it."""
        sign, kind = -1 if bool(self.inside[candidate]) else 1, int(self._problem.kinds[candidate])
        self._loss.flip(candidate)
        self._blocked += self._problem.apart[candidate] * sign
        self.inside[candidate] = sign > 0
        self.size += sign
        self._sizes = self._sizes + sign * self._problem.effects[kind]
        for r in self._resources:
            r.move(kind, sign)

    def better_than(self, other: KnapsackSet) -> bool:
        """Say whether it is nearer to the limits, or as near with less loss."""
        if self.fits != other.fits:
            return self.fits
        return self.change < other.change if self.fits else (self.over, self.change) < (other.over, other.change)

    def descend(self, prices: torch.Tensor) -> KnapsackSet:
        """Flip while that lowers the loss and the price of what is used, the most first."""
        while (found := self._lowering(prices @ self.costs, self.open)) is not None:
            self.flip(found)
        return self

    def reach(self, prices: torch.Tensor) -> None:
        """Flip until the limits hold, the least loss for what is freed first; then use the room that is left."""
        for _ in range(4 * len(self.inside) + 4):
            found = self._gaining(prices, self.open) if self.fits else self._freeing(self.open)
            if found is None:
                return
            self.flip(found)

    def exchange(self, prices: torch.Tensor, *, pairs: bool = True) -> None:
        """Add, drop, and exchange pairs while that lowers the loss within the limits."""
        if not self.fits:
            return
        for _ in range(4 * len(self.inside) + 64):
            found = self._lowering(torch.zeros_like(self.losses), self.open & self.fitting)
            if found is not None:
                self.flip(found)
            elif not pairs or not self._exchange_pair(prices):
                return

    def force(self, candidate: int, prices: torch.Tensor) -> KnapsackSet:
        """Return a set with one flip done whatever comes of it, and then what it takes to be within the limits.

        Members that a new one does not go with are dropped.
        """
        found = self.copy()
        if not bool(self.inside[candidate]):
            for other in (self.inside & self._problem.apart[candidate]).nonzero().flatten().tolist():
                found.flip(other)
        if not bool(found.open[candidate]):
            return self
        found.flip(candidate)
        found._held[candidate] = True
        found.reach(prices)
        found.exchange(prices, pairs=False)
        found._held[candidate] = False
        return found

    def nearest(self, prices: torch.Tensor, count: int) -> list[int]:
        """Return the flips whose loss is least above the price of what they free, whether or not they are open."""
        rank = self.losses + prices @ self.costs
        order = rank.masked_fill(self._problem.barred & ~self.inside, math.inf).argsort(stable=True)[:count]
        found: list[int] = order[(~self._problem.barred | self.inside)[order]].tolist()
        return found

    def add_next(self, prices: torch.Tensor, of: torch.Tensor) -> int:
        """Add the next of some candidates, in an order whose prefixes are sets to fall back on; return which.

        While the set is above the limits, the least loss for what is freed comes first; within them, the most gain for
        the price among those that fit, and what frees room only where nothing else fits.
        """
        found = self._gaining(prices, of) if self.fits else self._freeing(of)
        if found is None and self.fits:
            fitting, freed = of & self.fitting, -(prices @ self.costs)
            found = self._first(lambda losses: losses / freed.clamp(min=1 / FREE), fitting & (freed > 0))
            if found is None:
                found = self._first(lambda losses: losses, fitting)
        if found is None:
            found = self._first(lambda losses: losses, of)
        assert found is not None
        self.flip(found)
        return found

    def _lowering(self, paid: torch.Tensor, among: torch.Tensor) -> int | None:
        """Return the flip that lowers the loss and its price the most, none if no flip does."""
        return self._first(lambda losses: losses + paid, among, below=-self.least)

    def _gaining(self, prices: torch.Tensor, among: torch.Tensor) -> int | None:
        """Return the flip that gains the most for the price of what it uses, of those that fit."""
        paid = prices @ self.costs

        def rank(losses: torch.Tensor) -> torch.Tensor:
            found = torch.where(paid > 0, losses / paid.clamp(min=1 / FREE), (losses + paid) * FREE)
            return found.masked_fill(~(losses < -self.least), math.inf)

        return self._first(rank, among & self.fitting)

    def _freeing(self, among: torch.Tensor) -> int | None:
        """Return the flip that takes the set nearer to the limits with the least loss for it."""
        used = self.used[:, None]
        freed = ((used - 1).clamp(min=0) - (used + self.costs - 1).clamp(min=0)).sum(0)
        least = freed.clamp(min=1 / FREE)

        def rank(losses: torch.Tensor) -> torch.Tensor:
            return torch.where(losses < 0, losses * FREE, losses / least)

        return self._first(rank, among & (freed > ROUNDING / 1e3))

    def _first(self, rank: Rank, among: torch.Tensor, below: float = math.inf) -> int | None:
        """Return the flip with the lowest rank among some, none if it is not below a bound.

        See `Judging` for losses that have only estimates.
        """
        if not bool(among.any()):
            return None
        if self._loss.exact:
            ranks = rank(self._loss.flips).nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(~among, math.inf)
            best = int(ranks.argmin())
            return best if float(ranks[best]) < below else None
        judging = Judging(self._loss, among, rank, self._judged, self._shortlist)
        found = judging.best()
        return found if found is not None and judging.rank(found) < below else None

    def _exchange_pair(self, prices: torch.Tensor) -> bool:
        """Do the best exchange of two candidates, if there is one."""
        losses, costs, used = self.losses, self.costs, self.used
        near = (losses + prices @ costs).argsort(stable=True)[:NEAREST]
        signs = torch.where(self.inside[near], -1.0, 1.0).double()
        change = losses[near][:, None] + losses[near] + self._loss.between(near) * signs[:, None] * signs
        fitting, kinds = torch.ones_like(change, dtype=torch.bool).triu(1), self._problem.kinds[near]
        for i, r in enumerate(self._resources):
            together = costs[i][near][:, None] + costs[i][near] + r.cross(kinds) * signs[:, None] * signs
            fitting &= used[i] + together <= 1 + ROUNDING
        rank = change.masked_fill(~(fitting & (change < -self.least)), math.inf).flatten()
        places = rank.argsort(stable=True)[:TRIED]
        places = places[rank[places].isfinite()]
        pairs = [(int(near[p // len(near)]), int(near[p % len(near)])) for p in places.tolist()]
        if not pairs:
            return False
        after = self._loss.judge_pairs(pairs)
        order = [i for i in after.argsort(stable=True).tolist() if float(after[i]) < self.change - self.least]
        return any(self._try(*pairs[i]) for i in order)

    def _try(self, one: int, other: int) -> bool:
        """Flip two candidates if they may be flipped in some order and are then within the limits."""
        for first, second in ((one, other), (other, one)):
            if not bool(self.open[first]):
                continue
            found = self.copy()
            found.flip(first)
            if bool(found.open[second]):
                found.flip(second)
                if found.fits:
                    self.__dict__.update(found.__dict__)
                    return True
        return False
