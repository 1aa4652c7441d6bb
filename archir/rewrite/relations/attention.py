"""Relations of fused attention."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.node import Node, Value
from archir.rewrite.equations import Equations, Relation


def scaled_dot_product_attention(q: Equations, node: Node) -> None:
    """`softmax(q kᵀ) v`: the head size of q and k is contracted, all that is in v stays."""
    query, key, value = (q.operand(node, n) for n in ("query", "key", "value"))
    mask, out = q.value(node, "attn_mask"), Value(node.id)
    q.contract(node, q.variables(query, -1), q.variables(key, -1))
    for operand in (query, key):
        for axis in range(q.rank(operand) - 1):
            q.zero(node, q.variables(operand, axis))
    q.zero(node, q.variables(mask))
    q.equal(node, q.variables(out, -1), q.variables(value, -1))
    for back in range(2, q.rank(out) + 1):
        q.equal(node, q.variables(out, -back), q.variables(value, -back) if back <= q.rank(value) else [])


RELATIONS: Mapping[str, Relation] = {"scaled_dot_product_attention": scaled_dot_product_attention}
