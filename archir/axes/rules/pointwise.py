"""Axis rule of pointwise operators, found by `torch.Tag.pointwise`: broadcast axes are one."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule
from archir.axes.terms import Term, unify


def pointwise(c: Context) -> Sequence[Sequence[Term]]:
    """Any operator in which each element depends on the elements it is aligned with."""
    tensors = [c.axes[v] for _, v in c.node.operands() if v in c.axes]
    result = c.broadcast(*tensors)
    return [result for _ in c.sizes]


def prelu(c: Context) -> Sequence[Sequence[Term]]:
    """`prelu`: one slope, or one for each channel."""
    x, slope = c.operand("self"), c.operand("weight")
    if slope and slope[0].size > 1:
        unify(x[1] if len(x) > 1 else x[0], slope[0])
    return [x]


RULES: dict[str, Rule] = {"aten.prelu.default": prelu} | {
    f"aten.{op}": pointwise
    for op in (
        "where.self",
        "where.ScalarOther",
        "masked_fill.Scalar",
        "masked_fill.Tensor",
        "zeros_like.default",
        "ones_like.default",
        "full_like.default",
        "relu6.default",
        "selu.default",
        "log_sigmoid.default",
        "softplus.default",
        "clip.default",
        "rsub.Scalar",
        "rsub.Tensor",
        "square.default",
        "bernoulli.default",
    )
}
