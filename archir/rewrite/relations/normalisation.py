"""Relations of normalisations: what goes in is undone, what comes out follows the affine parameters."""

from __future__ import annotations

from collections.abc import Mapping

from archir.axes.rules.norm import uses_batch_statistics
from archir.axes.terms import resolve
from archir.ir.node import Node, Value
from archir.rewrite.equations import Equations, Relation


def batch_norm(q: Equations, node: Node) -> None:
    """`batch_norm`, `instance_norm`: each channel for itself."""
    x = q.operand(node, "input")
    if not node.op.startswith("aten.instance_norm") and uses_batch_statistics(node):
        q.average(node, x, [axis for axis in range(q.rank(x)) if axis != 1], "a batch norm")
    for name in ("input", "running_mean", "running_var"):
        q.zero(node, q.variables(q.value(node, name)))
    _affine(q, node)


def group_norm(q: Equations, node: Node) -> None:
    """`group_norm`: statistics over the units inside a group; the groups are independent of each other."""
    doubled = q.widths.spell(node.id, {q.width.atom: 2 * q.width.size})
    counts_groups = doubled.arguments.get("num_groups") != node.argument("num_groups")
    if not counts_groups:
        q.average(node, q.operand(node, "input"), [1], "a group norm")
    q.zero(node, q.variables(q.operand(node, "input")))
    _affine(q, node)


def layer_norm(q: Equations, node: Node) -> None:
    """`layer_norm`, `rms_norm`: statistics over the last axes.

    Where every unit is normalised with all others and no more, k fresh ones may come to d that add nothing to the sum
    of squares: zero in an RMS norm, the mean of the others in a layer norm. What is divided by is then smaller by
    `√(d / (d + k))` (see `archir.rewrite.scales`); what comes out for them is their bias.
    """
    x, shape = q.operand(node, "input"), node.argument("normalized_shape")
    rank = len(shape) if isinstance(shape, tuple) else 1
    centred = not node.op.startswith("aten.rms_norm")
    kind = "a layer norm" if centred else "an RMS norm"
    if q.adding and rank == 1 and resolve(q.widths.axes[x][-1]) is q.width.atom:
        q.norms.append(node.id)
        (q.zero if centred else q.sum_over)(node, q.variables(x))
        bias = q.variables(q.value(node, "bias"))
        if bias:
            q.equal(node, q.variables(Value(node.id)), bias)
        return
    q.average(node, x, range(-rank, 0), kind)
    q.zero(node, q.variables(x))
    _affine(q, node)


def softmax(q: Equations, node: Node) -> None:
    """`softmax`, `log_softmax`: copies of a unit would share its weight."""
    dim = node.argument("dim")
    if isinstance(dim, int) and q.variables(q.operand(node, "self"), dim):
        q.forbid(node, "a softmax runs over it, and copies of a unit would share its weight")
    q.exact(node)


def _affine(q: Equations, node: Node) -> None:
    made = q.variables(Value(node.id))
    affine = [q.value(node, name) for name in ("weight", "bias") if name in node.arguments]
    present = [value for value in affine if value is not None]
    if not present:
        q.zero(node, made)
    for value in present:
        q.equal(node, made, q.variables(value))


RELATIONS: Mapping[str, Relation] = {
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "instance_norm": batch_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "softmax": softmax,
    "log_softmax": softmax,
}
