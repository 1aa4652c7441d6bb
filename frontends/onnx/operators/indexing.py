"""Operators that read and write elements at places that are numbers."""

from __future__ import annotations

import math

import torch

from frontends.onnx.call import Call, Results, Table, axis_of
from frontends.onnx.operands import Known, Operand
from frontends.onnx.operators.movement import cut, reshaped

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _gather(c: Call) -> Operand:
    axis = c.axis(c.rank(c[0]), 0)
    index = c[1]
    if isinstance(index, Known) and index.tensor.dim() == 0:
        return c.call("select.int", c[0], axis, int(index.tensor))
    table = c[0]
    is_weight = isinstance(table, Known) and table.tensor.is_floating_point() and axis == 0 and c.rank(table) == 2
    if is_weight and not isinstance(index, Known):
        return c.call("embedding", c.weight(0, "weight"), index)
    return c.call("index.Tensor", c[0], [*[None] * axis, c.same(index, torch.int64)])


def _from_front(c: Call, index: Operand, size: int | torch.Tensor) -> Operand:
    """Return places counted from the front: negative ones are counted from the end."""
    index = c.same(index, torch.int64)
    if isinstance(size, torch.Tensor):
        later = c.call("add.Tensor", index, Known(size))
    else:
        later = c.call("add.Tensor", index, size)
    return c.call("where.self", c.call("lt.Scalar", index, 0), later, index)


def _gather_elements(c: Call) -> Operand:
    axis = c.axis(c.rank(c[0]), 0)
    return c.call("gather", c[0], axis, _from_front(c, c[1], c.fixed(c[0], axis)[0]))


def _scatter_elements(c: Call) -> Operand:
    axis = c.axis(c.rank(c[0]), 0)
    index = _from_front(c, c[1], c.fixed(c[0], axis)[0])
    how = c.text("reduction", "none")
    if how == "none":
        return c.call("scatter.src", c[0], axis, index, c[2])
    return c.call("scatter_reduce.two", c[0], axis, index, c[2], _REDUCTIONS[how])


def _gather_nd(c: Call) -> Operand:
    batches, index = c.integer("batch_dims", 0), c.same(c[1], torch.int64)
    count = c.fixed(index, -1)[0]
    parts = [c.call("select.int", index, -1, i) for i in range(count)]
    if not batches:
        return c.call("index.Tensor", c[0], parts)
    rank = c.rank(index) - 1
    lead: list[Operand] = []
    for axis in range(batches):
        (size,) = c.fixed(c[0], axis)
        lead.append(c.places(size, axis, rank))
    return c.call("index.Tensor", c[0], [*lead, *parts])


def _scatter_nd(c: Call) -> Operand:
    x, index, how = c[0], c.same(c[1], torch.int64), c.text("reduction", "none")
    count = c.fixed(index, -1)[0]
    if how in ("none", "add"):
        parts = [c.call("select.int", index, -1, i) for i in range(count)]
        return c.call("index_put", x, parts, c[2], how == "add")
    shape = c.fixed(x)
    outer, inner = shape[:count], shape[count:]
    strides = [math.prod(outer[i + 1 :]) for i in range(count)]
    places = _from_front(c, index, torch.tensor(outer))
    flat = c.call("sum.dim_IntList", c.call("mul.Tensor", places, Known(torch.tensor(strides))), [-1])
    rows = math.prod(c.fixed(flat))
    wide = math.prod(inner)
    at = c.call("expand", reshaped(c, flat, [rows, 1]), [rows, wide])
    values = reshaped(c, c[2], [rows, wide])
    found = c.call("scatter_reduce.two", reshaped(c, x, [math.prod(outer), wide]), 0, at, values, _REDUCTIONS[how])
    return reshaped(c, found, list(shape))


def _one_hot(c: Call) -> Operand:
    depth = int(c.number(1, "depth"))
    rank = c.rank(c[0])
    axis = axis_of(c.integer("axis", -1), rank + 1)
    index = c.call("unsqueeze", _from_front(c, c[0], depth), axis)
    places = c.places(depth, axis, rank + 1)
    off, on = (c.call("select.int", c[2], 0, i) for i in (0, 1))
    return c.call("where.self", c.call("eq.Tensor", index, places), on, off)


def _top(c: Call) -> Results:
    count = c.integer("k") if c.opset < 10 else int(c.number(1, "k"))
    axis = c.axis(c.rank(c[0]), -1)
    # Of equal elements the first one comes first, which only a stable sort says.
    found = c.calls("sort.stable", c[0], stable=True, dim=axis, descending=bool(c.integer("largest", 1)))
    return [cut(c, part, axis, 0, count) for part in found]


def _compress(c: Call) -> Operand:
    kept = c.known(1, "condition").to(torch.bool).reshape(-1)
    x = c[0]
    if not c.has("axis"):
        x = reshaped(c, x, [-1])
    axis = c.axis(c.rank(x), 0)
    return c.call("index_select", x, axis, Known(kept.nonzero().reshape(-1)))


OPERATORS: Table = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    "TopK": _top,
    "Compress": _compress,
}
"""Operators that read and write elements at places."""
