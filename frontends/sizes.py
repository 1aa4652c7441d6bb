"""Turns the sizes of torch's symbolic shapes into those of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from torch.utils._sympy import functions as torch_sympy

from archir.ir.types import symbol

_EXACT = 2**16
"""The largest denominator of a fraction by which numbers are multiplied without rounding in floating point."""


def _upwards(number: sympy.Expr) -> sympy.Expr:
    return -sympy.floor(-number)


def _towards_zero(number: sympy.Expr) -> sympy.Expr:
    if number.is_nonnegative:
        return sympy.floor(number)
    return sympy.Max(sympy.floor(number), 0) + sympy.Min(_upwards(number), 0)


def _to_nearest(number: sympy.Expr) -> sympy.Expr:
    """Return a number rounded as Python does: what lies half-way goes to the even neighbour."""
    above, under = sympy.fraction(sympy.together(number))
    rounded = sympy.floor(number + sympy.Rational(1, 2))
    if under.is_odd or not under.is_Integer:
        return rounded if under.is_odd else torch_sympy.RoundToInt(number)
    return rounded - 1 + sympy.Min(1, sympy.Mod(2 * above - under, 4 * under))


_PLAIN = {
    torch_sympy.ToFloat: lambda a: a,
    torch_sympy.Identity: lambda a: a,
    torch_sympy.FloorDiv: lambda a, b: sympy.floor(a / b),
    torch_sympy.CleanDiv: lambda a, b: a / b,
    torch_sympy.CeilDiv: lambda a, b: -sympy.floor(-a / b),
    torch_sympy.Mod: sympy.Mod,
    torch_sympy.PythonMod: sympy.Mod,
    torch_sympy.ModularIndexing: lambda a, b, c: sympy.Mod(sympy.floor(a / b), c),
    torch_sympy.PowByNatural: sympy.Pow,
    torch_sympy.IntTrueDiv: lambda a, b: a / b,
    torch_sympy.FloatTrueDiv: lambda a, b: a / b,
    torch_sympy.Max: sympy.Max,
    torch_sympy.Min: sympy.Min,
    sympy.Abs: lambda a: sympy.Max(a, -a),
    sympy.ceiling: _upwards,
    torch_sympy.CeilToInt: _upwards,
    torch_sympy.FloorToInt: sympy.floor,
    torch_sympy.TruncToInt: _towards_zero,
    torch_sympy.RoundToInt: _to_nearest,
}
"""What the functions of torch are in those of a size, from the inside out."""


def plain(expr: sympy.Expr, names: Mapping[sympy.Symbol, sympy.Symbol]) -> sympy.Expr:
    """Return an expression of torch in the functions of sympy and the symbols of a graph.

    Args:
        expr: the expression.
        names: what the symbols are called in the graph; others, which depend on data, keep their names.

    What a size cannot say stays as it is, and is refused where a type or a guard is made of it.
    """
    expr = expr.xreplace({s: names.get(s, symbol(str(s))) for s in expr.free_symbols})
    exact = {number: sympy.Rational(number) for number in expr.atoms(sympy.Float) if _is_exact(number)}
    expr = expr.xreplace(exact)
    for kind, known in _PLAIN.items():
        expr = expr.replace(kind, known)
    return sympy.expand(expr)


def _is_exact(number: sympy.Float) -> bool:
    return bool(number.is_finite) and sympy.Rational(number).q <= _EXACT


def reduced(expr: sympy.Expr) -> sympy.Expr:
    """Return an expression without terms that are quotients rounded down, and what is never the largest or smallest."""
    floors = {part: _exact(part) for term in sympy.Add.make_args(expr) for part in sympy.Mul.make_args(term)}
    expr = sympy.expand(expr.xreplace({old: new for old, new in floors.items() if new is not old}))
    for kind, sign in ((sympy.Max, 1), (sympy.Min, -1)):
        found = sorted(expr.atoms(kind), key=sympy.count_ops)
        expr = expr.xreplace({part: kind(*_needed(tuple(map(reduced, part.args)), sign)) for part in found})
    return sympy.expand(expr)


def _exact(part: sympy.Expr) -> sympy.Expr:
    if isinstance(part, sympy.floor):
        above, under = sympy.fraction(sympy.together(part.args[0]))
        if under.is_Integer and not above.has(sympy.floor, sympy.Mod, sympy.Max, sympy.Min):
            return (above - sympy.Mod(above, under)) / under
    return part


def _needed(args: tuple[sympy.Expr, ...], sign: int) -> list[sympy.Expr]:
    kept: list[sympy.Expr] = []
    for i, one in enumerate(args):
        others = (*kept, *args[i + 1 :])
        if not any(sympy.expand(sign * (other - one)).is_nonnegative for other in others):
            kept.append(one)
    return kept
