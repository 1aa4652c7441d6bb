"""Axis rules of convolutions: `x.C ~ groups * weight.in`, `weight.out ~ groups * o`."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, Spelling
from archir.axes.terms import Atom, Product, Term, unify


def convolution(c: Context) -> Sequence[Sequence[Term]]:
    """`conv1d`, `conv2d`, `conv3d`, and `convolution` that is not transposed."""
    if c.node.arguments.get("transposed"):
        return transposed_convolution(c)
    x, weight, bias = c.operand("input"), c.operand("weight"), c.operand("bias")
    spatial = len(weight) - 2
    batch, channels = x[: -spatial - 1], x[-spatial - 1]
    _couple(c, channels, inner=weight[1], outer=weight[0])
    if bias:
        unify(bias[0], weight[0])
    return [[*batch, weight[0], *_spatial(c, x, weight, spatial)]]


def transposed_convolution(c: Context) -> Sequence[Sequence[Term]]:
    """`conv_transpose1d`, `conv_transpose2d`, `conv_transpose3d`: weight `[in, out per group, kernel]`."""
    x, weight, bias = c.operand("input"), c.operand("weight"), c.operand("bias")
    spatial = len(weight) - 2
    batch, channels = x[: -spatial - 1], x[-spatial - 1]
    groups = c.integer("groups")
    outer: Term = weight[1]
    if groups > 1:
        shared = Atom(groups)
        unify(weight[0], Product((shared, Atom(weight[0].size // groups))))
        outer = Product((shared, weight[1]))
        c.spell(lambda size: Spelling({"groups": size(shared)}))
    unify(channels, weight[0])
    c.role([weight[0]], c.contraction("weight"))
    c.role([outer], "produced")
    if bias:
        unify(bias[0], outer)
    return [[*batch, outer, *_spatial(c, x, weight, spatial)]]


def _couple(c: Context, channels: Term, *, inner: Term, outer: Term) -> None:
    groups = c.integer("groups")
    c.role([inner], c.contraction("weight"))
    if groups == 1:
        c.role([outer], "produced")
        unify(channels, inner)
        return
    shared, own = Atom(groups), Atom(outer.size // groups)
    unify(channels, Product((shared, inner)))
    unify(outer, Product((shared, own)))
    c.role([own], "produced")
    c.spell(lambda size: Spelling({"groups": size(shared)}))


def _spatial(c: Context, x: Sequence[Term], weight: Sequence[Term], spatial: int) -> list[Term]:
    c.freeze(weight[2:], "a kernel size")
    c.freeze(x[-spatial:], "a spatial axis")
    return c.fresh("a spatial axis")[-spatial:]


RULES: dict[str, Rule] = {
    **{f"aten.conv{n}d.{overload}": convolution for n in (1, 2, 3) for overload in ("default", "padding")},
    "aten.convolution.default": convolution,
    "aten.conv_transpose1d.default": transposed_convolution,
    "aten.conv_transpose2d.input": transposed_convolution,
    "aten.conv_transpose3d.input": transposed_convolution,
}
