"""Relations of matrix products: a letter that is kept adds exponents, one that vanishes makes them add up to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archir.axes.rules.linear import split_equation
from archir.ir.node import Node, Value
from archir.rewrite.equations import Equations, Relation, Variable

Operands = Sequence[tuple[Value, Sequence[str]]]
"""Operands of an einsum, with a letter for each axis."""


def linear(q: Equations, node: Node) -> None:
    """`x[..., k] w[o, k] + bias`."""
    x, weight = q.operand(node, "input"), q.operand(node, "weight")
    rows = _rows(q.rank(x) - 1)
    outer = ["o"] if q.rank(weight) == 2 else []
    _einsum(q, node, [(x, [*rows, "k"]), (weight, [*outer, "k"])], [*rows, *outer], q.value(node, "bias"))


def bilinear(q: Equations, node: Node) -> None:
    """`x1[..., i] w[o, i, j] x2[..., j] + bias`."""
    x1, x2, weight = (q.operand(node, n) for n in ("input1", "input2", "weight"))
    rows = _rows(q.rank(x1) - 1)
    operands = [(x1, [*rows, "i"]), (x2, [*rows, "j"]), (weight, ["o", "i", "j"])]
    _einsum(q, node, operands, [*rows, "o"], q.value(node, "bias"))


def matmul(q: Equations, node: Node) -> None:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`, and `addmm`, `baddbmm` with something added."""
    *added, left, right = (v for v in node.arguments.values() if isinstance(v, Value))
    rows = _rows(max(q.rank(left), q.rank(right)) - 2)

    def batch(value: Value) -> list[str]:
        return rows[len(rows) - max(q.rank(value) - 2, 0) :]

    row, column = ["i"] if q.rank(left) > 1 else [], ["j"] if q.rank(right) > 1 else []
    operands = [(left, [*batch(left), *row, "k"]), (right, [*batch(right), "k", *column])]
    _einsum(q, node, operands, [*rows, *row, *column], added[0] if added else None)


def einsum(q: Equations, node: Node) -> None:
    """`einsum`."""
    tensors = q.operands(node)
    inputs, result = split_equation(str(node.argument("equation")), [q.rank(v) for v in tensors])
    _einsum(q, node, [(v, list(letters)) for v, letters in zip(tensors, inputs, strict=True)], list(result))


def _rows(count: int) -> list[str]:
    return [f"b{i}" for i in range(count)]


def _einsum(q: Equations, node: Node, operands: Operands, result: Sequence[str], added: Value | None = None) -> None:
    out = Value(node.id)
    letters: dict[str, list[list[Variable]]] = {}
    for value, names in operands:
        for axis, letter in enumerate(names):
            found = q.variables(value, axis)
            if found:
                letters.setdefault(letter, []).append(found)
    for letter, factors in letters.items():
        if letter in result:
            q.total(node, q.variables(out, result.index(letter)), *factors)
        else:
            q.contract(node, *factors)
    for axis, letter in enumerate(result):
        if letter not in letters:
            q.zero(node, q.variables(out, axis))
    if added is not None:
        q.align(node, [added])


RELATIONS: Mapping[str, Relation] = {
    "linear": linear,
    "bilinear": bilinear,
    "einsum": einsum,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm"), matmul),
}
