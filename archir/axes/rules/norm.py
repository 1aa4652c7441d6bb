"""Axis rules of normalisations."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, Spelling
from archir.axes.terms import Atom, Product, Term, unify
from archir.ir.node import Node


def batch_norm(c: Context) -> Sequence[Sequence[Term]]:
    """`batch_norm`, `instance_norm`: statistics and affine parameters of each channel."""
    x = c.operand("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        for axis in c.operand(name):
            unify(x[1], axis)
    if c.node.op.startswith("aten.instance_norm"):
        c.freeze(x[2:], "a spatial axis")
    elif uses_batch_statistics(c.node):
        c.role([x[0], *x[2:]], "norm")
    return [x, *([x[1]] for _ in c.sizes[1:])]


def uses_batch_statistics(node: Node) -> bool:
    """Say whether a batch normalisation takes its statistics from the batch even in evaluation mode."""
    return bool(node.arguments.get("training")) or node.arguments.get("running_mean") is None


def group_norm(c: Context) -> Sequence[Sequence[Term]]:
    """`group_norm`: statistics over the channels of each group."""
    x, count = c.operand("input"), c.integer("num_groups")
    groups, inner = Atom(count), Atom(x[1].size // count)
    unify(x[1], Product((groups, inner)))
    c.role([inner], "norm")
    c.freeze(x[2:], "a spatial axis")
    for name in ("weight", "bias"):
        for axis in c.operand(name):
            unify(x[1], axis)
    c.spell(lambda size: Spelling({"num_groups": size(groups)}))
    return [x]


def layer_norm(c: Context) -> Sequence[Sequence[Term]]:
    """`layer_norm`, `rms_norm`: statistics over the last axes."""
    x = c.operand("input")
    axes = x[len(x) - len(c.integers("normalized_shape")) :]
    c.role(axes, "norm")
    for name in ("weight", "bias"):
        if name in c.node.arguments and c.operand(name):
            c.unify_all(axes, c.operand(name))
    c.spell(lambda size: Spelling({"normalized_shape": tuple(map(size, axes))}))
    return [x]


def softmax(c: Context) -> Sequence[Sequence[Term]]:
    """`softmax`, `log_softmax`: normalised along one axis."""
    x = c.operand("self")
    c.role([x[c.integer("dim")]], "norm")
    return [x]


RULES: dict[str, Rule] = {
    "aten.batch_norm.default": batch_norm,
    "aten._native_batch_norm_legit_no_training.default": batch_norm,
    "aten.instance_norm.default": batch_norm,
    "aten.group_norm.default": group_norm,
    "aten.layer_norm.default": layer_norm,
    "aten.rms_norm.default": layer_norm,
    "aten.softmax.int": softmax,
    "aten.log_softmax.int": softmax,
}
