"""Arms: what is done with a budget, each a function of task, seed and learning rate.

An arm that grows is one more entry of `ARMS`; it counts all its FLOPs, and gets no test data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from archir.growing.grow import grow_graph
from archir.growing.options import EXPANSION
from archir.kinds import morphisms
from tools.growth.allocations import budget, drawn, uniform
from tools.growth.rivals import contracted, searched
from tools.growth.tasks import Sizes, Task
from tools.growth.training import Outcome, train_static
from tools.rival_pruning import IMPORTANCES

Arm = Callable[[Task, int, float], Outcome]
"""Trains a network within the budget of a task, given a seed and a learning rate."""


REMOVING = ("random", "uniform", "magnitude", "taylor")
"""Rules by which units can be removed otherwise."""

ADDING = ("random", "net2net", "gradmax", "first-order", "additive")
"""Rules by which units can be added from the seed on."""


def static(allocation: Callable[[Task], Sizes]) -> Arm:
    """Return the arm that trains a network of some sizes from the start."""

    def arm(task: Task, seed: int, rate: float) -> Outcome:
        return train_static(task, task.network(allocation(task), seed), seed, rate)

    return arm


def longer(factor: float) -> Arm:
    """Return the arm that trains the uniform network for so many times the steps."""

    def arm(task: Task, seed: int, rate: float) -> Outcome:
        lasting = task.lasting(round(factor * task.options.steps))
        return train_static(lasting, task.network(uniform(task), seed), seed, rate)

    return arm


def grown(**changes: Any) -> Arm:
    """Return the arm that grows from the seed within both limits, some options other than the default ones."""

    def arm(task: Task, seed: int, rate: float) -> Outcome:
        given = {name: value for name, value in changes.items() if name != "kinds"}
        options = replace(task.training(seed, rate), evaluate_every=0, checkpoint_every=task.options.steps, **given)
        kinds = morphisms(changes.get("kinds", options.kinds))
        run = grow_graph(
            task.network(task.seed_sizes, seed),
            train=task.dataset.train,
            validation=task.dataset.validation,
            budget=budget(task),
            morphisms=kinds,
            loss=task.loss,
            options=options,
        )
        kept = ("expanded", "scored", "grown", "rejected", "retrained", "counterfactual", "finished")
        notes = [{k: v for k, v in e.items() if k != "time"} for e in run.history if e["event"] in kept]
        return Outcome(run.graph, run.model, run.history[-1]["training_flops"], (), {"history": notes})

    return arm


ARMS: Mapping[str, Arm] = {
    "seed": static(lambda task: task.seed_sizes),
    "uniform": static(uniform),
    "grown": grown(),
    "grown-even": grown(even=True),
    "grown-unadapted": grown(adapted=False),
    "grown-jointly": grown(kinds="split; prune", growth_steps=4),
    **{f"contracted-{rule}": grown(rule=rule, expansion=EXPANSION) for rule in REMOVING},
    **{f"widened-{rule}": grown(rule=rule, kinds="split", expansion=1) for rule in ADDING},
    **{f"pruned-{importance}": contracted(importance) for importance in IMPORTANCES},
}
"""The arms that have a name. `random-7` is besides these the network of the seventh random allocation, and
`uniform-longer-1.5` and `searched-1.5` take 1.5 times the FLOPs of training the uniform network."""


def find_arm(name: str) -> Arm:
    """Return the arm of a name.

    Raises:
        ValueError: there is none.
    """
    if name in ARMS:
        return ARMS[name]
    if (times := re.fullmatch(r"uniform-longer-([\d.]+)", name)) is not None:
        return longer(float(times[1]))
    if (times := re.fullmatch(r"searched-([\d.]+)", name)) is not None:
        return searched(float(times[1]))
    number = re.fullmatch(r"random-(\d+)", name)
    if number is None:
        raise ValueError(
            f"there is no arm {name!r}, but {', '.join(ARMS)}, random-0, uniform-longer-1.5 and searched-1.5"
        )
    return static(lambda task: drawn(task, int(number[1])))
