"""Shape arithmetic: operators on numbers that follow from the sizes of the inputs are computed when the file is read.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import sympy
import torch

from archir.ir.types import as_size
from frontends.onnx.call import Call, torch_type
from frontends.onnx.operands import Known, Operand, Series, Sizes

Array = np.ndarray[Any, np.dtype[np.object_]]
"""Numbers and expressions in the sizes of the inputs."""

_MOST = 4096
"""The most elements of a tensor that takes part in shape arithmetic."""


class _Undecided(Exception):
    """What depends on how large the inputs are."""


def fold(c: Call) -> Operand | None:
    """Return what a node makes if it is shape arithmetic, None if it is not or depends on how large the inputs are.

    Args:
        c: the node; one of its operands are sizes.
    """
    function = _FUNCTIONS.get(str(c.node.op_type))
    arrays = [_array(part, c.graph.elements(part)) for part in c.operands]
    if function is None or any(a is None and p is not None for a, p in zip(arrays, c.operands, strict=True)):
        return None
    try:
        found = function(c, [np.array(None) if a is None else a for a in arrays])
    except (_Undecided, ZeroDivisionError, IndexError, ValueError, TypeError):
        return None
    return _operand(np.asarray(found, dtype=object), _type(c))


def _type(c: Call) -> torch.dtype:
    name = str(c.node.op_type)
    if name in _COMPARISONS or name in ("Not", "And", "Or"):
        return torch.bool
    if name in ("Shape", "Size"):
        return torch.int64
    if name == "Cast":
        return torch_type(c.integer("to"))
    return c.type(c[1 if name in ("Where", "CastLike") else 0]).dtype


def _array(operand: Operand | Series | None, elements: torch.Tensor | None) -> Array | None:
    if isinstance(operand, Sizes):
        return _filled(list(operand.entries), operand.shape)
    if elements is None or elements.numel() > _MOST:
        return None
    numbers = [_number(n) for n in elements.reshape(-1).tolist()]
    return None if None in numbers else _filled(numbers, tuple(elements.shape))


def _number(number: Any) -> Any:
    if isinstance(number, float):
        try:
            exact = Fraction(number)
        except (ValueError, OverflowError):
            return None
        return as_size(sympy.Rational(exact.numerator, exact.denominator))
    return number if isinstance(number, bool | int) else None


def _filled(numbers: list[Any], shape: tuple[int, ...]) -> Array:
    found = np.empty(len(numbers), dtype=object)
    found[:] = numbers
    return found.reshape(shape)


def _operand(array: Array, dtype: torch.dtype) -> Operand | None:
    entries = [as_size(sympy.expand(e)) if isinstance(e, sympy.Expr) else e for e in array.reshape(-1)]
    if all(isinstance(e, bool | int) or e.is_number for e in entries):
        numbers = [e if isinstance(e, bool | int) else float(e) for e in entries]
        return Known(torch.tensor(numbers, dtype=dtype).reshape(array.shape))
    if dtype == torch.bool or array.ndim > 1:
        return None
    return Sizes(tuple(entries), tuple(array.shape), dtype)


def _each(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a node that computes element by element."""
    return lambda c, a: np.frompyfunc(compute, len(a), 1)(*a)


def _quotient(c: Call, a: list[Array]) -> Any:
    whole = not c.type(c[0]).dtype.is_floating_point

    def divide(one: Any, other: Any) -> Any:
        if not whole:
            return sympy.sympify(one) / other
        if isinstance(one, int) and isinstance(other, int):
            return int(one / other) if abs(one) < 2**52 else one // other
        positive = sympy.sympify(one).is_nonnegative and sympy.sympify(other).is_positive
        if not positive:
            raise _Undecided
        return sympy.floor(sympy.expand(sympy.sympify(one) / other))

    return np.frompyfunc(divide, 2, 1)(*a)


def _remainder(one: Any, other: Any) -> Any:
    return one % other if isinstance(one, int) and isinstance(other, int) else sympy.Mod(one, other)


def _decided(holds: Any) -> Callable[[Any, Any], bool]:
    def compare(one: Any, other: Any) -> bool:
        gap = sympy.expand(sympy.sympify(one) - sympy.sympify(other)) if one is not other else sympy.Integer(0)
        found: bool | None = holds(gap)
        if found is None:
            raise _Undecided
        return found

    return compare


def _largest(one: Any, other: Any) -> Any:
    return sympy.Max(one, other)


