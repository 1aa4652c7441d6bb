"""Sizes of results as expressions in the sizes of operands, from what an operator makes of several of them.

    size ::= c + Σ ci·ei | what `archir.ir.one_size` finds of a single size of an operand

where `e` are symbols, sizes of operands, and products of sizes that stand side by side, as reshapes merge them.

Source: ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache, partial
from itertools import combinations
from typing import Any

import sympy
import torch

from archir.errors import GraphError
from archir.ir.guards import Guard, choose
from archir.ir.limits import NotInferable
from archir.ir.one_size import curve_size
from archir.ir.sizes import canonical
from archir.ir.types import ScalarType, Size, TensorType, Type, as_size, evaluate, symbol

Points = Sequence[Mapping[str, int]]
"""Values of the symbols, one mapping a run."""

_CHECKS = 3
"""How many runs there have to be beyond those that say what the coefficients are."""

CLOSE = (25, 26, 27, 29)
"""How far beyond the first sizes those are that sizes rounded down, and remainders, are told apart at."""


STARTS = (6, 61, 1009)
"""The first of the sizes that operators are run with, and what is tried where these are too small for one."""


@lru_cache(maxsize=4096)
def points_of(
    names: tuple[str, ...], guards: tuple[Guard, ...], further: tuple[int, ...], start: int = STARTS[0]
) -> list[dict[str, int]]:
    """Return sizes for which all guards hold: a first choice, each one changed alone, and all of them changed."""
    every = _all_names(names, guards)
    first = {n: start + 2 * i for i, n in enumerate(every)}
    alone = [{**first, n: first[n] + 12} for n in names]
    return _chosen(names, guards, [first, *alone, *({n: v + f for n, v in first.items()} for f in further)])


def _all_names(names: tuple[str, ...], guards: tuple[Guard, ...]) -> list[str]:
    """Return some names and those in guards."""
    return [*names, *sorted({n for g in guards for n in g.symbols} - set(names))]


def _chosen(
    names: tuple[str, ...], guards: tuple[Guard, ...], wanted: Sequence[Mapping[str, int]]
) -> list[dict[str, int]]:
    """Return sizes close to the wanted ones for which all guards hold, each once."""
    found: list[dict[str, int]] = []
    for sizes in wanted:
        chosen = choose(guards, sizes, found) if guards else dict(sizes)
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
        first: what it made in the first of these runs.
        run: runs it with arguments of some types, for values of the symbols in them.
    """

    op: str
    arguments: Mapping[str, object]
    guards: tuple[Guard, ...]
    points: list[dict[str, int]]
    first: Sequence[Any]
    run: Callable[[Mapping[str, object], Mapping[str, int]], list[Any]]

    @cached_property
    def checks(self) -> list[tuple[dict[str, int], list[Any]]]:
        """Small values of the symbols and large ones, and what was made of those that the operator takes."""
        points = _small_and_large(tuple(self.points[0]), self.guards) if self.points[0] else ()
        runs = [(point, self._tried(self.arguments, point)) for point in points if point not in self.points]
        return [(point, made) for point, made in runs if made is not None]

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
            found = [(point, self.run(self.arguments, point)) for point in points if point not in self.points]
        except GraphError:
            return []
        return [*found, *self.checks]

    def size(self, values: Sequence[int], read: Callable[[Sequence[Any]], int]) -> Size:
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
        seen = [*zip(self.points, values, strict=True), *((point, read(made)) for point, made in self.checks)]
        if found is None or not _agrees(found, seen):
            found = self._of_one(read)
        if found is None or not _agrees(found, seen):
            points = [*self.points, *(point for point, _ in self.further)]
            every = [*values, *(read(run) for _, run in self.further)]
            found = fit(every, points, _shapes(self.arguments)) if self.further else None
        if found is None:
            raise NotInferable(f"a size of the result of {self.op} is no known function of {', '.join(self.points[0])}")
        return found

    def _tried(self, arguments: Mapping[str, object], point: Mapping[str, int]) -> list[Any] | None:
        """Return what is made for some sizes, None if the operator rejects them, or makes results of other kinds."""
        try:
            made = self.run(arguments, point)
        except GraphError:
            return None
        return made if list(map(_kind, made)) == list(map(_kind, self.first)) else None

    def _of_one(self, read: Callable[[Sequence[Any]], int]) -> Size | None:
        """Return the size if it follows from one size of an operand, whatever the others are."""
        free = self._free
        if free is None:
            return None
        arguments, exprs, base = free
        known: dict[tuple[str, int], int | None] = {}

        def value(name: str, number: int) -> int | None:
            if (name, number) not in known:
                made = self._tried(arguments, {**base, name: number})
                known[name, number] = None if made is None else read(made)
            return known[name, number]

        usual = [name for name in exprs if len({value(name, n) for n in _varied(base[name])} - {None}) > 1]
        if len(usual) != 1:
            return None
        (name,) = usual
        found = curve_size(partial(value, name), name)
        return None if found is None else _put(found, name, exprs[name])

    @cached_property
    def _free(self) -> tuple[Mapping[str, object], Mapping[str, Size], Mapping[str, int]] | None:
        """The arguments with a symbol for each size, what these stand for, and values of them; None if there are none.

        The operator takes these values, which have nothing to do with one another.
        """
        exprs = dict.fromkeys(size for shape in _shapes(self.arguments) for size in shape if not isinstance(size, int))
        names = {expr: f"_{i}" for i, expr in enumerate(exprs)}
        arguments = {key: _renamed(argument, names) for key, argument in self.arguments.items()}
        for start in reversed(STARTS):
            base = {name: start + 2 * i for i, name in enumerate(names.values())}
            if self._tried(arguments, base) is not None:
                return arguments, {name: expr for expr, name in names.items()}, base
        return None

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
        points = (*self.points, *points_of(tuple(self.points[0]), self.guards, LARGE))
        return all(evaluate(known, point, floored=True) == evaluate(found, point, floored=True) for point in points)


