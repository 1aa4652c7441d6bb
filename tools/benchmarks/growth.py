"""What growing is worth: networks of one budget, by hand, by chance and by growing, on five tasks.

Every training is a record in a folder and is made once. `--only` names tasks and parts of the study: `rates` and
`noise` are the uniform network at every learning rate and from every seed, `ceiling` random allocations of equal cost,
of which `--trials` are drawn for each task, and `grown` networks that grow, from `--trials` seeds (5 at most), beside
the uniform one: trained for as many steps, and until it has spent as many FLOPs. `criteria` is what the scores of a
wide network say of the random allocations, `search` a random search that costs as much as growing, `rivals` what
other rules contract or widen, and `ablations` growing otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from tools.growth import arms, runs
from tools.growth.criteria import judged
from tools.growth.figures import figures
from tools.growth.records import Key, Record, Records
from tools.growth.subjects import ON_IMAGES, TASKS, find_task
from tools.growth.tasks import Task
from tools.rival_pruning import IMPORTANCES

PARTS = ("rates", "noise", "ceiling", "criteria", "grown", "search", "rivals", "ablations")

GROWN = ("grown",)
"""The arms that grow as users' networks do."""

RIVALS = (
    *(f"pruned-{importance}" for importance in IMPORTANCES),
    *(f"contracted-{rule}" for rule in arms.REMOVING),
    *(f"widened-{rule}" for rule in arms.ADDING),
)
"""The arms that contract a wide network, or widen a narrow one, by the rules of others."""

ABLATIONS = ("grown-even", "grown-unadapted", "grown-jointly")
"""The arms that grow with one thing done otherwise: smaller batches above the budget; removals judged as if no weight
adapted; units split, too, in half as many steps."""


def run(
    records: str, data: str | None = None, only: str | None = None, trials: int = 40, steps: int | None = None
) -> Mapping[str, object]:
    """Return the figures.

    Args:
        records: a folder to keep the records in; what is there already is not made again.
        data: spec of CIFAR-10, as `archir.load_data` takes it; the tasks on it are left out if it is not given, and
            the figures say so.
        only: names of tasks and parts, with commas between; everything if there are none of that kind among them.
        trials: random allocations of each task.
        steps: optimiser steps of a training; those of the task if not given.

    Raises:
        ValueError: there is no task or part of a name.
    """
    torch.set_num_threads(1)
    named = [] if only is None else only.split(",")
    unknown = [name for name in named if name not in (*TASKS, *PARTS)]
    if unknown:
        raise ValueError(f"there is no task or part {unknown[0]!r}, but {', '.join((*TASKS, *PARTS))}")
    wanted = [name for name in TASKS if name in named] or list(TASKS)
    without_data = [name for name in wanted if name in ON_IMAGES and data is None]
    tasks = {name: _task(name, data, steps) for name in wanted if name not in without_data}
    seeds = min(trials, runs.SEEDS)
    makers: Mapping[str, Callable[[Task], Iterable[Key]]] = {
        "rates": runs.rates,
        "noise": runs.noise,
        "ceiling": partial(runs.ceiling, trials=trials),
        "criteria": partial(runs.ceiling, trials=trials),
        "grown": partial(runs.compared, arms=("uniform", *GROWN), seeds=seeds),
        "search": partial(runs.compared, arms=("uniform", *GROWN), seeds=seeds),
        "rivals": partial(runs.compared, arms=("uniform", *GROWN, *RIVALS), seeds=seeds),
        "ablations": partial(runs.compared, arms=("uniform", *ABLATIONS), seeds=seeds),
    }
    parts = [part for part in PARTS if part in named] or list(PARTS)
    several = [runs.in_turn([list(makers[part](task)) for task in tasks.values()]) for part in parts]
    keys = list(dict.fromkeys(chain.from_iterable(several)))
    kept, say = Records(Path(records)), partial(print, file=sys.stderr, flush=True)
    found = runs.make(keys, tasks, kept, say)
    as_dear = [arm for arm, part in (("uniform-longer", "grown"), ("searched", "search")) if part in parts]
    more: list[Key] = []
    for name, task in tasks.items():
        grown = [r for r in found if r.key.task == name and r.key.arm in GROWN]
        more += [k for arm in as_dear for k in runs.as_dear(task, grown, arm)]
    found += runs.make(more, tasks, kept, say)
    left_out, predictions = {name: "needs CIFAR-10: give --data" for name in without_data}, {}
    for name, task in tasks.items() if "criteria" in parts else ():
        try:
            predictions[name] = judged(task, _drawn(found, name))
        except ValueError as error:
            left_out[f"criteria of {name}"] = str(error)
    return {
        "left_out": left_out,
        "made_elsewhere": len(keys) + len(more) - len(found),
        "predictions": predictions,
        **figures(found, tasks, predictions),
    }


def _task(name: str, data: str | None, steps: int | None) -> Task:
    """Return a task, with another number of steps if one is given."""
    task = find_task(name, data)
    return task.lasting(steps or task.options.steps)


def _drawn(records: Iterable[Record], task: str) -> list[Record]:
    """Return those of random allocations of a task."""
    return [r for r in records if r.key.task == task and r.key.arm.startswith("random-") and not r.failure]
