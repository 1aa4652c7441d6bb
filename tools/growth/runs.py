"""Runs: which records are to be made, and their making."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest

import torch

from archir.axes.infer import infer_widths
from archir.cost import TRAINING, cost
from archir.errors import ArchirError
from archir.growing.training import evaluate
from tools.growth.allocations import uniform
from tools.growth.arms import find_arm
from tools.growth.records import Key, Record, Records
from tools.growth.tasks import Task

SEEDS = 5
"""Seeds of a comparison."""


def key(task: Task, arm: str, seed: int = 0, rate: float | None = None) -> Key:
    """Return what a training of an arm is kept under, at the usual learning rate if none is given."""
    return Key(task.name, arm, seed, task.rate if rate is None else rate, task.options.steps)


def rates(task: Task) -> Iterator[Key]:
    """Yield the uniform network at every learning rate."""
    yield from (key(task, "uniform", rate=rate) for rate in task.rates)


def noise(task: Task) -> Iterator[Key]:
    """Yield the uniform network from every seed."""
    yield from (key(task, "uniform", seed) for seed in range(SEEDS))


def ceiling(task: Task, trials: int) -> Iterator[Key]:
    """Yield random allocations."""
    yield from (key(task, f"random-{number}") for number in range(trials))


def compared(task: Task, arms: Sequence[str], seeds: int = SEEDS) -> Iterator[Key]:
    """Yield some arms from every seed, the arms of a seed one after another."""
    yield from (key(task, arm, seed) for seed in range(seeds) for arm in arms)


def as_dear(task: Task, grown: Iterable[Record], arm: str) -> Iterator[Key]:
    """Yield for records of networks that grew an arm that takes a factor, with that by which they cost more to train.

    Args:
        task: the task.
        grown: the records.
        arm: `uniform-longer` or `searched`.
    """
    for record in grown:
        if not record.failure:
            times = record.training_flops / flops_of_uniform(task)
            yield key(task, f"{arm}-{times:.2f}", record.key.seed)


def flops_of_uniform(task: Task) -> int:
    """Return the FLOPs of training the uniform network for the steps of a task."""
    return TRAINING * task.cost(uniform(task)).flops * task.options.steps * task.options.batch_size


def in_turn(keys: Sequence[Sequence[Key]]) -> list[Key]:
    """Return the first of each list, then the second of each, and so on, none twice."""
    mixed = chain.from_iterable(zip_longest(*keys))
    return list(dict.fromkeys(k for k in mixed if k is not None))


def make(keys: Sequence[Key], tasks: Mapping[str, Task], records: Records, say: Callable[[str], None]) -> list[Record]:
    """Return the records of some trainings, those that are not there made one after another.

    What another process is about to make is passed over, and missing in what is returned.

    Raises:
        ValueError: a record that is there is one of a task with other settings.
    """
    _read(keys, tasks, records)
    for done, wanted in enumerate(keys, 1):
        with records.claim(wanted) as free:
            if free:
                record = _make(wanted, tasks[wanted.task])
                records.write(record)
                result = record.validation or record.failure
                say(f"{done}/{len(keys)} {record.key.path}: {result}, {record.seconds:.0f} s")
    return _read(keys, tasks, records)


def _read(keys: Sequence[Key], tasks: Mapping[str, Task], records: Records) -> list[Record]:
    """Return the records that are there.

    Raises:
        ValueError: one is of a task with other settings.
    """
    found = [there for k in keys if (there := records.read(k)) is not None]
    for record in found:
        settings = tasks[record.key.task].settings
        if record.settings != settings:
            raise ValueError(f"{record.key.path} is of another task:\n{record.settings}\ninstead of\n{settings}")
    return found


def _make(wanted: Key, task: Task) -> Record:
    started, lasting = time.monotonic(), task.lasting(wanted.steps)
    made_by = f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    try:
        outcome = find_arm(wanted.arm)(lasting, wanted.seed, wanted.rate)
        seconds = time.monotonic() - started
        validation = evaluate(outcome.module, task.dataset.validation, task.loss)
        test = evaluate(outcome.module, task.dataset.test, task.loss)
    except ArchirError as error:
        seconds = time.monotonic() - started
        return Record(wanted, task.settings, {}, 0, 0, 0, seconds, None, None, (), {}, str(error), made_by)
    price = cost(outcome.graph)
    return Record(
        wanted,
        task.settings,
        {w.name: w.size for w in infer_widths(outcome.graph)},
        price.parameters,
        price.flops,
        outcome.training_flops,
        seconds,
        validation,
        test,
        outcome.curve,
        outcome.notes,
        "",
        made_by,
    )
