"""Sequences of tensors, which exporters write where a program has a list: they are taken apart while a file is read."""

from __future__ import annotations

import torch

from frontends.onnx.call import Call, Results, Table
from frontends.onnx.operands import Known, Operand, Refusal, Series


def _split(c: Call) -> Results:
    axis = c.axis(c.rank(c[0]), 0)
    (size,) = c.fixed(c[0], axis)
    if c.get(1) is None:
        parts = [c.call("slice.Tensor", c[0], axis, i, i + 1) for i in range(size)]
        return Series(tuple(parts if c.integer("keepdims", 1) else [c.call("squeeze.dim", p, axis) for p in parts]))
    lengths = c.known(1, "split")
    if lengths.dim() == 0:
        return Series(c.calls("split.Tensor", c[0], int(lengths), axis))
    return Series(c.calls("split_with_sizes", c[0], lengths.tolist(), axis))


def _construct(c: Call) -> Results:
    return Series(tuple(c.given))


def _at(c: Call) -> Operand:
    items, place = c.series(0), int(c.number(1, "position"))
    if not -len(items) <= place < len(items):
        raise Refusal(f"a sequence of {len(items)} tensors has no number {place}")
    return items[place]


def _insert(c: Call) -> Results:
    items = list(c.series(0))
    items.insert(len(items) if c.get(2) is None else int(c.number(2, "position")), c[1])
    return Series(tuple(items))


def _erase(c: Call) -> Results:
    items = list(c.series(0))
    del items[-1 if c.get(1) is None else int(c.number(1, "position"))]
    return Series(tuple(items))


def _length(c: Call) -> Operand:
    return Known(torch.tensor(len(c.series(0))))


def _join(c: Call) -> Operand:
    items = list(c.series(0))
    new = c.integer("new_axis", 0)
    axis = c.axis(c.rank(items[0]) + new)
    return c.call("stack" if new else "cat", items, axis)


def _empty(c: Call) -> Results:
    return Series(())


OPERATORS: Table = {
    "SplitToSequence": _split,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceAt": _at,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceLength": _length,
    "ConcatFromSequence": _join,
}
"""Sequences of tensors."""
