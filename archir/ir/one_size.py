"""One size as a function of another, found from what an operator makes of numbers that are tried.

    size ::= floor((a·e + b) / k) | Min(c + a·e, d + b·e) | Max(c + a·e, d + b·e)

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import sympy

from archir.ir.types import Size, as_size, evaluate, symbol

Curve = Callable[[int], int | None]
"""What a size is for a number in place of another one; None where an operator rejects that."""

TRIED = (2, 3, 4, 5, 7, 10, 16, 23, 33, 64, 101, 191, 256, 400, 511, 800, 1024, 4099, 9001, 100_003)
"""Numbers of which each that the operator takes has to lead to the size that is found."""

_GAP = 2**24
"""How far apart the numbers are that tell by which part of itself a size grows."""

_LARGEST_STEP = 1000
"""The largest number that a size is divided by."""


def curve_size(curve: Curve, name: str) -> Size | None:
    """Return the size that a curve tells, None if it is of no known form.

    Args:
        curve: gives its values.
        name: what the size is called that it is a function of.
    """
    known = {number: value for number in TRIED if (value := curve(number)) is not None}
    if len(known) < 4:
        return None
    for found in (*_bounded(known, name), _rounded(curve, known, name)):
        if found is not None and all(evaluate(found, {name: n}) == value for n, value in known.items()):
            return found
    return None


def _bounded(known: dict[int, int], name: str) -> Iterator[Size]:
    """Yield the smaller and the larger of two lines: through the smallest numbers, and through the largest."""
    numbers = sorted(known)
    low, high = (_line(known, pair, name) for pair in (numbers[:2], numbers[-2:]))
    if low is not None and high is not None:
        yield from (as_size(extreme(low, high)) for extreme in (sympy.Min, sympy.Max))


def _line(known: dict[int, int], pair: list[int], name: str) -> sympy.Expr | None:
    first, second = pair
    slope = Fraction(known[second] - known[first], second - first)
    return known[first] + int(slope) * (symbol(name) - first) if slope.denominator == 1 else None


def _rounded(curve: Curve, known: dict[int, int], name: str) -> Size | None:
    """Return `floor((a·e + b) / k)`, with `b` by bisection: it is as large as the remainders allow."""
    start = max(known)
    last = curve(start + _GAP)
    if last is None:
        return None
    slope = Fraction(last - known[start], _GAP).limit_denominator(_LARGEST_STEP)
    times, step = slope.numerator, slope.denominator
    if times <= 0 or step == 1:
        return None
    low = max(step * value - times * number for number, value in known.items())
    high = min(step * value - times * number + step - 1 for number, value in known.items())
    back = pow(times, -1, step)
    while low < high:
        middle = (low + high + 1) // 2
        number = start + (-(middle + times * start) * back) % step  # where `a·e + middle` is a multiple of `k`
        value = curve(number)
        if value is None:
            return None
        if step * value >= times * number + middle:
            low = middle
        else:
            high = middle - 1
    return as_size(sympy.floor((times * symbol(name) + low) / sympy.Integer(step))) if low == high else None
