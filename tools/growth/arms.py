"""Arms: what is done with a budget, each a function of task, seed and learning rate.

An arm that grows is one more entry of `ARMS`; it counts all its FLOPs, and gets no test data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tools.growth.allocations import drawn, uniform
from tools.growth.tasks import Sizes, Task
from tools.growth.training import Outcome, train_static

Arm = Callable[[Task, int, float], Outcome]
"""Trains a network within the budget of a task, given a seed and a learning rate."""


def static(allocation: Callable[[Task], Sizes]) -> Arm:
    """Return the arm that trains a network of some sizes from the start."""

    def arm(task: Task, seed: int, rate: float) -> Outcome:
        return train_static(task, task.network(allocation(task), seed), seed, rate)

    return arm


ARMS: Mapping[str, Arm] = {
    "seed": static(lambda task: task.seed_sizes),
    "uniform": static(uniform),
}
"""The arms that have a name. `random-7` is besides these the network of the seventh random allocation."""


def find_arm(name: str) -> Arm:
    """Return the arm of a name.

    Raises:
        ValueError: there is none.
    """
    if name in ARMS:
        return ARMS[name]
    number = re.fullmatch(r"random-(\d+)", name)
    if number is None:
        raise ValueError(f"there is no arm {name!r}, but {', '.join(ARMS)} and random-0, random-1, ...")
    return static(lambda task: drawn(task, int(number[1])))
