"""Greedy selection of a set of candidates on a model of the loss, prices included, budgets hard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from archir.scoring.judging import Judging
from archir.scoring.set_models import GrowingSet

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
        step = Judging(growing, ~(closed | refused), lambda losses: losses + prices, judged, shortlist)
        while (found := step.best()) is not None and step.rank(found) < 0:
            more = plus(combination, found)
            if more is None:
                closed[found] = True
            elif not fits([*path, found]):
                refused[found] = True
            else:
                break
            step.drop(found)
        else:
            break
        combination = more
        growing.add(found, step.after(found))
        path.append(found)
        closed[found] = True
        if frees[found]:
            refused.zero_()
    return path
