"""Writes numbers that follow from the shapes of tensors."""

from __future__ import annotations

from collections.abc import Callable

import sympy

from archir.emit.code import ATOM, PLUS, TIMES, Code
from archir.errors import EmitError


def arithmetic(size: sympy.Expr, term: Callable[[sympy.Expr], Code]) -> Code:
    """Return the source of a size that is computed from others.

    Args:
        size: sum, product, power, quotient, `floor`, `Mod`, `Max` or `Min`.
        term: gives the source of its terms.

    Raises:
        EmitError: it is something else.
    """

    def part(inner: sympy.Expr, binds: int) -> str:
        return term(inner).within(binds)

    if isinstance(size, sympy.floor):
        above, under = sympy.fraction(sympy.together(size.args[0]))
        return Code(f"{part(above, TIMES)} // {part(under, TIMES + 1)}", TIMES)
    if isinstance(size, sympy.Mod):
        return Code(f"{part(size.args[0], TIMES)} % {part(size.args[1], TIMES + 1)}", TIMES)
    if isinstance(size, sympy.Max | sympy.Min):
        parts = [part(inner, 0) for inner in sorted(size.args, key=lambda t: (t.is_Integer, str(t)))]
        return Code(f"{'max' if isinstance(size, sympy.Max) else 'min'}({', '.join(parts)})")
    above, under = sympy.fraction(sympy.together(size))
    if under != 1:
        return Code(f"{part(above, TIMES)} // {part(under, TIMES + 1)}", TIMES)
    if size.is_Add:
        first, *rest = sorted(size.args, key=lambda t: (t.is_Integer, str(t)))
        text = part(first, PLUS)
        for other in rest:
            negative = other.could_extract_minus_sign()
            text += f" - {part(-other, PLUS + 1)}" if negative else f" + {part(other, PLUS)}"
        return Code(text, PLUS)
    if size.is_Mul:
        return Code(" * ".join(part(factor, TIMES) for factor in size.args), TIMES)
    if size.is_Pow:
        return Code(f"{part(size.args[0], ATOM)} ** {part(size.args[1], ATOM)}", TIMES)
    raise EmitError(f"the size {size} cannot be written")
