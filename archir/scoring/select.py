"""Greedy selection of a set of candidates on a model of the loss, prices included, budgets hard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from archir.scoring.set_models import GrowingSet

TURN = 4
"""For so many candidates that are judged because they look best, one is judged that was not for longest."""

SAFETY = 3.0
"""How much further off the estimates of the others may be than those of the ones that are judged in turn."""

Combined = TypeVar("Combined")
"""Candidates that can be applied together."""


def select(
    growing: GrowingSet,
    prices: torch.Tensor,
    *,
    combination: Combined,
    plus: Callable[[Combined, int], Combined | None],
    fits: Callable[[Sequence[int]], bool],
    frees: Sequence[bool],
    shortlist: int,
    k: int | None = None,
) -> list[int]:
    """Add candidates one by one, each time the one with the lowest objective given those already chosen.

    The objective is the predicted change of the loss and the price. It ends when nothing lowers it, when nothing
    else fits, or at `k` candidates. In each step those with the lowest estimates are judged, and a few that were not
    for longest. These tell by how much estimates are too high, and all that might then be the best are judged, too.

    Args:
        growing: the empty set; the chosen candidates are added to it.
        prices: the price of each candidate alone, in nats; `[candidates]`.
        combination: the empty set, as something that can be applied.
        plus: adds a candidate to it, None if it does not go with those before it; it does not go with more either.
        fits: says whether a set is within the budget; asked only about the best candidate of a step, and not again
            about one that was refused unless something that frees room has been added since.
        frees: which candidates free room in the budget.
        shortlist: number of candidates that are judged at first.
        k: most candidates.

    Returns:
        The path: the prefixes of it are the smaller sets to fall back on.

    Source: ours.
    """
    path: list[int] = []
    judged = torch.full((len(prices),), -1)  # the step each candidate was judged in last
    closed, refused = (torch.zeros(len(prices), dtype=torch.bool) for _ in range(2))
    while k is None or len(path) < k:
        step = _Step(growing, prices, ~(closed | refused), judged, shortlist)
        while (found := step.best()) is not None:
            more = plus(combination, found)
            if more is None:
                closed[found] = True
            elif not fits([*path, found]):
                refused[found] = True
            else:
                break
            step.drop(found)
        if found is None or more is None:
            break
        combination = more
        growing.add(found, step.changes[found])
        path.append(found)
        closed[found] = True
        if frees[found]:
            refused.zero_()
    return path


class _Step:
    """The candidates of one step, judged as far as need be.

    Attributes:
        changes: the predicted change of the loss with each of those that were judged and not dropped.
    """

    def __init__(
        self, growing: GrowingSet, prices: torch.Tensor, open_: torch.Tensor, judged: torch.Tensor, shortlist: int
    ) -> None:
        self._growing, self._prices, self._waiting, self._judged = growing, prices, open_, judged
        self._number = int(judged.max()) + 1 if len(judged) else 0
        self._estimates, self._doubts = growing.estimates, growing.doubts
        self._wrong = self._doubted = 0.0
        self.changes: dict[int, float] = {}
        best = self._first(self._estimates + prices, shortlist)
        self._waiting[best] = False
        in_turn = self._first(judged.double(), -(-shortlist // TURN))
        self._judge([*best, *in_turn], told_by=in_turn)

    def best(self) -> int | None:
        """Return the candidate with the lowest objective if it is below zero."""
        while True:
            change = self._growing.change
            gains = ((after - change + float(self._prices[c]), c) for c, after in self.changes.items())
            gain, found = min(gains, default=(math.inf, None))
            wrong = SAFETY * self._wrong / self._doubted if self._doubted else 0.0
            hope = self._estimates - wrong * self._doubts + self._prices - change
            more = (self._waiting & (hope < gain)).nonzero().flatten().tolist()
            if not more:
                return found if gain < 0 else None
            self._judge(more, told_by=more)

    def drop(self, candidate: int) -> None:
        """Leave a candidate out."""
        del self.changes[candidate]

    def _first(self, order: torch.Tensor, count: int) -> list[int]:
        """Return so many of those who wait that come first in an order."""
        waiting = self._waiting.nonzero().flatten()
        found: list[int] = waiting[order[waiting].argsort(stable=True)[:count]].tolist()
        return found

    def _judge(self, few: list[int], *, told_by: list[int]) -> None:
        """Judge some candidates; those that were not judged lately tell how wrong estimates are."""
        if not few:
            return
        found = self._growing.judge(few)
        found = torch.where(found.isnan(), torch.inf, found)
        self._waiting[few] = False
        self._judged[few] = self._number
        self.changes |= zip(few, found.tolist(), strict=True)
        after = torch.tensor([self.changes[c] for c in told_by], dtype=torch.float64)
        errors = (self._estimates[told_by] - after).clamp(min=0)
        known = errors.isfinite()
        self._wrong += float(errors[known].sum())
        self._doubted += float(self._doubts[told_by][known].sum())
