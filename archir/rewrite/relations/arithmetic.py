"""Relations of pointwise arithmetic: sums keep exponents equal, products add them."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.node import Node, Value
from archir.rewrite.equations import Equations, Relation


def add(q: Equations, node: Node) -> None:
    """`add`, `sub`; with a number, nothing may be divided."""
    if any(not isinstance(node.argument(n), Value) for n in ("self", "other")):
        q.exact(node)
    q.align(node, q.operands(node))


def multiply(q: Equations, node: Node) -> None:
    """`mul`, and `div` by what does not carry the width."""
    out = Value(node.id)
    divides = node.op.split(".")[1] in ("div", "divide", "true_divide")
    if node.arguments.get("rounding_mode") is not None:
        q.exact(node)
        return
    for back in range(1, q.rank(out) + 1):
        made = q.variables(out, -back)
        factors = [q.variables(v, -back) if back <= q.rank(v) else [] for v in q.operands(node)]
        if divides and len(factors) > 1 and factors[1]:
            q.zero(node, [*made, *factors[0], *factors[1]])
        else:
            q.total(node, made, *factors)


def homogeneous(q: Equations, node: Node) -> None:
    """Pointwise operators of one operand with `f(c*x) = c*f(x)` for positive `c`."""
    q.align(node, q.operands(node))


def prelu(q: Equations, node: Node) -> None:
    """`prelu`: homogeneous in the operand; the slopes stay."""
    q.align(node, [q.operand(node, "self")])
    q.zero(node, q.variables(q.operand(node, "weight")))


def zeros(q: Equations, node: Node) -> None:
    """`zeros`: whatever zero is divided by."""


RELATIONS: Mapping[str, Relation] = {
    **dict.fromkeys(("add", "sub", "subtract"), add),
    **dict.fromkeys(("mul", "multiply", "div", "divide", "true_divide"), multiply),
    **dict.fromkeys(("relu", "leaky_relu", "neg", "negative", "abs", "absolute"), homogeneous),
    "prelu": prelu,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), zeros),
}
