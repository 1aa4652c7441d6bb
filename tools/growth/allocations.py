"""Ways to allocate a budget to the widths of a network: all alike, or drawn at random at the same cost."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache

from archir.scoring.budget import Budget
from tools.growth.tasks import REACH, Sizes, Task

LEAST = 0.95
"""The least part of the FLOPs of the budget that a random allocation spends."""

SPREAD = 3.0
"""How many times wider or narrower than in the uniform network a width is drawn, at most, before all are scaled."""

DRAWS = 10_000
"""Draws after which no random allocation is there to be found."""


@lru_cache(maxsize=8)
def uniform(task: Task) -> Sizes:
    """Return the sizes when all widths but those held are those of the seed times the largest factor there is room for.

    Width by width, parameters that are left over are then used up as far as they go.
    """
    varied = {name: float(size) for name, size in task.seed_sizes.items() if name not in task.held}
    return _largest(task, varied, {name: task.seed_sizes[name] for name in task.held}, Budget(task.parameters))


def budget(task: Task) -> Budget:
    """Return what a network may cost: the parameters and the FLOPs of the uniform network."""
    cost = task.cost(uniform(task))
    return Budget(cost.parameters, cost.flops)


@lru_cache(maxsize=1024)
def drawn(task: Task, number: int) -> Sizes:
    """Return a random allocation, the same for the same number.

    Factors of the sizes of the uniform network are drawn log-uniformly between `1 / SPREAD` and `SPREAD`, and scaled
    together to the largest network within both limits; one that spends less than `LEAST` of the FLOPs is drawn anew.

    Raises:
        ValueError: none was found in `DRAWS` draws.
    """
    generator, limits, equal = random.Random(number), budget(task), uniform(task)
    assert limits.flops is not None
    for _ in range(DRAWS):
        wanted = {name: size * SPREAD ** generator.uniform(-1, 1) for name, size in equal.items()}
        sizes = _largest(task, wanted, {}, limits)
        if task.cost(sizes).flops >= LEAST * limits.flops:
            return sizes
    raise ValueError(f"no allocation on {task.name} spends {LEAST:.0%} of the FLOPs within the parameters")


def _largest(task: Task, wanted: Mapping[str, float], fixed: Sizes, limits: Budget) -> Sizes:
    """Return sizes in some proportion, scaled to the largest network within the limits, and others as they are."""
    most = {name: REACH * size for name, size in task.seed_sizes.items()}

    def sizes(factor: float) -> dict[str, int]:
        found = {name: min(max(int(size * factor), 1), most[name]) for name, size in wanted.items()}
        return {name: found.get(name, fixed.get(name, 0)) for name in most}

    low, high = 0.0, 1.0
    while limits.allows(task.cost(sizes(high))) and high < REACH:
        low, high = high, 2 * high
    while high - low > 1 / max(wanted.values()) / 8:
        middle = (low + high) / 2
        low, high = (middle, high) if limits.allows(task.cost(sizes(middle))) else (low, middle)
    result = sizes(low)
    for name in wanted:
        more = {**result, name: min(result[name] + 1, most[name])}
        result = more if limits.allows(task.cost(more)) else result
    return result
