"""The solver against the best of all sets, on small knapsacks drawn at random."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from archir.scoring.fill import Filled, fill, inspect
from archir.scoring.knapsack import Knapsack, KnapsackSet
from archir.scoring.resources import PeakResource, QuadraticResource

COUNT, DRAWN = 12, 20


@dataclass(frozen=True)
class Drawn:
    """A knapsack with the tensors it was made of: costs are `start + x·alone + ½ xᵀ between x` less the diagonal."""

    problem: Knapsack
    starts: tuple[float, ...]
    alone: tuple[Tensor, ...]
    between: tuple[Tensor, ...]


def draw(seed: int, start: float, *, interacting: bool, limits: int) -> Drawn:
    """Draw candidates of which half grow, with gains that overlap, and half shrink."""
    dice = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=dice, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=dice, dtype=torch.float64)

    moved = normal(COUNT, 6) / 2
    gram = moved @ moved.mT / 3 + torch.diag(uniform(COUNT) / 5)
    grows = uniform(COUNT) < 0.5
    first = torch.where(grows, -uniform(COUNT) - 0.2, normal(COUNT) / 10)
    apart = torch.zeros(COUNT, COUNT, dtype=torch.bool)
    for i in range(0, COUNT - 1, 5):
        apart[i, i + 1] = apart[i + 1, i] = True
    alone, between = [], []
    for _ in range(limits):
        size = uniform(COUNT) * 0.09 + 0.02
        alone.append(torch.where(grows, size, -size))
        spread = normal(COUNT, 3) / 20 * interacting
        between.append(spread @ spread.mT)
    problem = Knapsack(
        alone=first + gram.diagonal() / 2,
        gram=gram,
        kinds=torch.arange(COUNT),
        resources=tuple(QuadraticResource(start, a, b) for a, b in zip(alone, between, strict=True)),
        apart=apart,
        sizes=torch.ones(0, dtype=torch.float64),
        effects=torch.zeros(COUNT, 0, dtype=torch.float64),
        barred=torch.zeros(COUNT, dtype=torch.bool),
    )
    return Drawn(problem, (start,) * limits, tuple(alone), tuple(between))


def best(drawn: Drawn, most: int = COUNT) -> float:
    """Return the least loss of all sets within the limits, infinite if there is none."""
    problem = drawn.problem
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=COUNT)), dtype=torch.float64)
    losses = sets @ problem.alone + _pairs(sets, problem.gram)
    fit = (_pairs(sets, problem.apart.double()) == 0) & (sets.sum(1) <= most)
    for start, alone, between in zip(drawn.starts, drawn.alone, drawn.between, strict=True):
        fit &= start + sets @ alone + _pairs(sets, between) <= 1 + 1e-9
    return float(losses.where(fit, torch.inf).min())


def by_gain_per_price(drawn: Drawn) -> float:
    """Return the loss of the set that gain per price alone leads to, each limit priced alike; infinite if none fits."""
    found = KnapsackSet(drawn.problem)
    found.reach(np.ones(len(drawn.starts)))
    return found.change if found.fits else float("inf")


def _pairs(sets: Tensor, of: Tensor) -> Tensor:
    """Return the sum over all pairs of different members, each once."""
    return ((sets @ (of - of.diagonal().diag())) * sets).sum(1) / 2


def check(drawn: Drawn, found: Filled) -> None:
    """Check that what is said of a set is so."""
    problem, inside = drawn.problem, torch.zeros(1, COUNT, dtype=torch.float64)
    assert len(set(found.path)) == len(found.path)
    inside[0, list(found.path)] = 1
    assert found.change == pytest.approx(float(inside @ problem.alone + _pairs(inside, problem.gram)), abs=1e-12)
    assert float(_pairs(inside, problem.apart.double())) == 0
    for used, start, alone, between in zip(found.used, drawn.starts, drawn.alone, drawn.between, strict=True):
        assert used == pytest.approx(start + float(inside @ alone + _pairs(inside, between)), abs=1e-12)


@pytest.mark.parametrize("limits", [1, 3])
@pytest.mark.parametrize("interacting", [False, True], ids=["additive", "interacting"])
@pytest.mark.parametrize("start", [0.85, 1.0, 1.2], ids=["growing", "exchanging", "shrinking"])
def test_it_is_nearly_the_best_of_all_sets(start: float, interacting: bool, limits: int) -> None:
    """The gap is what is given away, relative to the best loss and what one candidate does; that of greed beside it."""
    gaps: list[float] = []
    greeds: list[float] = []
    for seed in range(DRAWN):
        drawn = draw(seed, start, interacting=interacting, limits=limits)
        expected, found, baseline = best(drawn), fill(drawn.problem), by_gain_per_price(drawn)
        check(drawn, found)
        assert found.fits == (expected < float("inf"))
        if found.fits:
            unit = abs(expected) + float(drawn.problem.alone.abs().mean())
            gaps.append((found.change - expected) / unit)
            greeds.append(min((baseline - expected) / unit, 2.0))
    assert min(gaps) > -1e-9
    assert sum(gaps) / len(gaps) < 0.015 and max(gaps) < 0.2
    assert sum(gaps) < 0.05 * sum(greeds)


def test_prefixes_stay_within_limits_once_they_are() -> None:
    for seed, start in itertools.product(range(DRAWN), (0.85, 1.0, 1.2)):
        drawn = draw(seed, start, interacting=True, limits=2)
        found = fill(drawn.problem)
        fit = [inspect(drawn.problem, found.path[:i]).fits for i in range(len(found.path) + 1)]
        assert fit == sorted(fit)


def test_no_more_than_so_many_are_taken() -> None:
    for seed in range(DRAWN):
        drawn = draw(seed, 0.9, interacting=False, limits=1)
        found = fill(Knapsack(**{**vars(drawn.problem), "most": 3}))
        assert len(found.path) <= 3
        assert found.change <= best(drawn, 3) + 0.3


def test_where_nothing_is_scarce_there_is_no_price_and_where_something_is_the_price_is_that_of_the_margin() -> None:
    """Of equal gains for rising costs those are taken that fit: the price lies between the last and the next."""
    costs, gains = torch.arange(1.0, 11.0, dtype=torch.float64) / 10, torch.full((10,), -1.0, dtype=torch.float64)

    def of(start: float) -> Filled:
        return fill(
            Knapsack(
                alone=gains,
                gram=torch.zeros(0, 0, dtype=torch.float64),
                kinds=torch.arange(10),
                resources=(QuadraticResource(start, costs, torch.zeros(10, 10, dtype=torch.float64)),),
                apart=torch.zeros(10, 10, dtype=torch.bool),
                sizes=torch.ones(0, dtype=torch.float64),
                effects=torch.zeros(10, 0, dtype=torch.float64),
                barred=torch.zeros(10, dtype=torch.bool),
            )
        )

    free, scarce = of(-10.0), of(0.0)
    assert len(free.path) == 10 and free.prices == (0.0,) and not free.gains and free.all
    assert set(scarce.path) == {0, 1, 2, 3} and scarce.gains
    assert 1 / 0.5 <= scarce.prices[0] <= 1 / 0.4


def peaks(alone: Sequence[Sequence[float]], alive: Sequence[float], losses: Sequence[float]) -> Filled:
    count = len(losses)
    return fill(
        Knapsack(
            alone=torch.tensor(losses, dtype=torch.float64),
            gram=torch.zeros(0, 0, dtype=torch.float64),
            kinds=torch.arange(count),
            resources=(
                PeakResource(torch.tensor(alive, dtype=torch.float64), torch.tensor(alone, dtype=torch.float64)),
            ),
            apart=torch.zeros(count, count, dtype=torch.bool),
            sizes=torch.ones(0, dtype=torch.float64),
            effects=torch.zeros(count, 0, dtype=torch.float64),
            barred=torch.zeros(count, dtype=torch.bool),
        )
    )


def test_a_peak_that_no_candidate_lowers_alone_is_lowered_by_two() -> None:
    """Two moments are above the limit, and every candidate frees one of them."""
    found = peaks([[-0.3, 0.0], [0.0, -0.3], [-0.3, 0.0]], [1.2, 1.2], [0.5, 0.1, 0.2])
    assert found.fits and set(found.path) == {1, 2} and max(found.used) <= 1
    assert not peaks([[-0.3, 0.0]], [1.2, 1.2], [0.5]).fits


def test_of_every_width_some_unit_stays() -> None:
    problem = Knapsack(
        alone=torch.tensor([-1.0, -1.0, -0.5, -0.1], dtype=torch.float64),
        gram=torch.zeros(0, 0, dtype=torch.float64),
        kinds=torch.tensor([0, 0, 0, 1]),
        resources=(),
        apart=torch.zeros(4, 4, dtype=torch.bool),
        sizes=torch.tensor([3.0, 2.0], dtype=torch.float64),
        effects=torch.tensor([[-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64),
        barred=torch.zeros(4, dtype=torch.bool),
    )
    assert set(fill(problem).path) == {0, 1, 3}


def test_a_flip_that_seems_to_pay_there_and_back_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that are judged are rounded."""
    drawn = draw(1, 0.5, interacting=False, limits=1)
    found, flips = KnapsackSet(drawn.problem), list[int]()
    flip = KnapsackSet.flip

    def watched(self: KnapsackSet, candidate: int) -> None:
        flips.append(candidate)
        flip(self, candidate)

    monkeypatch.setattr(KnapsackSet, "_lowering", lambda self, paid, among: 3)
    monkeypatch.setattr(KnapsackSet, "flip", watched)
    assert found.descend(np.ones(1)) is found
    assert COUNT < len(flips) <= 8 * COUNT and set(flips) == {3}
