"""Axis rule of fused attention. Hand-written attention needs none: it is matrix products and a softmax."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, Spelling
from archir.axes.terms import Atom, Product, Term, unify


def scaled_dot_product_attention(c: Context) -> Sequence[Sequence[Term]]:
    """`softmax(q kᵀ / sqrt(d)) v`: the size `d` is summed over, and is in the scale unless that is given."""
    q, k, v, mask = (c.operand(n) for n in ("query", "key", "value", "attn_mask"))
    if c.node.argument("enable_gqa"):
        # Query heads `h*r` share the key and value heads `h`.
        unify(q[-3], Product((k[-3], Atom(q[-3].size // k[-3].size))))
        unify(k[-3], v[-3])
        c.broadcast(q[:-3], k[:-3], v[:-3])
    else:
        c.broadcast(q[:-2], k[:-2], v[:-2])
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    c.freeze([q[-2], k[-2]], "a sequence axis")
    c.role([q[-1]], "matched")
    if mask:
        c.broadcast([*q[:-2], q[-2], k[-2]], mask)
    head, size_now = q[-1], q[-1].size
    if c.node.argument("scale") is None:
        c.role([head], "scale")
        c.spell(lambda size: Spelling({} if size(head) == size_now else {"scale": size_now**-0.5}))
    return [[*q[:-1], v[-1]]]


RULES: dict[str, Rule] = {"aten.scaled_dot_product_attention.default": scaled_dot_product_attention}