def _smallest(one: Any, other: Any) -> Any:
    return sympy.Min(one, other)


def _cast(c: Call, a: list[Array]) -> Any:
    kind = torch_type(c.integer("to")) if c.has("to") else c.type(c[1]).dtype
    if kind == torch.bool:
        raise _Undecided
    if kind.is_floating_point:
        return a[0]
    return np.frompyfunc(lambda n: n if isinstance(n, int) or n.is_integer else sympy.floor(n), 1, 1)(a[0])


def _gather(c: Call, a: list[Array]) -> Any:
    return np.take(a[0], a[1].astype(np.int64), axis=c.integer("axis", 0))


def _slice(c: Call, a: list[Array]) -> Any:
    if c.opset < 10:
        starts, ends = c.integers("starts"), c.integers("ends")
        axes, steps = c.integers("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = c.numbers(1), c.numbers(2)
        axes = c.numbers(3) if c.get(3) is not None else list(range(len(starts)))
        steps = c.numbers(4) if c.get(4) is not None else [1] * len(starts)
    parts = [slice(None)] * a[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        parts[axis] = slice(start, None if step < 0 and end < -a[0].shape[axis] else end, step)
    return a[0][tuple(parts)]


def _squeeze(c: Call, a: list[Array]) -> Any:
    axes = c.axes(a[0].ndim, 1, 13)
    return a[0].squeeze(None if axes is None else tuple(axes))


def _unsqueeze(c: Call, a: list[Array]) -> Any:
    return np.expand_dims(a[0], tuple(c.integers("axes") if c.opset < 13 else c.numbers(1)))


def _concat(c: Call, a: list[Array]) -> Any:
    return np.concatenate(a, axis=c.integer("axis"))


def _reshape(c: Call, a: list[Array]) -> Any:
    return a[0].reshape([int(n) for n in a[1].reshape(-1)])


def _where(c: Call, a: list[Array]) -> Any:
    return np.where(a[0].astype(bool), a[1], a[2])


def _expand(c: Call, a: list[Array]) -> Any:
    shape = np.broadcast_shapes(a[0].shape, tuple(int(n) for n in a[1].reshape(-1)))
    return np.broadcast_to(a[0], shape)


def _product(c: Call, a: list[Array]) -> Any:
    return _along(c, a[0], np.prod)


def _sum(c: Call, a: list[Array]) -> Any:
    return _along(c, a[0], np.sum)


def _along(c: Call, array: Array, reduce: Callable[..., Any]) -> Any:
    axes = c.axes(array.ndim, 1, 13 if c.node.op_type == "ReduceSum" else 18)
    keep = bool(c.integer("keepdims", 1))
    return np.asarray(reduce(array, axis=None if not axes else tuple(axes), keepdims=keep), dtype=object)


def _shape(c: Call, a: list[Array]) -> Any:
    low, high = c.integer("start", 0), c.integer("end", a[0].ndim)
    return np.array(a[0].shape[low:high], dtype=object)


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "Equal": _decided(lambda gap: False if gap.is_nonzero else gap.is_zero),
    "Greater": _decided(lambda gap: gap.is_positive),
    "GreaterOrEqual": _decided(lambda gap: gap.is_nonnegative),
    "Less": _decided(lambda gap: gap.is_negative),
    "LessOrEqual": _decided(lambda gap: gap.is_nonpositive),
}

_FUNCTIONS: Mapping[str, Callable[[Call, list[Array]], Any]] = {
    **{name: _each(compare) for name, compare in _COMPARISONS.items()},
    "Add": _each(lambda one, other: one + other),
    "Sub": _each(lambda one, other: one - other),
    "Mul": _each(lambda one, other: one * other),
    "Div": _quotient,
    "Mod": _each(_remainder),
    "Max": lambda c, a: reduce(np.frompyfunc(_largest, 2, 1), a),
    "Min": lambda c, a: reduce(np.frompyfunc(_smallest, 2, 1), a),
    "Neg": _each(lambda one: -one),
    "Abs": _each(lambda one: abs(one)),
    "Floor": _each(lambda one: sympy.floor(one)),
    "Ceil": _each(lambda one: -sympy.floor(-sympy.sympify(one))),
    "Identity": lambda c, a: a[0],
    "Cast": _cast,
    "CastLike": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Reshape": _reshape,
    "Where": _where,
    "Expand": _expand,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "Shape": _shape,
}
"""What operators of ONNX are on sizes."""
