"""What the sizes of a graph's inputs have to satisfy: `B >= 3`, `B % 2 == 0`, `B != 7`.

A model that decides by a size is captured along one of its branches, so that its graph is right for some sizes only.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

import sympy

from archir.errors import GraphError, ParseError
from archir.ir.sizes import Size, canonical, parse_size, symbols_of

RELATIONS: Mapping[str, Callable[[int, int], bool]] = MappingProxyType(
    {
        "==": operator.eq,
        "!=": operator.ne,
        "<=": operator.le,
        ">=": operator.ge,
        "<": operator.lt,
        ">": operator.gt,
    }
)
"""What each relation between two sizes means."""

_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = MappingProxyType(
    {"+": operator.add, "*": operator.mul, "//": operator.floordiv, "%": operator.mod, "max": max, "min": min}
)
_RELATION = re.compile("==|!=|<=|>=|<|>")
_MOST_TERMS, _HIGHEST_DEGREE, _LARGEST = 256, 16, 2**63
_NEAR, _CLOSEST, _TRIED = 4096, 64, 20_000
"""How far away sizes that fit are looked for, how many of a symbol are taken, and how many combinations are tried."""
_T = TypeVar("_T")
_Function = Callable[[Mapping[str, int]], int]


@dataclass(frozen=True, slots=True)
class Guard:
    """A relation between two sizes that holds for the inputs a graph was captured for.

    Attributes:
        left: a size.
        relation: one of `RELATIONS`.
        right: a size.
    """

    left: Size
    relation: str
    right: Size

    def __str__(self) -> str:
        return f"{_show(self.left)} {self.relation} {_show(self.right)}"

    @property
    def symbols(self) -> frozenset[str]:
        """The names of the symbols it is about."""
        return symbols_of(self.left) | symbols_of(self.right)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Say whether it holds for given values of its symbols.

        Raises:
            GraphError: a size in it is no arithmetic of whole numbers, or a divisor is zero.
        """
        left, right = _sides(self)
        return RELATIONS[self.relation](left(sizes), right(sizes))


def parse_guard(text: str) -> Guard:
    """Return the guard that `str` wrote: two sizes with a relation between them.

    Raises:
        ParseError: the text is no guard, or one that is too large.
    """
    sides, found = _RELATION.split(text), _RELATION.findall(text)
    if len(found) != 1:
        raise ParseError(f"{text!r} is not a guard", hint="guards look like B >= 3, B % 2 == 0 or B != 7")
    guard = Guard(parse_size(sides[0]), found[0], parse_size(sides[1]))
    problem = fault(guard)
    if problem:
        raise ParseError(f"{text!r} is not a guard", why=problem)
    return guard


def fault(guard: Guard) -> str:
    """Return why a guard cannot be evaluated for every size, nothing if it can."""
    if guard.relation not in RELATIONS:
        return f"{guard.relation!r} is no relation"
    try:
        if any(canonical(side) != side for side in (guard.left, guard.right)):
            return "it is another when it is read back"
        for side in (guard.left, guard.right):
            terms = itertools.islice(sympy.preorder_traversal(sympy.sympify(side)), _MOST_TERMS + 1)
            if len(list(terms)) > _MOST_TERMS:
                return f"it has more than {_MOST_TERMS} terms"
        for side in whole(guard):
            if fold(side, lambda _: 1, lambda _: 0, _degree) > _HIGHEST_DEGREE:
                return f"its degree is above {_HIGHEST_DEGREE}"
    except GraphError as error:
        return error.why or error.what
    return ""


def _degree(name: str, parts: Sequence[int]) -> int:
    return sum(parts) if name in ("*", "//", "%") else max(parts)


def compute(name: str, parts: Sequence[int]) -> int:
    """Return an operation of `fold` on numbers.

    Raises:
        GraphError: a divisor is zero.
    """
    first, *others = parts
    for other in others:
        if name in ("//", "%") and other == 0:
            raise GraphError("a size is divided by zero")
        first = _ARITHMETIC[name](first, other)
    return first


@lru_cache(maxsize=4096)
def whole(guard: Guard) -> tuple[Size, Size]:
    """Return the two sides without fractions, multiplied by what they were divided by.

    Raises:
        GraphError: a side is divided by a size that is not a number.
    """
    (left, under), (right, below) = (quotient(sympy.sympify(side)) for side in (guard.left, guard.right))
    if not (under.is_Integer and below.is_Integer):
        raise GraphError(f"{guard} is divided by a size")
    return left * below, right * under


@lru_cache(maxsize=4096)
def _sides(guard: Guard) -> tuple[_Function, _Function]:
    """Return functions that work the two sides out, so that sympy is asked once."""

    def name(symbol: str) -> _Function:
        return lambda sizes: sizes[symbol]

    def number(value: int) -> _Function:
        return lambda _: value

    def apply(operation: str, parts: Sequence[_Function]) -> _Function:
        return lambda sizes: compute(operation, [part(sizes) for part in parts])

    left, right = (fold(side, name, number, apply) for side in whole(guard))
    return left, right


