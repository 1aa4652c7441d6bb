"""Axis rules of reductions."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule
from archir.axes.terms import Term, unit
from archir.ir.node import Argument, Node

POSITIONAL = frozenset({"argmax", "argmin", "max", "min", "prod", "any", "all"})
"""Reductions whose result says where, or cannot do without a unit."""


def reduction(c: Context) -> Sequence[Sequence[Term]]:
    """`mean`, `sum`, `amax`, `var`, `norm`, ...: the axis vanishes, or stays with size one."""
    x, name = c.operand("self"), c.node.op.split(".")[1]
    dims = reduced_axes(c.node, len(x))
    over = [x[d] for d in dims]
    c.role(over, "reduced")
    if name in POSITIONAL:
        c.freeze(over, f"{name} runs over it")
    keep = bool(c.node.arguments.get("keepdim", False))
    result = [unit() if d in dims else a for d, a in enumerate(x) if keep or d not in dims]
    return [result for _ in c.sizes]


def reduced_axes(node: Node, rank: int) -> list[int]:
    """Return the axes a reduction of a tensor of some rank runs over."""
    given: Argument = node.arguments.get("dim")
    if given is None or given == ():
        return list(range(rank))
    return [d % rank for d in (given if isinstance(given, tuple) else (given,)) if isinstance(d, int)]


RULES: dict[str, Rule] = {
    f"aten.{op}": reduction
    for op in (
        *("mean.dim", "mean.default", "sum.dim_IntList", "sum.default", "nansum.default"),
        *("amax.default", "amin.default", "max.default", "min.default", "max.dim", "min.dim"),
        *("argmax.default", "argmin.default", "any.default", "any.dim", "any.dims", "all.default", "all.dim"),
        *("all.dims", "prod.default", "prod.dim_int", "logsumexp.default", "linalg_vector_norm.default"),
        *("var.default", "var.dim", "var.correction", "var_mean.default", "var_mean.dim", "var_mean.correction"),
        *("std.default", "std.dim", "std.correction", "std_mean.default", "std_mean.dim", "std_mean.correction"),
        *("norm.Scalar", "norm.ScalarOpt_dim"),
    )
}
