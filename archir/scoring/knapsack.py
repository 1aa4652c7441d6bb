"""A knapsack whose loss is quadratic and whose costs do not add up, and a set of it that changes by flips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from archir.scoring.resources import Resource

ROUNDING = 1e-9
"""By what part of a limit a set may be above it in numbers that are rounded."""

NEAREST = 192
"""The number of candidates of which all pairs are tried as exchanges: those whose worth is nearest to their price."""


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
        inside: which candidates are its members.
        change: the predicted change of the loss.
        used: what it uses of each resource.
    """

    def __init__(self, problem: Knapsack) -> None:
        self._problem = problem
        count = len(problem.alone)
        self.inside = torch.zeros(count, dtype=torch.bool)
        self.change, self.size = 0.0, 0
        self._sign = torch.ones(count, dtype=torch.float64)
        self._marginal = problem.alone.clone()
        self._blocked = torch.zeros(count, dtype=torch.int32)
        self._resources = [r.shifted(0) for r in problem.resources]
        self._sizes = problem.sizes
        self._cross = problem.gram.clone().fill_diagonal_(0)
        self.least = 1e-12 * float(problem.alone.abs().max()) if count else 0.0

    def copy(self) -> KnapsackSet:
        """Return the same set, apart from this one."""
        found = object.__new__(KnapsackSet)
        found.__dict__.update(self.__dict__)
        for name in ("inside", "_sign", "_marginal", "_blocked"):
            setattr(found, name, getattr(self, name).clone())
        found._resources = [r.shifted(0) for r in self._resources]
        return found

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
    def losses(self) -> torch.Tensor:
        """What each flip does to the loss; `[candidates]`."""
        return self._sign * self._marginal

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
        return found & torch.where(self.inside, dropping, adding)

    def flip(self, candidate: int) -> None:
        """Add a candidate, or drop it."""
        sign = float(self._sign[candidate])
        self.change += sign * float(self._marginal[candidate])
        joint = len(self._cross)
        if candidate < joint:
            self._marginal[:joint].add_(self._cross[candidate], alpha=sign)
        self._blocked += self._problem.apart[candidate] * int(sign)
        self.inside[candidate] = sign > 0
        self._sign[candidate] = -sign
        self.size += int(sign)
        kind = int(self._problem.kinds[candidate])
        self._sizes = self._sizes + sign * self._problem.effects[kind]
        for r in self._resources:
            r.move(kind, int(sign))

    def better_than(self, other: KnapsackSet) -> bool:
        """Say whether it is nearer to the limits, or as near with less loss."""
        if self.fits != other.fits:
            return self.fits
        return self.change < other.change if self.fits else (self.over, self.change) < (other.over, other.change)

    def descend(self, prices: torch.Tensor) -> KnapsackSet:
        """Flip while that lowers the loss and the price of what is used, the most first."""
        while True:
            worth = self.losses + prices @ self.costs
            candidate = int(worth.masked_fill(~self.open, math.inf).argmin()) if len(worth) else 0
            if not len(worth) or not self.open[candidate] or not float(worth[candidate]) < -self.least:
                return self
            self.flip(candidate)

    def reach(self, prices: torch.Tensor) -> None:
        """Flip until the limits hold, the least loss for what is freed first; then use the room that is left."""
        for _ in range(4 * len(self.inside) + 4):
            found = self._next(prices, self.open)
            if found is None:
                return
            self.flip(found)

    def _next(self, prices: torch.Tensor, allowed: torch.Tensor) -> int | None:
        """Return the next flip on the way to the limits, or within them; None where there is none."""
        if not bool(allowed.any()):
            return None
        losses, costs, used = self.losses, self.costs, self.used
        if not self.fits:
            return self._freeing(losses, costs, used, allowed)
        fitting = allowed & (losses < -self.least) & ((used[:, None] + costs) <= 1 + ROUNDING).all(0)
        return _first(gain_per_price(losses, prices @ costs), fitting)

    def _freeing(
        self, losses: torch.Tensor, costs: torch.Tensor, used: torch.Tensor, allowed: torch.Tensor
    ) -> int | None:
        """Return the flip that takes the set nearer to the limits with the least loss for it."""
        over = (used - 1).clamp(min=0).sum()
        freed = over - ((used[:, None] + costs - 1).clamp(min=0)).sum(0)
        helping = allowed & (freed > ROUNDING * 1e-3)
        return _first(torch.where(losses < 0, losses * 1e12, losses / freed.clamp(min=1e-300)), helping)

    def exchange(self, prices: torch.Tensor) -> None:
        """Add, drop, and exchange pairs while that lowers the loss within the limits."""
        if not self.fits:
            return
        for _ in range(4 * len(self.inside) + 64):
            losses, costs, used, allowed = self.losses, self.costs, self.used, self.open
            fitting = allowed & ((used[:, None] + costs) <= 1 + ROUNDING).all(0)
            single = _first(losses, fitting & (losses < -self.least))
            if single is not None:
                self.flip(single)
            elif not self._exchange_pair(prices, losses, costs, used):
                return

    def _exchange_pair(
        self, prices: torch.Tensor, losses: torch.Tensor, costs: torch.Tensor, used: torch.Tensor
    ) -> bool:
        """Do the best exchange of two candidates, if there is one."""
        near = (losses + prices @ costs).argsort(stable=True)[:NEAREST]
        joint = near.clamp(max=max(len(self._cross) - 1, 0))
        both = (near < len(self._cross))[:, None] & (near < len(self._cross))[None]
        cross = self._cross[joint][:, joint] if len(self._cross) else torch.zeros(1, 1, dtype=torch.float64)
        signs = self._sign[near]
        change = losses[near][:, None] + losses[near][None] + torch.where(both, cross * signs[:, None] * signs, 0.0)
        fitting = torch.ones_like(change, dtype=torch.bool)
        kinds = self._problem.kinds[near]
        for i, r in enumerate(self._resources):
            together = costs[i][near][:, None] + costs[i][near][None]
            together = together + r.cross(kinds) * signs[:, None] * signs
            fitting &= used[i] + together <= 1 + ROUNDING
        trial = torch.where(fitting & (change < -self.least), change, math.inf).triu(1)
        trial[trial == 0] = math.inf
        order = trial.flatten().argsort(stable=True)[:16].tolist()
        for place in order:
            if math.isinf(float(trial.flatten()[place])):
                return False
            if self._try(int(near[place // len(near)]), int(near[place % len(near)])):
                return True
        return False

    def _try(self, one: int, other: int) -> bool:
        """Flip two candidates if they may be flipped in some order and the loss is then lower within the limits."""
        before = self.change
        for first, second in ((one, other), (other, one)):
            if not bool(self.open[first]):
                continue
            self.flip(first)
            if bool(self.open[second]):
                self.flip(second)
                if self.fits and self.change < before - self.least:
                    return True
                self.flip(second)
            self.flip(first)
            self.change = before
        return False

    def add_next(self, prices: torch.Tensor, of: torch.Tensor) -> int:
        """Add the next of some candidates, in an order whose prefixes are sets to fall back on; return which.

        While the set is above the limits, the least loss for what is freed comes first; within them, the most gain for
        the price among those that fit, and what frees room only where nothing else fits.
        """
        losses, costs, used = self.losses, self.costs, self.used
        found = None
        if not self.fits:
            found = self._freeing(losses, costs, used, of)
        else:
            fitting = of & ((used[:, None] + costs) <= 1 + ROUNDING).all(0)
            rank = gain_per_price(losses, prices @ costs)
            found = _first(rank, fitting & (losses < 0))
            if found is None:
                freed = -(prices @ costs)
                found = _first(losses / freed.clamp(min=1e-300), fitting & (freed > 0))
            if found is None:
                found = _first(losses, fitting)
        if found is None:
            found = _first(losses, of)
        assert found is not None
        self.flip(found)
        return found


def gain_per_price(losses: torch.Tensor, prices: torch.Tensor) -> torch.Tensor:
    """Return a rank by gain per price, lower is better: what is free or frees room first, by loss and price."""
    size = float(losses.abs().max()) + float(prices.abs().max()) + 1e-300
    return torch.where(prices > 0, losses / prices.clamp(min=1e-300) / 1e12, (losses + prices) / size - 2)


def _first(rank: torch.Tensor, among: torch.Tensor) -> int | None:
    """Return the one with the lowest rank, None if there is none to choose from."""
    if not bool(among.any()):
        return None
    return int(rank.masked_fill(~among, math.inf).argmin())
