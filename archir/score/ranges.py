"""Which values the fields of options may have: numbers of a kind, finite, and in a range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 2**63 - 1
"""The largest whole number of an option: what torch counts with."""

SHOWN = 60
"""Characters of a wrong value that are shown."""


@dataclass(frozen=True)
class Whole:
    """A whole number.

    Attributes:
        least: the smallest.
        most: the largest.
        optional: whether None will do, too.
    """

    least: int = 0
    most: int = LARGEST
    optional: bool = False

    def fits(self, value: object) -> bool:
        """Say whether a value is such a number."""
        return (value is None and self.optional) or (type(value) is int and self.least <= value <= self.most)

    def __str__(self) -> str:
        return f"a whole number from {self.least}" + ("" if self.most == LARGEST else f" to {self.most}")


@dataclass(frozen=True)
class Real:
    """A finite number.

    Attributes:
        least: the smallest.
        most: the largest.
        above: whether it has to be above the smallest.
        below: whether it has to be below the largest.
        optional: whether None will do, too.
    """

    least: float = 0.0
    most: float = math.inf
    above: bool = False
    below: bool = False
    optional: bool = False

    def fits(self, value: object) -> bool:
        """Say whether a value is such a number."""
        if value is None or type(value) not in (int, float):
            return value is None and self.optional
        assert isinstance(value, int | float)
        # Whole numbers too large to be floats are not finite here.
        if not -1e308 < value < 1e308:
            return False
        low = value > self.least if self.above else value >= self.least
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'from'} {self.least:g}"
        high = "" if self.most == math.inf else f" {'to below' if self.below else 'to'} {self.most:g}"
        return f"a finite number {low}{high}"


@dataclass(frozen=True)
class Truth:
    """A truth value."""

    def fits(self, value: object) -> bool:
        """Say whether a value is one."""
        return type(value) is bool

    def __str__(self) -> str:
        return "true or false"


Range = Whole | Real | Truth


COUNT, PART, RATE = Whole(1), Real(most=1), Real(above=True)
"""How many there are at least one of, a share, and a step size."""


def out_of_range(options: object, ranges: Mapping[str, Range]) -> list[str]:
    """Return what is wrong with the fields of frozen options, a sentence each; NumPy's numbers become Python's."""
    given = {name: plain(getattr(options, name)) for name in ranges}
    for name, value in given.items():
        object.__setattr__(options, name, value)
    return misfits(given, ranges)


def misfits(given: Mapping[str, Any], ranges: Mapping[str, Range]) -> list[str]:
    """Return what is wrong with values by name, a sentence each."""
    return [
        f"{name} is {shown(value)}, not {ranges[name]}" for name, value in given.items() if not ranges[name].fits(value)
    ]


def plain(value: Any) -> Any:
    """Return a number of NumPy's as the number of Python's that it is, anything else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


def shown(value: Any) -> str:
    """Return a value as a message shows it: cut short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or a list nested as deep
        text = f"a {type(value).__name__} that is too large"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
