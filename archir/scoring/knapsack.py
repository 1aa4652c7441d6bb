"""A knapsack whose loss is quadratic and whose costs do not add up, and a set of it that changes by flips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from archir.scoring.judging import Judging
from archir.scoring.resources import Floats, Resource
from archir.scoring.set_models import FlippingSet, QuadraticSet

ROUNDING = 1e-9
"""By what part of a limit a set may be above it in numbers that are rounded."""

NEAREST = 192
"""The number of candidates of which all pairs are tried as exchanges: those whose worth is nearest to their price."""

TRIED = 16
"""The number of exchanges, the most promising, of which the best is looked for in each step."""

FREE = 1e18
"""How much more something is worth that costs nothing."""

Flags = NDArray[np.bool_]

Rank = Callable[[Floats], Floats]
"""Ranks flips by what each does to the loss, lower is better; infinite for those that are not to be done."""


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
        self._most, self._shortlist, count = problem.most, shortlist, len(problem.alone)
        self._loss: FlippingSet = QuadraticSet(problem.alone, problem.gram) if loss is None else loss.copy()
        self._kinds, self._effects = problem.kinds.numpy(), problem.effects.numpy()
        self._apart, self._barred = problem.apart.numpy(), problem.barred.numpy()
        self.inside, self.size = np.zeros(count, dtype=np.bool_), 0
        self._blocked, self._sizes = np.zeros(count, dtype=np.int32), problem.sizes.numpy()
        self._clashes, self._reach = np.asarray(self._apart.any(1)), float(np.abs(self._effects).max(initial=0))
        self._addable = ~self._barred
        self._resources = [r.shifted(0) for r in problem.resources]
        self._costs: Floats | None = None
        self._held: int | None = None
        self._judged = torch.full((count,), -1)
        self.least = 1e-12 * float(problem.alone.abs().max()) if count else 0.0

    def copy(self) -> KnapsackSet:
        """Return the same set, apart from this one."""
        found = copy(self)
        found.inside, found._judged = self.inside.copy(), self._judged.clone()
        found._resources = [r.shifted(0) for r in self._resources]
        found._loss = self._loss.copy()
        return found

    @property
    def change(self) -> float:
        """The predicted change of the loss."""
        return self._loss.change

    @property
    def losses(self) -> Floats:
        """About what each flip does to the loss; `[candidates]`."""
        found: Floats = self._loss.flips.numpy()
        return found

    @property
    def used(self) -> Floats:
        """What it uses of each resource, 1 at the limit; `[resources]`."""
        return np.array([r.used for r in self._resources], dtype=np.float64)

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
    def costs(self) -> Floats:
        """What each flip adds to what is used of each resource; `[resources, candidates]`."""
        if self._costs is None:
            found = [np.where(self.inside, r.dropped[self._kinds], r.added[self._kinds]) for r in self._resources]
            self._costs = np.stack(found) if found else np.zeros((0, len(self._kinds)))
        return self._costs

    @property
    def open(self) -> Flags:
        """Which flips may be done; `[candidates]`."""
        found: Flags = self.inside | self._addable
        if self._most is not None and self.size >= self._most:
            found = found & self.inside
        if self._sizes.min(initial=math.inf) < 1 + self._reach:
            adding, dropping = ((self._sizes + sign * self._effects >= 1).all(1)[self._kinds] for sign in (1, -1))
            stays: Flags = np.where(self.inside, dropping, adding)
            found = found & stays
        if self._held is not None:
            found[self._held] = False
        return found

    @property
    def fitting(self) -> Flags:
        """After which flips the limits hold; `[candidates]`."""
        return np.asarray((self.used[:, None] + self.costs <= 1 + ROUNDING).all(0))

    def flip(self, candidate: int) -> None:
        """Add a candidate, or drop it."""
        sign, kind = -1 if self.inside[candidate] else 1, int(self._kinds[candidate])
        self._loss.flip(candidate)
        if self._clashes[candidate]:
            self._blocked = self._blocked + sign * self._apart[candidate]
            self._addable = (self._blocked == 0) & ~self._barred
        self.inside[candidate] = sign > 0
        self.size += sign
        self._sizes = self._sizes + sign * self._effects[kind]
        for r in self._resources:
            r.move(kind, sign)
        self._costs = None

    def better_than(self, other: KnapsackSet) -> bool:
        """Say whether it is nearer to the limits, or as near with less loss."""
        if self.fits != other.fits:
            return self.fits
        return self.change < other.change if self.fits else (self.over, self.change) < (other.over, other.change)

    def descend(self, prices: Floats) -> KnapsackSet:
        """Flip while that lowers the loss and the price of what is used, the most first.

        Judged losses are rounded, and a flip may seem to lower them there and back: so this ends in any case.
        """
        for _ in range(4 * len(self.inside) + 4):
            found = self._lowering(prices @ self.costs, self.open)
            if found is None:
                break
            self.flip(found)
        return self

    def reach(self, prices: Floats) -> None:
        """Flip until the limits hold, the least loss for what is freed first; then use the room that is left."""
        for _ in range(4 * len(self.inside) + 4):
            found = self._gaining(prices, self.open) if self.fits else self._freeing(self.open)
            if found is None:
                return
            self.flip(found)

    def exchange(self, prices: Floats, *, pairs: bool = True) -> None:
        """Add, drop, and exchange pairs while that lowers the loss within the limits."""
        if not self.fits:
            return
        nothing = np.zeros(len(self.inside))
        for _ in range(4 * len(self.inside) + 64):
            found = self._lowering(nothing, self.open & self.fitting)
            if found is not None:
                self.flip(found)
            elif not pairs or not self._exchange_pair(prices):
                return

    def force(self, candidate: int, prices: Floats) -> KnapsackSet:
        """Return a set with one flip done whatever comes of it, and then what it takes to be within the limits.

        Members that a new one does not go with are dropped.
        """
        found = self.copy()
        if not self.inside[candidate]:
            for other in np.flatnonzero(self.inside & self._apart[candidate]).tolist():
                found.flip(other)
        if not found.open[candidate]:
            return self
        found.flip(candidate)
        found._held = candidate
        found.reach(prices)
        found.exchange(prices, pairs=False)
        found._held = None
        return found

    def nearest(self, prices: Floats, count: int) -> list[int]:
        """Return the flips whose loss is least above the price of what they free, whether or not they are open."""
        rank = self.losses + prices @ self.costs
        taken = ~self._barred | self.inside
        order = np.where(taken, rank, math.inf).argsort(kind="stable")[:count]
        found: list[int] = order[taken[order]].tolist()
        return found

    def add_next(self, prices: Floats, of: Flags) -> int:
        """Add the next of some candidates, in an order whose prefixes are sets to fall back on; return which.

        While the set is above the limits, the least loss for what is freed comes first; within them, the most gain for
        the price among those that fit, and what frees room only where nothing else fits.
        """
        found = self._gaining(prices, of) if self.fits else self._freeing(of)
        if found is None and self.fits:
            fitting, freed = of & self.fitting, -(prices @ self.costs)
            found = self._first(lambda losses: losses / np.maximum(freed, 1 / FREE), fitting & (freed > 0))
            if found is None:
                found = self._first(lambda losses: losses, fitting)
        if found is None:
            found = self._first(lambda losses: losses, of)
        assert found is not None
        self.flip(found)
        return found

    def _lowering(self, paid: Floats, among: Flags) -> int | None:
        """Return the flip that lowers the loss and its price the most, none if no flip does."""
        return self._first(lambda losses: losses + paid, among, below=-self.least)

    def _gaining(self, prices: Floats, among: Flags) -> int | None:
        """Return the flip that gains the most for the price of what it uses, of those that fit."""
        paid = prices @ self.costs

        def rank(losses: Floats) -> Floats:
            found = np.where(paid > 0, losses / np.maximum(paid, 1 / FREE), (losses + paid) * FREE)
            return np.where(losses < -self.least, found, math.inf)

        return self._first(rank, among & self.fitting)

    def _freeing(self, among: Flags) -> int | None:
        """Return the flip that takes the set nearer to the limits with the least loss for it."""
        used = self.used[:, None]
        freed = (np.maximum(used - 1, 0) - np.maximum(used + self.costs - 1, 0)).sum(0)
        least = np.maximum(freed, 1 / FREE)

        def rank(losses: Floats) -> Floats:
            return np.where(losses < 0, losses * FREE, losses / least)

        return self._first(rank, among & (freed > ROUNDING / 1e3))

    def _first(self, rank: Rank, among: Flags, below: float = math.inf) -> int | None:
        """Return the flip with the lowest rank among some, none if it is not below a bound.

        See `Judging` for losses that have only estimates.
        """
        if not among.any():
            return None
        if self._loss.exact:
            ranks = np.where(among, rank(self.losses), math.inf)
            ranks = np.where(np.isnan(ranks), math.inf, ranks)
            best = int(ranks.argmin())
            return best if ranks[best] < below else None

        def by(losses: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(rank(losses.numpy()))

        judging = Judging(self._loss, torch.from_numpy(among), by, self._judged, self._shortlist)
        found = judging.best()
        return found if found is not None and judging.rank(found) < below else None

    def _exchange_pair(self, prices: Floats) -> bool:
        """Do the best exchange of two candidates, if there is one."""
        losses, costs, used = self.losses, self.costs, self.used
        near = (losses + prices @ costs).argsort(kind="stable")[:NEAREST]
        signs, kinds = np.where(self.inside[near], -1.0, 1.0), self._kinds[near]
        between = self._loss.between(torch.from_numpy(near)).numpy()
        change = losses[near][:, None] + losses[near] + between * signs[:, None] * signs
        better = np.triu(change < -self.least, 1)
        for i, r in enumerate(self._resources):
            together = costs[i][near][:, None] + costs[i][near] + r.cross(kinds) * signs[:, None] * signs
            better &= used[i] + together <= 1 + ROUNDING
        places = np.flatnonzero(better)
        places = places[change.flat[places].argsort(kind="stable")[:TRIED]]
        pairs = [(int(near[p // len(near)]), int(near[p % len(near)])) for p in places.tolist()]
        if not pairs:
            return False
        after = self._loss.judge_pairs(pairs)
        order = [i for i in after.argsort(stable=True).tolist() if float(after[i]) < self.change - self.least]
        return any(self._try(*pairs[i]) for i in order)

    def _try(self, one: int, other: int) -> bool:
        """Flip two candidates if they may be flipped in some order and are then within the limits."""
        for first, second in ((one, other), (other, one)):
            if not self.open[first]:
                continue
            found = self.copy()
            found.flip(first)
            if found.open[second]:
                found.flip(second)
                if found.fits:
                    self.__dict__.update(found.__dict__)
                    return True
        return False
