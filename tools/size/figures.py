"""Exponents of the growth of times with sizes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

FROM = {"nodes": 10_000, "parameters": 3_000_000, "trace": 300}
"""The sizes from which on exponents are found: below them constants govern."""

FEWEST = 3
"""Of how many sizes an exponent is found at least."""

Times = Mapping[str, Mapping[str, float]]
"""Seconds, by task and size."""


def figures_of(parts: Mapping[str, Times], trials: int) -> dict[str, dict[str, int | Times | dict[str, float]]]:
    """Return times, medians of so many rounds, with the exponent of each task, by part."""
    return {
        part: {
            "trials": trials,
            "seconds": times,
            "exponents": {name: exponent(part, taken) for name, taken in times.items()},
        }
        for part, times in parts.items()
    }


def exponent(part: str, taken: Mapping[str, float]) -> float:
    """Return the slope of log time over log size by least squares, over the sizes that are looked at."""
    points = [(math.log(size), math.log(taken[str(size)])) for size in looked_at(part, taken)]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def looked_at(part: str, taken: Mapping[str, float]) -> list[int]:
    """Return the sizes that the exponent of a task is found over: those from `FROM` on, the largest few at least."""
    sizes = sorted(map(int, taken))
    return [size for size in sizes if size >= min(FROM[part], sizes[-FEWEST])]
