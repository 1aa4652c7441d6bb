"""Relations of reductions."""

from __future__ import annotations

from collections.abc import Mapping

from archir.axes.rules.reduce import reduced_axes
from archir.axes.terms import resolve
from archir.ir.node import Node, Value
from archir.rewrite.equations import Equations, Relation, Variable


def mean(q: Equations, node: Node) -> None:
    """`mean`: exact if all units repeat equally; linear along other axes. It becomes less with fresh units of zero."""
    over, kept = _split(q, node)
    x = q.operand(node, "self")
    axes = reduced_axes(node, q.rank(x))
    if q.adding and [resolve(q.widths.axes[x][axis]) for axis in axes if q.variables(x, axis)] == [q.width.atom]:
        q.means.append(node.id)
        q.sum_over(node, over)
    else:
        q.average(node, x, axes, "a mean")
        q.zero(node, over)
    q.equal(node, q.variables(Value(node.id)), kept)


def total(q: Equations, node: Node) -> None:
    """`sum`: a contraction with ones; linear along other axes."""
    over, kept = _split(q, node)
    for variable in over:
        q.contract(node, [variable])
    q.equal(node, q.variables(Value(node.id)), kept)


def extremum(q: Equations, node: Node) -> None:
    """`amax`, `amin`: copies change nothing, a fresh unit may be the largest; homogeneous along other axes."""
    over, kept = _split(q, node)
    if over:
        q.forbid_fresh(node, "an extremum runs over it, and a fresh unit may be the largest or smallest")
    q.zero(node, over)
    q.equal(node, q.variables(Value(node.id)), kept)


def statistic(q: Equations, node: Node) -> None:
    """`var`, `std`, `norm`, `logsumexp`, ...: no correction is known."""
    over, _ = _split(q, node)
    if over:
        q.forbid(node, f"{node.op.split('.')[1]} runs over it")
    q.exact(node)


def _split(q: Equations, node: Node) -> tuple[list[Variable], list[Variable]]:
    """Return the occurrences along the axes that vanish, and the others."""
    x = q.operand(node, "self")
    dims = reduced_axes(node, q.rank(x))
    over = [v for d in dims for v in q.variables(x, d)]
    return over, [v for d in range(q.rank(x)) if d not in dims for v in q.variables(x, d)]


STATISTICS = ("var", "var_mean", "std", "std_mean", "logsumexp", "linalg_vector_norm", "norm", "nansum")
RELATIONS: Mapping[str, Relation] = {
    "mean": mean,
    "sum": total,
    "amax": extremum,
    "amin": extremum,
    **dict.fromkeys(STATISTICS, statistic),
}
