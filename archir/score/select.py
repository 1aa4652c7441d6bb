"""Greedy selection of a set of candidates on a model of the loss, prices included, budgets hard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Choice:
    """One step of a greedy selection.

    Attributes:
        candidate: what was added.
        predicted: predicted change of the loss of the set so far, in nats for likelihoods.
    """

    candidate: int
    predicted: float


def select(
    after: Callable[[Sequence[int]], torch.Tensor],
    prices: Sequence[float],
    *,
    compatible: Callable[[Sequence[int]], bool],
    fits: Callable[[Sequence[int]], bool],
    frees: Sequence[bool],
    k: int | None = None,
) -> list[Choice]:
    """Add candidates one by one, each time the one with the lowest objective given those already chosen.

    The objective is the predicted change of the loss and the price. It ends when nothing lowers it, when nothing
    else fits, or at `k` candidates.

    Args:
        after: gives, for a set, the predicted change of the loss with each candidate added; `[candidates]`.
        prices: the price of each candidate alone, in nats.
        compatible: says whether a set can be applied together; a set that holds one that cannot cannot either.
        fits: says whether a set is within the budget; asked only about the best candidate of a step, and not again
            about one that was refused unless something that frees room has been added since.
        frees: which candidates free room in the budget.
        k: most candidates.

    Returns:
        The path: the prefixes of it are the smaller sets to fall back on.

    Source: ours.
    """
    path: list[Choice] = []
    chosen: list[int] = []
    open_ = set(range(len(prices)))
    refused: set[int] = set()
    current = 0.0
    while open_ and (k is None or len(chosen) < k):
        predicted = after(chosen)
        gains = {c: float(predicted[c]) - current + prices[c] for c in sorted(open_ - refused)}
        found: int | None = None
        for c in sorted(gains, key=lambda c: (gains[c], c)):
            if not gains[c] < 0:
                break
            if not compatible([*chosen, c]):
                open_.discard(c)
            elif not fits([*chosen, c]):
                refused.add(c)
            else:
                found = c
                break
        if found is None:
            break
        chosen.append(found)
        open_.discard(found)
        current = float(predicted[found])
        path.append(Choice(found, current))
        if frees[found]:
            refused.clear()
    return path
