"""Spare room: what the best set leaves of a budget, taken by candidates that are predicted to gain nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from archir.cost import Cost
from archir.scoring.budget import Budget
from archir.scoring.combination import Combination
from archir.scoring.selection import Choice, Ended, Pool

NEARLY = 0.98
"""The part of a budget that is as good as all of it, where what would still lower the loss does not fit."""


def take_spare_room(pool: Pool, budget: Budget, found: Choice, *, k: int | None = None) -> Choice:
    """Return a choice with more candidates in the room that is left, where nothing that fits lowers the loss.

    The same is done where what would lower it does not fit and more than 2 % of the budget are left. What is added has
    θ, and costs something: at θ = 0 it changes nothing, and a set that learns its θ together takes it there where it
    would do harm. Those come first that raise the loss of the quadratic model the least,
    `a_c + G_cc/2 + Σ_s G_cs` over the members s of the choice, for what they take of the budget.

    Args:
        pool: what the choice was made from.
        budget: the limits.
        found: the choice.
        k: most members, those of the choice included.

    Source: ours.
    """
    left = found.ended is Ended.LIMIT and budget.share(found.cost) < NEARLY
    if not (left or found.ended is Ended.GAINLESS) or pool.model is None or not budget.scarce:
        return found
    alone, gram = pool.model.quadratic
    rises = alone + gram[:, list(found.path)].sum(1)
    shares = torch.tensor([_share(budget, c.cost) for c in pool.candidates[: len(alone)]], dtype=torch.float64)
    learns = torch.tensor([bool(c.family.perturbation.theta) for c in pool.candidates[: len(alone)]])
    usable = learns & (shares > 0)
    usable[list(found.path)] = False
    order = (rises / shares.clamp(min=1e-30)).argsort(stable=True)
    path, costs = list[int](), found.cost
    combination = Combination(pool.graph).plus(*(pool.candidates[c] for c in found.path))
    assert combination is not None, "it was applied before"
    for number in order[usable[order]].tolist():
        if k is not None and len(found.path) + len(path) >= k:
            break
        more = combination.plus(pool.candidates[number])
        if more is not None and budget.allows(price := more.cost()):
            combination, costs = more, price
            path.append(number)
    if not path:
        return found
    every = (*found.path, *path)
    return replace(
        found, path=every, predicted=pool.model.predict(every), cost=costs, ended=Ended.FILLED, spare=len(path)
    )


def _share(budget: Budget, change: Cost) -> float:
    """Return the largest part of a limit that a change takes; below zero where it frees some of all of them."""
    return max(float(getattr(change, name)) / max(limit, 1.0) for name, limit in budget.scarce.items())
