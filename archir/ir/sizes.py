"""Sizes: integers, or expressions in the batch size and other positive integers, in a form that its text tells.

    size ::= integer | symbol | size + size | size * size | size / integer | size ** integer
           | floor(size) | Mod(size, size) | Max(size, ...) | Min(size, ...)

What an expression would be is judged before it is made, so that a text cannot ask for one that never ends.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

import sympy

from archir.errors import GraphError, ParseError

Size: TypeAlias = "int | sympy.Expr"
"""A tensor size: an integer, or an expression in positive integer symbols such as `B` or `16*B`."""

LONGEST = 16_384
"""The most characters of a size."""

_PARTS = 4096
"""The most numbers, symbols and operators of a size."""

_SYMBOLS = 32
"""The most symbols of a size."""

_DEEPEST = 64
"""The most operators that stand one in the other; terms of a sum and factors of a product stand side by side."""

_DEGREE = 8
"""The largest power of symbols in a size."""

_BITS = 128
"""The most bits of a number on the way to a size."""

_WIDEST = 16
"""The most sizes of which one takes the largest or smallest."""

_SHOWN = 300
FUNCTIONS: Mapping[str, type[sympy.Expr]] = {
    "floor": sympy.floor,
    "Mod": sympy.Mod,
    "Max": sympy.Max,
    "Min": sympy.Min,
}
_COUNTS = {"floor": (1, 1), "Mod": (2, 2), "Max": (1, _WIDEST), "Min": (1, _WIDEST)}
_KINDS = (sympy.Symbol, sympy.Rational, sympy.Add, sympy.Mul, sympy.Pow, *FUNCTIONS.values())


@lru_cache(maxsize=4096)
def symbol(name: str) -> sympy.Symbol:
    """Return the positive integer symbol of a name."""
    return sympy.Symbol(name, integer=True, positive=True)


@lru_cache(maxsize=4096)
def parse_size(text: str) -> Size:
    """Parse a size as printed by `str`: integers, symbols, `+ - * / // % **`, `floor`, `Mod`, `Max` and `Min`.

    Raises:
        ParseError: the text is not a size, or one that is too large.
    """
    return canonical(_parsed(text.strip()))


@lru_cache(maxsize=4096)
def canonical(expr: Size) -> Size:
    """Return a size as it is when it is read back, an integer if it is constant.

    Raises:
        GraphError: it is no size, or one that is too large.
    """
    if isinstance(expr, int):
        return expr
    parts = list(itertools.islice(sympy.preorder_traversal(expr), _PARTS + 1))
    if len(parts) > _PARTS:
        raise GraphError("an expression is not a size", why=f"it has more than {_PARTS:,} parts")
    other = next((p for p in parts if not isinstance(p, _KINDS) or (p.is_Rational and _bits(p) > _BITS)), None)
    if other is not None:
        shown = _short(str(expr)) if not other.is_Rational else "an expression"
        raise GraphError(f"{shown} is not a size", why=f"{_name(other)} is no arithmetic of whole numbers")
    # What sympy makes of an expression may depend on how it came about, and what it makes of a text does not.
    for _ in range(4):
        text = str(expr)
        try:
            again = _parsed(text)
        except ParseError as error:
            raise GraphError(f"{_short(text)} is not a size", why=error.why) from error
        if again == expr:
            return int(again) if again.is_Integer else again
        expr = again
    raise GraphError(f"{_short(str(expr))} is not a size", why="it is another when it is read back")


def as_size(expr: Size) -> Size:
    """Turn a constant expression into an integer and leave others as they are."""
    if isinstance(expr, int):
        return expr
    return int(expr) if expr.is_Integer else expr


def symbols_of(size: Size) -> frozenset[str]:
    """Return the names of the symbols a size depends on."""
    return frozenset() if isinstance(size, int) else frozenset(s.name for s in size.free_symbols)


def evaluate(size: Size, sizes: Mapping[str, int], *, floored: bool = False) -> int:
    """Return the value of a size for given values of the symbols.

    Args:
        size: the size.
        sizes: the values, by symbol.
        floored: round down what is no whole number.

    Raises:
        KeyError: a symbol of the size is not in `sizes`.
        GraphError: it has no value, or none that is a whole number.
    """
    if isinstance(size, int):
        return size
    if size.is_Symbol:
        return sizes[size.name]
    values = {s: sympy.Integer(sizes[s.name]) for s in size.free_symbols}
    try:
        value = size.xreplace(values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise _without_value(size, sizes, str(error)) from error
    if floored and value.is_Rational:
        value = sympy.floor(value)
    if not value.is_Integer:
        raise _without_value(size, sizes, f"it is {value}")
    return int(value)


def _without_value(size: sympy.Expr, sizes: Mapping[str, int], why: str) -> GraphError:
    told = ", ".join(f"{name} = {sizes[name]}" for name in sorted(symbols_of(size)))
    return GraphError(f"the size {_short(str(size))} has no value for {told}", why=why)


def _name(part: sympy.Expr) -> str:
    return "a number that is too large" if part.is_Rational else str(part)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _parsed(text: str) -> sympy.Expr:
    """Return the expression of a text.

    Raises:
        ParseError: it is none.
    """
    try:
        if len(text) > LONGEST:
            raise ValueError(f"it has more than {LONGEST:,} characters")
        tree = ast.parse(text, mode="eval").body
        if next(itertools.islice(ast.walk(tree), 3 * _PARTS, None), None) is not None:
            raise ValueError(f"it has more than {_PARTS:,} parts")
        if len({part.id for part in ast.walk(tree) if isinstance(part, ast.Name)} - FUNCTIONS.keys()) > _SYMBOLS:
            raise ValueError(f"it has more than {_SYMBOLS} symbols")
        _judge(tree, 0)
        found = _expression(tree)
        if found.is_number and not found.is_Integer:
            raise ValueError("it is no integer")
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        why = str(error) if type(error) is ValueError else ""
        raise ParseError(f"{_short(text)!r} is not a size", why=why, hint="sizes look like 32, B, 16*B + 1") from error
    return found


def _chain(tree: ast.expr, first: type[ast.operator], second: type[ast.operator]) -> list[tuple[bool, ast.expr]]:
    """Return the terms of a sum, or the factors of a product, and whether each is subtracted, or divided by."""
    found: list[tuple[bool, ast.expr]] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, first | second):
        found.append((isinstance(tree.op, second), tree.right))
        tree = tree.left
    return [(False, tree), *reversed(found)]


def _judge(tree: ast.expr, depth: int) -> int:
    """Return the largest power of symbols in an expression, at the most.

    Raises:
        ValueError: that is too large, or the expression is nested too deep.
    """
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} operators stand one in the other")

    def degrees(parts: Iterable[ast.expr]) -> list[int]:
        return [_judge(part, depth + 1) for part in parts]

    match tree:
        case ast.Name():
            degree = 1
        case ast.UnaryOp(operand=operand):
            degree = _judge(operand, depth + 1)
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            degree = max(degrees(part for _, part in _chain(tree, ast.Add, ast.Sub)))
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            degree = sum(degrees(part for _, part in _chain(tree, ast.Mult, ast.Div)))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, exponent = degrees((left, right))
            number = right.operand if isinstance(right, ast.UnaryOp) else right
            power = number.value if isinstance(number, ast.Constant) else None
            degree = base * power if isinstance(power, int) else (base + exponent) * (_DEGREE + 1)
        case ast.BinOp(left=left, right=right):
            degree = sum(degrees((left, right)))
        case ast.Call(args=arguments):
            degree = max(degrees(arguments), default=0)
        case _:
            degree = 0
    if degree > _DEGREE:
        raise ValueError(f"its degree is above {_DEGREE}")
    return degree


def _expression(tree: ast.expr) -> sympy.Expr:
    match tree:
        case ast.Constant(value=int(value)) if not isinstance(value, bool) and value.bit_length() < 64:
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_expression(operand)
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            terms = [(minus, _expression(part)) for minus, part in _chain(tree, ast.Add, ast.Sub)]
            found = sympy.Add(*(-part if minus else part for minus, part in terms))
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            factors = [(under, _expression(part)) for under, part in _chain(tree, ast.Mult, ast.Div)]
            if sum(_bits(part) for _, part in factors if part.is_Rational) > 4 * _BITS:
                raise ValueError("it is too large")
            found = sympy.Mul(*(1 / part if under else part for under, part in factors))
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            found = _applied("floor", _expression(left) / _expression(right))
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            found = _applied("Mod", _expression(left), _expression(right))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            found = _power(_expression(left), _expression(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            fewest, most = _COUNTS[name]
            if not fewest <= len(arguments) <= most:
                raise ValueError(f"{name} takes {fewest} to {most} sizes")
            found = _applied(name, *map(_expression, arguments))
        case _:
            raise TypeError(type(tree).__name__)
    numbers = [term.as_coeff_Mul()[0] for term in sympy.Add.make_args(found)]
    if found.is_finite is False or any(not n.is_Rational or _bits(n) > _BITS for n in numbers):
        raise ValueError("it has no value, or one that is too large")
    return found


def _applied(name: str, *arguments: sympy.Expr) -> sympy.Expr:
    """Return a function of sizes as it stands: to simplify it can take for ever."""
    if name == "Mod" and arguments[1].is_zero:
        raise ValueError("it is divided by zero")
    return FUNCTIONS[name](*arguments, evaluate=all(part.is_Number for part in arguments))


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    # What a power would be is judged before it is made: 9**9**9**9 is never computed.
    if not exponent.is_Integer or (base.is_Rational and _bits(base) * abs(exponent) > _BITS):
        raise ValueError("it is too large")
    return base**exponent


def _bits(number: sympy.Rational) -> int:
    return int(number.p).bit_length() + int(number.q).bit_length()
