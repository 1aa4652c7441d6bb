"""Times of tasks that take turns, so that a busy machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Clock = Callable[[], float]
"""Tells seconds: those of the wall, or `time.process_time`, those that the processor has worked for this process."""


def medians(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median wall-clock time of each task in seconds, after one round to warm up."""
    return {name: statistics.median(found) for name, found in in_turn(tasks, rounds).items()}


def in_turn(
    tasks: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Return the time of each task in each round in seconds, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            found = seconds(task, clock)
            if number:
                times[name].append(found)
    return times


def seconds(task: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Return the time of one run of a task in seconds."""
    start = clock()
    task()
    return clock() - start
