"""Arithmetic on numbers known at run time only, such as the batch size: a closed list, and every result fits 64 bits.

The functions take numbers and torch's symbolic sizes, so that a module can be captured again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from archir.errors import GraphError

LARGEST = 2**63 - 1
"""The largest size and the largest integer of a program."""


def _bounded(op: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes as `compute` does and refuses what is no number, and what no size can be."""

    def bounded(*numbers: Any) -> Any:
        for number in numbers:
            if not isinstance(number, _NUMBERS):
                raise GraphError(f"{op} computes with numbers, not with a {type(number).__name__}")
        try:
            result = compute(*numbers)
        except (ArithmeticError, TypeError, ValueError) as error:
            shown = ", ".join(map(_show, numbers))
            raise GraphError(f"{op}({shown}) has no value", why=str(error)) from error
        if type(result) is int and abs(result) > LARGEST:
            raise GraphError(f"{op}({', '.join(map(_show, numbers))}) does not fit 64 bits")
        return result

    bounded.__name__ = bounded.__qualname__ = op.rpartition(".")[2]
    return bounded


def _power(base: Any, exponent: Any) -> Any:
    # Two integers: how long the result is follows from how long they are, so that it need not be made to be refused.
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() > 1 and exponent > 63:
        raise OverflowError("the result has more than 64 bits")
    return base**exponent


def _round(number: Any, digits: Any = None) -> Any:
    # Rounding an integer to -n digits makes a power of ten first, which need not be larger than the integer.
    return round(number, digits if not isinstance(digits, int) else max(-400, min(digits, 400)))


def _show(number: object) -> str:
    large = isinstance(number, int) and abs(number) > LARGEST
    return f"an integer of {number.bit_length()} bits" if large and isinstance(number, int) else str(number)


_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
_OPERATORS = (
    *("abs", "add", "and_", "eq", "floordiv", "ge", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_", "or_", "pos"),
    *("sub", "truediv", "xor"),
)
_COMPUTE: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    "operator.pow": _power,
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min")},
    "torch.sym_not": torch.sym_not,
    "torch._sym_sqrt": torch.sym_sqrt,
    "builtins.round": _round,
}
ARITHMETIC: Mapping[str, Callable[..., Any]] = MappingProxyType({op: _bounded(op, f) for op, f in _COMPUTE.items()})
"""The functions of numbers a graph may call, by name."""
