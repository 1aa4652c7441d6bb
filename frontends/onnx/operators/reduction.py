"""Operators that reduce axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch

from frontends.onnx.call import Call, Function, Table, axis_of
from frontends.onnx.operands import Operand
from frontends.onnx.operators.movement import constant_pad, cut

Reduce = Callable[[Call, Operand, list[int], bool], Operand]
"""What reduces some axes of an operand, which stay with a size of 1 if asked."""


def _reduction(reduce: Reduce, since: int = 18) -> Function:
    """Return the function of an operator whose axes are an input in operator sets since some."""

    def function(c: Call) -> Operand:
        rank = c.rank(c[0])
        axes = c.axes(rank, 1, since)
        if not axes:
            if c.integer("noop_with_empty_axes", 0):
                return c[0]
            axes = list(range(rank))
        return reduce(c, c[0], sorted(axes), bool(c.integer("keepdims", 1)))

    return function


def _sum(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    return c.same(c.call("sum.dim_IntList", x, axes, keep), c.type(x).dtype)


def _mean(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    return c.call("mean.dim", x, axes, keep)


def _extreme(op: str) -> Reduce:
    def reduce(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
        kind, shape = c.type(x).dtype, c.shape(x)
        if any(shape[axis] == 0 for axis in axes):  # of nothing: the least or largest number there is
            kept = [1 if i in axes else size for i, size in enumerate(shape) if keep or i not in axes]
            return c.call("full", [c.size(s) for s in kept], _bound(kind, lowest=op == "amax"), dtype=kind)
        return c.call(op, x, axes, keep)

    return reduce


def _bound(kind: torch.dtype, *, lowest: bool) -> float | int | bool:
    if kind == torch.bool:
        return not lowest
    if kind.is_floating_point:
        return float("-inf") if lowest else float("inf")
    return torch.iinfo(kind).min if lowest else torch.iinfo(kind).max


def _product(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    kind = c.type(x).dtype
    for axis in reversed(axes):
        x = c.call("prod.dim_int", x, axis, keep)
    return c.same(x, kind)


def _l1(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    return _sum(c, c.call("abs", x), axes, keep)


def _square_sum(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    return _sum(c, c.call("mul.Tensor", x, x), axes, keep)


def _l2(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    return c.same(c.call("sqrt", _square_sum(c, x, axes, keep)), c.type(x).dtype)


def _log_sum(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    return c.same(c.call("log", _sum(c, x, axes, keep)), c.type(x).dtype)


def _log_sum_exp(c: Call, x: Operand, axes: list[int], keep: bool) -> Operand:
    return c.same(c.call("logsumexp", x, axes, keep), c.type(x).dtype)


def _best(op: str) -> Function:
    def function(c: Call) -> Operand:
        axis, x = c.axis(c.rank(c[0]), 0), c[0]
        keep = bool(c.integer("keepdims", 1))
        if not c.integer("select_last_index", 0):
            return c.call(op, x, axis, keep)
        (size,) = c.fixed(x, axis)
        return c.call("rsub.Scalar", c.call(op, c.call("flip", x, [axis]), axis, keep), size - 1)

    return function


def _cumulative(op: str, neutral: int) -> Function:
    def function(c: Call) -> Operand:
        axis, x = axis_of(int(c.number(1, "axis")), c.rank(c[0])), c[0]
        kind, back = c.type(x).dtype, c.integer("reverse", 0)
        x = c.call("flip", x, [axis]) if back else x
        if c.integer("exclusive", 0):
            before = [int(i == axis) for i in range(c.rank(x))]
            x = cut(c, constant_pad(c, x, before, [0] * len(before), neutral), axis, 0, c.shape(x)[axis])
        x = c.same(c.call(op, x, axis), kind)
        return c.call("flip", x, [axis]) if back else x

    return function


def _hardmax(c: Call) -> Operand:
    rank = c.rank(c[0])
    kind, axis = c.type(c[0]).dtype, c.axis(rank, 1 if c.opset < 13 else -1)
    shape = c.fixed(c[0], *range(axis, rank)) if c.opset < 13 else c.fixed(c[0], axis)
    x = c[0] if c.opset >= 13 or axis == rank - 1 else c.call("flatten.using_ints", c[0], axis)
    best = c.call("argmax", x, axis, True)
    count = c.fixed(x, axis)[0]
    places = c.places(count, axis, c.rank(x))
    found = c.same(c.call("eq.Tensor", best, places), kind)
    return found if c.rank(x) == rank else c.call("unflatten.int", found, axis, shape)


OPERATORS: Table = {
    "ReduceSum": _reduction(_sum, 13),
    "ReduceMean": _reduction(_mean),
    "ReduceMax": _reduction(_extreme("amax")),
    "ReduceMin": _reduction(_extreme("amin")),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceSumSquare": _reduction(_square_sum),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ArgMax": _best("argmax"),
    "ArgMin": _best("argmin"),
    "CumSum": _cumulative("cumsum", 0),
    "CumProd": _cumulative("cumprod", 1),
    "Hardmax": _hardmax,
}
"""Operators that reduce axes, and running sums and products."""
