"""Greedy selection on small models of the loss written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from archir.score.select import select


def quadratic(first: Sequence[float], gram: Sequence[Sequence[float]]) -> Callable[[Sequence[int]], Tensor]:
    """Return, for a set, the joint prediction with each candidate added."""
    a, g = torch.tensor(first), torch.tensor(gram)

    def after(chosen: Sequence[int]) -> Tensor:
        def value(subset: list[int]) -> Tensor:
            return a[subset].sum() + g[subset][:, subset].sum() / 2

        return torch.stack([value([*chosen, c]) for c in range(len(a))])

    return after


def always(chosen: Sequence[int]) -> bool:
    return True


DIAGONAL = [[0.2, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.2]]


def test_the_best_given_those_before_is_added_until_nothing_helps() -> None:
    overlapping = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    after = quadratic([-1.0, -0.9, -0.6], overlapping)
    path = select(after, [0.0] * 3, compatible=always, fits=always, frees=[False] * 3)
    assert [c.candidate for c in path] == [0, 2]
    assert [round(c.predicted, 6) for c in path] == [-0.5, -0.6]


def test_prices_count_and_k_ends_it() -> None:
    after = quadratic([-1.0, -0.9, -0.6], DIAGONAL)
    chosen = [c.candidate for c in select(after, [0.95, 0.0, 0.0], compatible=always, fits=always, frees=[False] * 3)]
    assert chosen == [1, 2]
    assert len(select(after, [0.0] * 3, compatible=always, fits=always, frees=[False] * 3, k=2)) == 2
    assert select(after, [0.0] * 3, compatible=always, fits=always, frees=[False] * 3, k=0) == []


def test_conflicts_are_respected() -> None:
    after = quadratic([-1.0, -0.9, -0.6], DIAGONAL)

    def compatible(chosen: Sequence[int]) -> bool:
        return not {0, 1} <= set(chosen)

    path = select(after, [0.0] * 3, compatible=compatible, fits=always, frees=[False] * 3)
    assert [c.candidate for c in path] == [0, 2]


def test_the_budget_is_asked_sparingly_and_again_when_room_was_freed() -> None:
    sizes = [3, 2, -2]
    asked: list[tuple[int, ...]] = []

    def fits(chosen: Sequence[int]) -> bool:
        asked.append(tuple(chosen))
        return sum(sizes[c] for c in chosen) <= 2

    after = quadratic([-1.0, -0.9, -0.6], DIAGONAL)
    path = select(after, [0.0] * 3, compatible=always, fits=fits, frees=[s < 0 for s in sizes])
    assert [c.candidate for c in path] == [1, 2]
    assert asked == [(0,), (1,), (1, 2), (1, 2, 0)]


def test_ties_go_to_the_first() -> None:
    after = quadratic([-0.5, -0.5, -0.5], DIAGONAL)
    path = select(after, [0.0] * 3, compatible=always, fits=always, frees=[False] * 3)
    assert [c.candidate for c in path] == [0, 1, 2]
