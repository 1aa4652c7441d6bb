"""Axis rules of reductions."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule
from archir.axes.terms import Term, unit
from archir.ir.node import Argument


def reduction(c: Context) -> Sequence[Sequence[Term]]:
    """`mean`, `sum`, `amax`, `var`, `norm`, ...: the axis vanishes, or stays with size one."""
    x = c.operand("self")
    dims = _dims(c, len(x))
    c.role([x[d] for d in dims], "reduced")
    if c.node.op.split(".")[1] in ("argmax", "argmin", "max", "min", "median", "topk", "prod"):
        c.freeze([x[d] for d in dims], f"{c.node.op.split('.')[1]} runs over it")
    keep = bool(c.node.arguments.get("keepdim", False))
    result = [unit() if d in dims else a for d, a in enumerate(x) if keep or d not in dims]
    return [result for _ in c.sizes]


def _dims(c: Context, rank: int) -> list[int]:
    given: Argument = next((c.node.arguments[n] for n in ("dim", "dims") if n in c.node.arguments), None)
    if given is None or given == ():
        return list(range(rank))
    return [d % rank for d in (given if isinstance(given, tuple) else (given,)) if isinstance(d, int)]


RULES: dict[str, Rule] = {
    f"aten.{op}": reduction
    for op in (
        "mean.dim",
        "mean.default",
        "sum.dim_IntList",
        "sum.default",
        "amax.default",
        "amin.default",
        "max.dim",
        "min.dim",
        "argmax.default",
        "argmin.default",
        "logsumexp.default",
        "prod.dim_int",
        "var.dim",
        "var.correction",
        "std.dim",
        "std.correction",
        "var_mean.correction",
        "linalg_vector_norm.default",
        "norm.ScalarOpt_dim",
    )
}
