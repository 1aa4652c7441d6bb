"""Types of values: element type and shape, where a size is an integer or an expression in the batch size.

`f32[B, 3, 32, 32]` is a tensor,
`int(B)` a number known at run time only.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import sympy
import torch

from archir.errors import GraphError, ParseError

Size: TypeAlias = "int | sympy.Expr"
"""A tensor size: an integer, or an expression in positive integer symbols such as `B` or `16*B`."""

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
_LONG_NAMES = {
    name: found for name, found in vars(torch).items() if isinstance(found, torch.dtype) and found in DTYPES.values()
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
RARE_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("complex32", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
"""Element types that go by torch's own names; quantised ones, and those of less than a byte, are none of a graph's."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the short name of an element type (`f32`), or torch's own for the rare ones."""
    return DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def parse_dtype(name: str) -> torch.dtype:
    """Return the element type of a short name.

    Raises:
        ParseError: the name is not an element type.
    """
    dtype = DTYPES.get(name, RARE_DTYPES.get(name) or _LONG_NAMES.get(name))
    if dtype is None:
        raise ParseError(f"{name!r} is not an element type", mend=f"known: {', '.join(DTYPES)}")
    return dtype


RANK = 64
"""The most axes of a tensor."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of a tensor.

    Attributes:
        dtype: element type.
        shape: one size an axis.

    Raises:
        GraphError: it has more than `RANK` axes.
    """

    dtype: torch.dtype
    shape: tuple[Size, ...]

    def __post_init__(self) -> None:
        if len(self.shape) > RANK:
            raise GraphError(f"a tensor of {len(self.shape)} axes", why=f"PyTorch's have {RANK} at the most")

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ScalarType:
    """The type of a number computed at run time, such as the batch size.

    Attributes:
        kind: `int`, `float` or `bool`.
        value: its value as an expression in the symbols, where that is known.
    """

    kind: str
    value: Size | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}({self.value})"


Type = TensorType | ScalarType


@lru_cache(maxsize=4096)
def symbol(name: str) -> sympy.Symbol:
    """Return the positive integer symbol of a name."""
    return sympy.Symbol(name, integer=True, positive=True)


@lru_cache(maxsize=4096)
def parse_size(text: str) -> Size:
    """Parse a size as printed by `str`: integers, symbols, `+ - * / // % **`, `floor`, `Mod`, `Max` and `Min`.

    Raises:
        ParseError: the text is not a size.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        tree = ast.parse(text.strip(), mode="eval").body
        if _degree(tree) > _DEGREE or sum(1 for _ in ast.walk(tree)) > _NODES:
            raise ValueError("it is too large")
        return _checked(_expression(tree))
    except (SyntaxError, TypeError, ValueError, ArithmeticError, KeyError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        raise ParseError(f"{shown!r} is not a size", mend="sizes look like 32, B, 16*B + 1") from error


_LONGEST = 300
"""The most characters of a size."""

_NODES = 150
"""The most numbers, symbols and operators of a size."""

_DEGREE = 8
"""The largest power of symbols in a size."""

_BITS = 128
"""The most bits of a number on the way to a size."""


def _degree(tree: ast.expr) -> int:
    """Return the largest power of symbols that an expression can have."""
    match tree:
        case ast.Name():
            return 1
        case ast.UnaryOp(operand=operand):
            return _degree(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(exponent))):
            return _degree(left) * exponent
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return max(_degree(left), _degree(right))
        case ast.BinOp(left=left, op=op, right=right):
            return (_degree(left) + _degree(right)) * (1 if not isinstance(op, ast.Pow) else _DEGREE + 1)
        case ast.Call(args=arguments):
            return sum(map(_degree, arguments))
    return 0


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    # What a power would be is judged before it is made: 9**9**9**9 is never computed.
    if not exponent.is_Integer or (base.is_Rational and _bits(base) * abs(exponent) > _BITS):
        raise ValueError("it is too large")
    return base**exponent


def _bits(number: sympy.Rational) -> int:
    return int(number.p).bit_length() + int(number.q).bit_length()


_OPERATORS: dict[type[ast.operator], Callable[..., sympy.Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: sympy.floor(a / b),
    ast.Mod: sympy.Mod,
    ast.Pow: _power,
}


def _expression(tree: ast.expr) -> sympy.Expr:
    match tree:
        case ast.Constant(value=int(value)) if not isinstance(value, bool) and value.bit_length() < 64:
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_expression(operand)
        case ast.BinOp(left=left, op=op, right=right):
            found = _OPERATORS[type(op)](_expression(left), _expression(right))
        case ast.Call(func=ast.Name(id="floor"), args=[argument], keywords=[]):
            found = sympy.floor(_expression(argument))
        case ast.Call(func=ast.Name(id="Mod" | "Max" | "Min" as name), args=arguments, keywords=[]):
            found = getattr(sympy, name)(*map(_expression, arguments))
        case _:
            raise TypeError(ast.dump(tree))
    if found.is_finite is False or (found.is_Rational and _bits(found) > _BITS):
        raise ValueError("it has no value, or one that is too large")
    return found


def _checked(expr: sympy.Expr) -> Size:
    size = as_size(expr)
    if not isinstance(size, int) and size.is_number:
        raise ValueError("it is no integer")
    return size


def as_size(expr: Size) -> Size:
    """Turn a constant expression into an integer and leave others as they are."""
    if isinstance(expr, int):
        return expr
    return int(expr) if expr.is_Integer else expr


def symbols_of(size: Size) -> frozenset[str]:
    """Return the names of the symbols a size depends on."""
    return frozenset() if isinstance(size, int) else frozenset(s.name for s in size.free_symbols)


def evaluate(size: Size, sizes: Mapping[str, int]) -> int:
    """Return the value of a size for given values of the symbols.

    Raises:
        KeyError: a symbol of the size is not in `sizes`.
    """
    if isinstance(size, int):
        return size
    if size.is_Symbol:
        return sizes[size.name]
    return int(size.xreplace({s: sympy.Integer(sizes[s.name]) for s in size.free_symbols}))


def is_float(type_: Type) -> bool:
    """Say whether a type is a tensor of real floating-point numbers."""
    return isinstance(type_, TensorType) and type_.dtype.is_floating_point
