"""Greedy selection on small models of the loss written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from archir.scoring.select import select


class Quadratic:
    """A set under `Σ a + ½ Σ G`, whose estimates are too high by an error of each candidate until it is judged."""

    def __init__(
        self,
        first: Sequence[float],
        gram: Sequence[Sequence[float]],
        error: Sequence[float] = (),
        doubts: Sequence[float] = (),
    ) -> None:
        self.a, self.g = (torch.tensor(t, dtype=torch.float64) for t in (first, gram))
        zeros = [0.0] * len(first)
        self.error, self.doubts = (torch.tensor(t or zeros, dtype=torch.float64) for t in (error, doubts))
        self.chosen: list[int] = []
        self.judged: list[set[int]] = []
        self.change = 0.0

    @property
    def estimates(self) -> Tensor:
        return self.after(range(len(self.a))) + self.error

    def after(self, few: Sequence[int]) -> Tensor:
        def value(subset: list[int]) -> Tensor:
            return self.a[subset].sum() + self.g[subset][:, subset].sum() / 2

        return torch.stack([value([*self.chosen, c]) for c in few])

    def judge(self, few: Sequence[int]) -> Tensor:
        self.judged.append(set(few))
        self.error[list(few)] = 0
        return self.after(few)

    def add(self, candidate: int, change: float) -> None:
        self.chosen.append(candidate)
        self.change = change


def never(chosen: Sequence[int]) -> bool:
    return False


def path(
    growing: Quadratic,
    prices: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    clash: Callable[[Sequence[int]], bool] = never,
    fits: Callable[[Sequence[int]], bool] = lambda chosen: True,
    frees: Sequence[bool] = (False, False, False),
    shortlist: int = 2,
    k: int | None = None,
) -> list[int]:
    """Return what is chosen; combinations are the numbers in them."""
    start: tuple[int, ...] = ()
    return select(
        growing,
        torch.tensor(prices, dtype=torch.float64),
        combination=start,
        plus=lambda before, c: None if clash([*before, c]) else (*before, c),
        fits=fits,
        frees=frees,
        shortlist=shortlist,
        k=k,
    )


DIAGONAL = [[0.2, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.2]]


def test_the_best_given_those_before_is_added_until_nothing_helps() -> None:
    overlapping = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    growing = Quadratic([-1.0, -0.9, -0.6], overlapping)
    assert path(growing) == [0, 2]
    assert round(growing.change, 6) == -0.6


def test_prices_count_and_k_ends_it() -> None:
    assert path(Quadratic([-1.0, -0.9, -0.6], DIAGONAL), [0.95, 0.0, 0.0]) == [1, 2]
    assert len(path(Quadratic([-1.0, -0.9, -0.6], DIAGONAL), k=2)) == 2
    assert path(Quadratic([-1.0, -0.9, -0.6], DIAGONAL), k=0) == []


def test_conflicts_are_respected() -> None:
    assert path(Quadratic([-1.0, -0.9, -0.6], DIAGONAL), clash=lambda chosen: {0, 1} <= set(chosen)) == [0, 2]


def test_the_budget_is_asked_sparingly_and_again_when_room_was_freed() -> None:
    sizes = [3, 2, -2]
    asked: list[tuple[int, ...]] = []

    def fits(chosen: Sequence[int]) -> bool:
        asked.append(tuple(chosen))
        return sum(sizes[c] for c in chosen) <= 2

    growing = Quadratic([-1.0, -0.9, -0.6], DIAGONAL)
    assert path(growing, fits=fits, frees=[s < 0 for s in sizes]) == [1, 2]
    assert asked == [(0,), (1,), (1, 2), (1, 2, 0)]


def test_ties_go_to_the_first() -> None:
    assert path(Quadratic([-0.5, -0.5, -0.5], DIAGONAL)) == [0, 1, 2]


FOUR = (torch.eye(4) / 5).tolist()


def test_no_more_is_judged_than_the_best_and_those_whose_turn_it_is() -> None:
    growing = Quadratic([-0.3, -0.9, -0.6, -0.2], FOUR, doubts=[1.0] * 4)
    assert path(growing, [0.0] * 4, frees=[False] * 4, shortlist=1) == [1, 2, 0, 3]
    assert growing.judged == [{1, 0}, {2, 3}, {0, 3}, {3}]


def test_all_that_may_be_the_best_are_judged() -> None:
    """What was judged in turn is better than its estimate; so may the last be, as far as it is in doubt."""
    for doubt, judged, chosen in ((1.0, [{0, 1}, {2}, {3}], 2), (0.7, [{0, 1}, {2}], 2), (0.5, [{0, 1}], 1)):
        growing = Quadratic([-0.4, -0.5, -0.9, 0.0], FOUR, [0.1, 0.0, 0.6, 0.0], [1.0, 0.0, doubt, doubt])
        assert path(growing, [0.0] * 4, frees=[False] * 4, shortlist=1, k=1) == [chosen]
        assert growing.judged == judged


def test_before_it_ends_all_that_may_help_have_been_judged() -> None:
    growing = Quadratic([0.5, 0.3, -0.2, 0.4], FOUR, [-0.9, 0.1, 0.4, 0.5], [0.0, 1.0, 1.0, 0.1])
    assert path(growing, [0.0] * 4, frees=[False] * 4, shortlist=1) == [2]
    assert growing.judged[0] == {0, 1} and growing.judged[1] == {2}


def test_what_is_not_a_number_is_never_chosen() -> None:
    growing = Quadratic([float("nan"), -0.9, -0.6], DIAGONAL)
    assert path(growing, shortlist=3) == [1, 2]
