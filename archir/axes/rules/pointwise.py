"""Axis rules of pointwise operators: broadcast axes are one."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule
from archir.axes.terms import Term, unify


def pointwise(c: Context) -> Sequence[Sequence[Term]]:
    """Any operator in which each element depends on the elements it is aligned with."""
    result = c.broadcast(*map(c.axes_of, c.node.values))
    return [result for _ in c.sizes]


def broadcast_tensors(c: Context) -> Sequence[Sequence[Term]]:
    """`broadcast_tensors`: every operand in the shape of all."""
    result = c.broadcast(*c.operands("tensors"))
    return [result for _ in c.sizes]


def prelu(c: Context) -> Sequence[Sequence[Term]]:
    """`prelu`: one slope, or one for each channel."""
    x, slope = c.operand("self"), c.operand("weight")
    if slope and slope[0].size > 1:
        unify(x[1] if len(x) > 1 else x[0], slope[0])
    return [x]


def like(c: Context) -> Sequence[Sequence[Term]]:
    """`zeros_like`, `randn_like`, ...: a new tensor of the same shape."""
    return [c.operand("self")]


LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like")

RULES: dict[str, Rule] = {
    "aten.prelu.default": prelu,
    "aten.broadcast_tensors.default": broadcast_tensors,
    **{f"aten.{op}.default": like for op in LIKE},
}
