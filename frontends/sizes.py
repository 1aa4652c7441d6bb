"""Turns the sizes of torch's symbolic shapes into those of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from torch.utils._sympy import functions as torch_sympy

from archir.ir.types import symbol

_PLAIN = {
    torch_sympy.FloorDiv: lambda a, b: sympy.floor(a / b),
    torch_sympy.CleanDiv: lambda a, b: a / b,
    torch_sympy.CeilDiv: lambda a, b: -sympy.floor(-a / b),
    torch_sympy.Mod: sympy.Mod,
    torch_sympy.PythonMod: sympy.Mod,
    torch_sympy.ModularIndexing: lambda a, b, c: sympy.Mod(sympy.floor(a / b), c),
    torch_sympy.PowByNatural: sympy.Pow,
    torch_sympy.IntTrueDiv: lambda a, b: a / b,
    torch_sympy.Max: sympy.Max,
    torch_sympy.Min: sympy.Min,
}


def plain(expr: sympy.Expr, names: Mapping[sympy.Symbol, sympy.Symbol]) -> sympy.Expr:
    """Return an expression of torch in the functions of sympy and the symbols of a graph.

    Args:
        expr: the expression.
        names: what the symbols are called in the graph; others, which depend on data, keep their names.
    """
    expr = expr.xreplace({s: names.get(s, symbol(str(s))) for s in expr.free_symbols})
    for kind, known in _PLAIN.items():
        expr = expr.replace(kind, known)
    return sympy.expand(expr)


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