def quotient(size: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Return what is divided and what it is divided by; nothing is multiplied out, which could take for ever.

    Raises:
        GraphError: its terms are divided by several sizes.
    """
    terms = [_over(term) for term in sympy.Add.make_args(size)]
    unders = {under for _, _, under in terms}
    if len(unders) > 1:
        raise GraphError(f"the terms of {size} are divided by several sizes")
    least = math.lcm(*(int(factor.q) for factor, _, _ in terms))
    return sympy.Add(*(factor * least * above for factor, above, _ in terms)), least * unders.pop()


def _over(term: sympy.Expr) -> tuple[sympy.Rational, sympy.Expr, sympy.Expr]:
    """Return a term as a number times what is divided by what."""
    factor, rest = term.as_coeff_Mul()
    parts = sympy.Mul.make_args(rest)
    under = [part for part in parts if part.is_Pow and part.exp.is_Integer and part.exp < 0]
    return factor, sympy.Mul(*(p for p in parts if p not in under)), sympy.Mul(*(1 / p for p in under))


def fold(
    size: Size, name: Callable[[str], _T], number: Callable[[int], _T], apply: Callable[[str, Sequence[_T]], _T]
) -> _T:
    """Return what a size of whole numbers is in other terms: numbers, source, nodes of another program.

    Args:
        size: the size.
        name: what a symbol is.
        number: what an integer is.
        apply: what an operation on several terms is: `+`, `*`, `//`, `%`, `max` or `min`.

    Raises:
        GraphError: the size has a part that is none of these.
    """

    def visit(part: sympy.Expr) -> _T:
        if part.is_Integer and abs(int(part)) < _LARGEST:
            return number(int(part))
        if part.is_Symbol:
            return name(part.name)
        if isinstance(part, sympy.floor):
            above, under = quotient(part.args[0])
            return apply("//", [visit(above), visit(under)])
        if part.is_Pow and part.args[1].is_Integer and 1 < part.args[1] <= _HIGHEST_DEGREE:
            return apply("*", [visit(part.args[0])] * int(part.args[1]))
        for kind, operation in _OPERATIONS.items():
            if isinstance(part, kind):
                return apply(operation, list(map(visit, part.args)))
        raise GraphError(f"{part} is no arithmetic of whole numbers")

    return visit(sympy.sympify(size))


_OPERATIONS: Mapping[type[sympy.Expr], str] = MappingProxyType(
    {sympy.Add: "+", sympy.Mul: "*", sympy.Mod: "%", sympy.Max: "max", sympy.Min: "min"}
)


def _show(size: Size) -> str:
    if (
        not isinstance(size, int)
        and isinstance(size, sympy.Mod)
        and all(a.is_Symbol or a.is_Integer for a in size.args)
    ):
        return f"{size.args[0]} % {size.args[1]}"
    return str(size)


def choose(
    guards: Sequence[Guard], wanted: Mapping[str, int], avoid: Sequence[Mapping[str, int]] = ()
) -> dict[str, int]:
    """Return sizes close to the wanted ones for which all guards hold.

    Args:
        guards: the guards.
        wanted: a size for every symbol.
        avoid: sizes that are not to be returned again, where there are others.

    Raises:
        GraphError: no such sizes were found.
    """
    names = list(wanted)
    alone = {name: [g for g in guards if g.symbols == {name}] for name in names}
    several = [g for g in guards if len(g.symbols) > 1]
    if not all(_holds(g, {}) for g in guards if not g.symbols):
        raise _unfit(guards)
    choices = [_fitting(n, wanted[n], alone[n], guards) for n in names]
    first: dict[str, int] | None = None
    for values in itertools.islice(_by_distance(choices), _TRIED):
        sizes = dict(zip(names, values, strict=True))
        if _all_hold(several, sizes):
            first = first or sizes
            if sizes not in avoid:
                return sizes
    if first is None:
        raise _unfit(guards)
    return first


def _unfit(guards: Sequence[Guard]) -> GraphError:
    return GraphError(f"no sizes were found for which {', '.join(map(str, guards))}")


def _all_hold(guards: Sequence[Guard], sizes: Mapping[str, int]) -> bool:
    return all(_holds(guard, sizes) for guard in guards)


def _holds(guard: Guard, sizes: Mapping[str, int]) -> bool:
    try:
        return guard.holds(sizes)
    except GraphError:
        return False


def _fitting(name: str, wanted: int, alone: Sequence[Guard], guards: Sequence[Guard]) -> list[int]:
    """Return the sizes closest to the wanted one for which the guards about this symbol alone hold."""
    found = (value for value in _near(wanted, guards) if _all_hold(alone, {name: value}))
    return list(itertools.islice(found, _CLOSEST))


def _near(wanted: int, guards: Sequence[Guard]) -> Iterator[int]:
    """Yield the sizes that are tried for a symbol: those around the one wanted, then numbers in the guards."""
    for distance in range(_NEAR + 1):
        yield from (v for v in dict.fromkeys((wanted - distance, wanted + distance)) if v >= 1)
    numbers = {int(n) for g in guards for side in whole(g) for n in sympy.sympify(side).atoms(sympy.Integer)}
    around = {v for n in {1, *map(abs, numbers)} for v in range(max(1, n - 2), min(n + 3, _LARGEST))}
    yield from sorted((v for v in around if abs(v - wanted) > _NEAR), key=lambda v: (abs(v - wanted), v))


def _by_distance(choices: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Yield one of each list, those near the fronts of all lists first."""
    if len(choices) < 2:
        yield from itertools.product(*choices)
        return
    seen = 0
    for reach in (1, 4, 16, _CLOSEST):
        fronts = [c[:reach] for c in choices]
        for places in itertools.product(*(range(len(f)) for f in fronts)):
            if max(places, default=0) >= seen:
                yield tuple(f[p] for f, p in zip(fronts, places, strict=True))
        seen = reach