def _varied(size: int) -> tuple[int, ...]:
    """Return sizes that show whether a size matters: small ones, one close to it, and a larger one."""
    return (2, 3, 5, 17, size, size + 1, size + 5003)


def _kind(made: object) -> object:
    """Return what a result is, its sizes left out."""
    return (made.dtype, made.dim()) if isinstance(made, torch.Tensor) else type(made)


def _agrees(found: Size, seen: Sequence[tuple[Mapping[str, int], int]]) -> bool:
    """Say whether a size has the values that were seen."""
    try:
        return all(evaluate(found, point) == value for point, value in seen)
    except GraphError:
        return False  # it is no whole number


def _renamed(argument: object, names: Mapping[Size, str]) -> object:
    """Return an argument with symbols for the sizes in its types."""
    if isinstance(argument, TensorType):
        return TensorType(argument.dtype, tuple(symbol(names[s]) if s in names else s for s in argument.shape))
    if isinstance(argument, ScalarType):
        known = argument.value is not None and argument.value in names
        return ScalarType(argument.kind, symbol(names[argument.value])) if known else argument
    return tuple(_renamed(part, names) for part in argument) if isinstance(argument, tuple) else argument


def _put(found: Size, name: str, expr: Size) -> Size:
    """Return a size of one symbol with an expression in its place, quotients of quotients as single ones."""
    whole, inner = sympy.sympify(found), sympy.sympify(expr)
    if isinstance(whole, sympy.floor):
        rest = [term for term in sympy.Add.make_args(inner) if not term.is_Integer]
        if len(rest) == 1 and isinstance(rest[0], sympy.floor) and whole.args[0].coeff(symbol(name)).numerator == 1:
            inner = inner - rest[0] + rest[0].args[0]
    put = {symbol(name): inner}
    if isinstance(whole, sympy.Max | sympy.Min):  # to compare what is rounded can take for ever
        return canonical(type(whole)(*(sympy.expand(part.xreplace(put)) for part in whole.args), evaluate=False))
    return canonical(sympy.expand(whole.xreplace(put)))


LARGE = (1000, 1001, 100_003)
"""How far beyond the first sizes those are that show what is rounded, or bounded, for large ones only."""

_EVERY = tuple(range(25, 60))
"""How far beyond the first sizes those are that sizes divided and rounded down are told apart at."""


@lru_cache(maxsize=4096)
def _small_and_large(names: tuple[str, ...], guards: tuple[Guard, ...]) -> list[dict[str, int]]:
    """Return small sizes for which all guards hold, and large ones; none is 1, which broadcasts."""
    every = list(enumerate(_all_names(names, guards)))
    wanted = [{n: 2 for _, n in every}, {n: 4 + i for i, n in every}, {n: LARGE[-1] + 2 * i for i, n in every}]
    return [sizes for sizes in _chosen(names, guards, wanted) if 1 not in sizes.values()]


@lru_cache(maxsize=4096)
def _scattered(names: tuple[str, ...], guards: tuple[Guard, ...]) -> list[dict[str, int]]:
    """Return sizes for which all guards hold, and which have little to do with one another."""
    every = list(enumerate(_all_names(names, guards)))
    return _chosen(names, guards, [{n: 7 + (3 * i + 5) * (j + 1) % 31 + j for i, n in every} for j in range(8)])


def _shapes(argument: object) -> list[tuple[Size, ...]]:
    """Return the sizes of every tensor and number in some arguments, those of numbers in a row side by side."""
    if isinstance(argument, Mapping):
        return [shape for part in argument.values() for shape in _shapes(part)]
    if isinstance(argument, tuple):
        return [shape for part in argument for shape in _shapes(part)]
    found = sizes_in(argument) if isinstance(argument, TensorType | ScalarType) else ()
    return [tuple(size for size in found if size is not None)] if found else []


_SYMBOLIC: Mapping[str, Callable[..., sympy.Expr]] = {
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.mul": operator.mul,
    "operator.floordiv": lambda a, b: sympy.floor(a / b),
    "operator.mod": sympy.Mod,
    "torch.sym_max": sympy.Max,
    "torch.sym_min": sympy.Min,
}
"""What arithmetic on numbers makes of expressions."""


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
    return _combined(values, points, [*symbols, *single], _CHECKS)


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
