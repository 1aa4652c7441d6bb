"""Which change of a set is the best, where estimates may be wrong: a few are judged, and all that might be better."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from archir.scoring.set_models import GrowingSet

TURN = 4
"""For so many candidates that are judged because they look best, one is judged that was not for longest."""

SAFETY = 3.0
"""How much further off the estimates of the others may be than those of the ones that are judged in turn."""

Rank = Callable[[torch.Tensor], torch.Tensor]
"""Ranks candidates by what each does to the loss, lower is better; infinite for those that are not to be taken."""


class Judging:
    """The candidates of one step, judged as far as need be.

    Those with the lowest rank by estimate are judged, and a few that were not for longest. These tell by how much
    estimates are too high, and all that might then be the best are judged, too.

    Source: ours.
    """

    def __init__(
        self, growing: GrowingSet, open_: torch.Tensor, rank: Rank, judged: torch.Tensor, shortlist: int
    ) -> None:
        """Judge the most promising.

        Args:
            growing: the set.
            open_: which candidates there are to choose from; `[candidates]`.
            rank: what they are ranked by.
            judged: the step each was judged in last, -1 if never; this one is written into it. `[candidates]`.
            shortlist: number of candidates that are judged at first.
        """
        self._growing, self._waiting, self._rank, self._judged = growing, open_.clone(), rank, judged
        self._number = int(judged.max()) + 1 if len(judged) else 0
        self._before, self._estimates, self._doubts = growing.change, growing.estimates, growing.doubts
        self._wrong = self._doubted = 0.0
        self._after = torch.full_like(self._estimates, math.inf)
        best = self._first(rank(self._estimates - self._before), shortlist)
        self._waiting[best] = False
        in_turn = self._first(judged.double(), -(-shortlist // TURN))
        self._judge([*best, *in_turn], told_by=in_turn)

    def best(self) -> int | None:
        """Return the candidate with the lowest rank, None if no rank is finite."""
        while True:
            ranks = self._rank(self._after - self._before).nan_to_num(nan=math.inf, posinf=math.inf)
            found = int(ranks.argmin()) if len(ranks) else 0
            lowest = float(ranks[found]) if len(ranks) else math.inf
            wrong = SAFETY * self._wrong / self._doubted if self._doubted else 0.0
            hope = self._rank(self._estimates - wrong * self._doubts - self._before)
            more = (self._waiting & (hope < lowest)).nonzero().flatten().tolist()
            if not more:
                return found if math.isfinite(lowest) else None
            self._judge(more, told_by=more)

    def rank(self, candidate: int) -> float:
        """Return the rank of a candidate that was judged."""
        return float(self._rank(self._after - self._before)[candidate])

    def after(self, candidate: int) -> float:
        """Return what the change of the loss would be with a candidate that was judged."""
        return float(self._after[candidate])

    def drop(self, candidate: int) -> None:
        """Leave a candidate out."""
        self._after[candidate] = math.inf

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
        self._after[few] = torch.where(found.isnan(), torch.inf, found)
        self._waiting[few] = False
        self._judged[few] = self._number
        errors = (self._estimates[told_by] - self._after[told_by]).clamp(min=0)
        known = errors.isfinite()
        self._wrong += float(errors[known].sum())
        self._doubted += float(self._doubts[told_by][known].sum())
