"""Relations of convolutions: input channels are contracted, groups are multiplied unit by unit."""

from __future__ import annotations

from collections.abc import Mapping

from archir.axes.widths import Width, Widths
from archir.ir.node import Node, Value
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.rewrite.equations import Equations, Relation


def convolution(q: Equations, node: Node) -> None:
    """All convolutions, transposed and grouped ones included."""
    x, weight, bias, out = q.operand(node, "input"), q.operand(node, "weight"), q.value(node, "bias"), Value(node.id)
    channel = 1 - q.rank(weight)
    given, made = q.variables(x, channel), q.variables(out, channel)
    first, second = q.variables(weight, 0), q.variables(weight, 1)
    transposed = operator_of(node.op).kind is Kind.TRANSPOSED or bool(node.arguments.get("transposed"))
    if not counts_groups(q.widths, q.width, node):
        inner, outer = (first, second) if transposed else (second, first)
        q.contract(node, given, inner)
        q.equal(node, made, outer)
    elif second:
        q.forbid(node, "it counts both the groups of a convolution and the channels inside them")
    else:
        q.total(node, made, given, first)
    if bias is not None:
        q.equal(node, made, q.variables(bias, 0))
    for value in (x, out):
        for axis in range(q.rank(value) + channel):
            q.zero(node, q.variables(value, axis))


def counts_groups(widths: Widths, width: Width, node: Node) -> bool:
    """Say whether the number of groups follows the width: each of its units has a group of its own then."""
    doubled = widths.spell(node.id, {width.atom: 2 * width.size})
    return doubled.arguments.get("groups", node.argument("groups")) != node.argument("groups")


RELATIONS: Mapping[str, Relation] = dict.fromkeys(
    ("convolution", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))), convolution
)
