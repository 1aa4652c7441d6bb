"""Sizes of results as expressions in the sizes of operands, from what an operator makes of several of them.

    size ::= c + Σ ci·ei | floor((e + b) / k)

where `e` are symbols, sizes of operands, and products of sizes that stand side by side, as reshapes merge them.

Source: ours.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Any

import sympy

from archir.errors import GraphError
from archir.ir.guards import Guard, choose
from archir.ir.limits import NotInferable
from archir.ir.sizes import canonical
from archir.ir.types import ScalarType, Size, TensorType, Type, as_size, evaluate, symbol

Points = Sequence[Mapping[str, int]]
"""Values of the symbols, one mapping a run."""

_LARGEST_STEP = 32
"""The largest divisor of a size that is rounded down."""

_CHECKS = 3
"""How many runs there have to be beyond those that say what the coefficients are."""

CLOSE = (25, 26, 27, 29)
"""How far beyond the first sizes those are that sizes rounded down, and remainders, are told apart at."""


@lru_cache(maxsize=4096)
def points_of(names: tuple[str, ...], guards: tuple[Guard, ...], further: tuple[int, ...]) -> list[dict[str, int]]:
    """Return sizes for which all guards hold: a first choice, each one changed alone, and all of them changed."""
    every = [*names, *sorted({n for g in guards for n in g.symbols} - set(names))]
    first = {n: 6 + 2 * i for i, n in enumerate(every)}
    wanted = [
        first,
        *({**first, n: first[n] + 12} for n in names),
        *({n: v + f for n, v in first.items()} for f in further),
    ]
    found: list[dict[str, int]] = []
    for sizes in wanted:
        chosen = choose(guards, sizes, found) if guards else sizes
        found += [] if chosen in found else [chosen]
    return [{n: sizes[n] for n in names} for sizes in found]


def sizes_in(type_: Type) -> tuple[Size | None, ...]:
    """Return the sizes of a type: those of the axes, or the value of a number, None where it is not known."""
    return type_.shape if isinstance(type_, TensorType) else (type_.value,)


@dataclass
class Fitting:
    """What the results of one call are fitted to.

    Attributes:
        op: the operator.
        arguments: its arguments.
        guards: what the symbols satisfy.
        points: values of the symbols it was run with.
        run: runs it with others.
    """

    op: str
    arguments: Mapping[str, object]
    guards: tuple[Guard, ...]
    points: list[dict[str, int]]
    run: Callable[[Mapping[str, int]], list[Any]]

    @cached_property
    def further(self) -> list[tuple[dict[str, int], list[Any]]]:
        """Further values of the symbols, and what was made of them: all sizes close to one another, and scattered.

        There are none where it takes some of these sizes only, or guards are about what is rounded down, so that few
        sizes are close to one another: then they say too little of others.
        """
        names = tuple(self.points[0])
        if any(sympy.sympify(side).has(sympy.floor) for guard in self.guards for side in (guard.left, guard.right)):
            return []
        points = (*points_of(names, self.guards, _EVERY), *_scattered(names, self.guards))
        try:
            return [(point, self.run(point)) for point in points if point not in self.points]
        except GraphError:
            return []

    def size(self, values: Sequence[int], read: Callable[[list[Any]], int]) -> Size:
        """Return the size that has some values at the points.

        Args:
            values: what it was in each run.
            read: reads it off another run.

        Raises:
            NotInferable: none was found.
        """
        found, known = fit_linear(values, self.points), self._computed
        if known is not None:
            # That it was one number in a few runs does not say that it always is.
            return known if isinstance(found, int | None) or not self._is_same(known, found) else found
        if found is None:
            points = [*self.points, *(point for point, _ in self.further)]
            every = [*values, *(read(run) for _, run in self.further)]
            found = fit(every, points, _shapes(self.arguments)) if self.further else None
        if found is None:
            raise NotInferable(f"a size of the result of {self.op} is no known function of {', '.join(self.points[0])}")
        return found

    @cached_property
    def _computed(self) -> Size | None:
        """The result of arithmetic as an expression, None where it is not known."""
        compute, values = _SYMBOLIC.get(self.op), list[Size]()
        for argument in self.arguments.values():
            value = argument.value if isinstance(argument, ScalarType) else argument
            if type(value) is not int and not isinstance(value, sympy.Expr):
                return None
            values.append(value)
        try:
            return None if compute is None or len(values) != 2 else canonical(compute(*map(sympy.sympify, values)))
        except (GraphError, ArithmeticError):
            return None

    def _is_same(self, known: Size, found: Size) -> bool:
        """Say whether an expression is another one wherever the guards hold, for large sizes, too."""
        points = (*self.points, *points_of(tuple(self.points[0]), self.guards, _LARGE))
        return all(evaluate(known, point, floored=True) == evaluate(found, point, floored=True) for point in points)


_LARGE = (1000, 1001, 100_003)
"""How far beyond the first sizes those are that show what is rounded, or bounded, for large ones only."""

_EVERY = tuple(range(25, 60))
"""How far beyond the first sizes those are that sizes divided and rounded down are told apart at."""


@lru_cache(maxsize=4096)
def _scattered(names: tuple[str, ...], guards: tuple[Guard, ...]) -> list[dict[str, int]]:
    """Return sizes for which all guards hold, and which have little to do with one another."""
    every = [*names, *sorted({n for g in guards for n in g.symbols} - set(names))]
    wanted = [{n: 7 + (3 * i + 5) * (j + 1) % 31 + j for i, n in enumerate(every)} for j in range(8)]
    found: list[dict[str, int]] = []
    for sizes in wanted:
        chosen = choose(guards, sizes, found) if guards else sizes
        found += [] if chosen in found else [chosen]
    return [{n: sizes[n] for n in names} for sizes in found]


def _shapes(argument: object) -> list[tuple[Size, ...]]:
    """Return the sizes of every tensor and number in some arguments, those of numbers in a row side by side."""
    if isinstance(argument, Mapping):
        return [shape for part in argument.values() for shape in _shapes(part)]
    if isinstance(argument, tuple):
        return [shape for part in argument for shape in _shapes(part)]
    found = sizes_in(argument) if isinstance(argument, TensorType | ScalarType) else ()
    return [tuple(size for size in found if size is not None)] if found else []


_SYMBOLIC: Mapping[str, Callable[..., sympy.Expr]] = {
    "operator.mul": operator.mul,
    "operator.floordiv": lambda a, b: sympy.floor(a / b),
    "operator.mod": sympy.Mod,
    "torch.sym_max": sympy.Max,
    "torch.sym_min": sympy.Min,
}
"""What arithmetic on numbers makes of expressions, where that is not linear."""


def fit_linear(values: Sequence[int], points: Points) -> Size | None:
    """Return the size `c + Σ ci·si` that has some values, None if there is none.

    Args:
        values: what the size was in each run.
        points: the values of all symbols in it.
    """
    if len(set(values)) == 1:
        return int(values[0])
    return _combined(values, points, [symbol(name) for name in points[0]])


def fit(values: Sequence[int], points: Points, sizes: Sequence[Sequence[Size]]) -> Size | None:
    """Return a size that has some values and follows from those of operands, None if none was found.

    Args:
        values: what the size was in each run.
        points: the values of all symbols in it; there should be runs of all sizes close to one another.
        sizes: the sizes of each operand, in order.
    """
    symbols = [symbol(name) for name in points[0]]
    single = [*dict.fromkeys(s for shape in sizes for s in shape if not isinstance(s, int) and not s.is_Symbol)]
    known = {expr: _at(expr, points) for expr in single}
    if any(found is not None and len(set(found)) == 1 for found in known.values()):
        return None  # what a size that never changed adds to others would go unseen
    single = [expr for expr in single if known[expr] is not None]
    for expr in (*single, *_products(sizes)):
        found = _combined(values, points, [expr], _CHECKS)
        if found is not None:
            return found
    found = _combined(values, points, [*symbols, *single], _CHECKS)
    if found is not None:
        return found
    for expr in (*symbols, *single):
        found = _rounded(values, points, expr)
        if found is not None:
            return found
    return None


def _products(sizes: Sequence[Sequence[Size]]) -> Iterator[Size]:
    """Yield the products of sizes that stand side by side in an operand, where several of them vary."""
    seen: set[Size] = set()
    for shape in sizes:
        for start, end in combinations(range(len(shape) + 1), 2):
            part = [size for size in shape[start:end] if not isinstance(size, int)]
            if len(part) > 1 and (product := sympy.Mul(*part)) not in seen:
                seen.add(product)
                yield product


def _at(expr: Size, points: Points) -> list[int] | None:
    """Return the values of an expression, None where one is no whole number."""
    try:
        return [evaluate(expr, point) for point in points]
    except GraphError:
        return None


def _combined(values: Sequence[int], points: Points, exprs: Sequence[Size], checks: int = 0) -> Size | None:
    """Return the sum `c + Σ ci·ei` that has some values, None if there is none or too few runs would tell."""
    columns = [_at(expr, points) for expr in exprs]
    if (checks and len(values) - 1 < len(exprs) + checks) or not all(columns):
        return None
    rows = [[Fraction(c[i] - c[0]) for c in columns if c is not None] for i in range(1, len(points))]
    slopes = _solve(rows, [Fraction(value - values[0]) for value in values[1:]])
    if slopes is None:
        return None
    terms = (sympy.Rational(s) * (expr - c[0]) for expr, s, c in zip(exprs, slopes, columns, strict=True) if c)
    return as_size(sympy.expand(sympy.Integer(values[0]) + sum(terms)))


def _rounded(values: Sequence[int], points: Points, expr: Size) -> Size | None:
    """Return `floor((expr + b) / k)` if it has some values."""
    sizes = _at(expr, points)
    if not sizes:
        return None
    low, high = (extreme(range(len(sizes)), key=sizes.__getitem__) for extreme in (min, max))
    gap, rise = sizes[high] - sizes[low], values[high] - values[low]
    if rise <= 0 or gap <= rise:
        return None
    for step in range(max(2, gap // (rise + 1)), min(math.ceil(gap / max(rise - 1, 1)), _LARGEST_STEP) + 1):
        if len({size % step for size in sizes}) < step:
            continue  # not every remainder was seen
        for shift in range(step):
            rest = {value - (size + shift) // step for size, value in zip(sizes, values, strict=True)}
            if len(rest) == 1:
                return as_size(sympy.floor((sympy.sympify(expr) + shift + step * rest.pop()) / step))
    return None


def _solve(rows: list[list[Fraction]], values: list[Fraction]) -> list[Fraction] | None:
    """Return a solution of linear equations, zero where they leave it open; None if there is none."""
    table = [[*row, value] for row, value in zip(rows, values, strict=True)]
    pivots: list[int] = []
    for column in range(len(rows[0])):
        done = len(pivots)
        first = next((i for i in range(done, len(table)) if table[i][column]), None)
        if first is None:
            continue
        table[done], table[first] = table[first], table[done]
        table[done] = [entry / table[done][column] for entry in table[done]]
        for i, other in enumerate(table):
            if i != done and other[column]:
                table[i] = [a - other[column] * b for a, b in zip(other, table[done], strict=True)]
        pivots.append(column)
    if any(row[-1] for row in table[len(pivots) :]):
        return None
    found = [Fraction(0)] * len(rows[0])
    for row, column in zip(table, pivots, strict=False):
        found[column] = row[-1]
    return found
