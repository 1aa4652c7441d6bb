"""Axis rules of operators that make tensors from nothing, or from a table."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.rules.context import Context, Rule, Spelling
from archir.axes.terms import Term, freeze
from archir.ir.node import Argument, Value


def embedding(c: Context) -> Sequence[Sequence[Term]]:
    """`embedding`: the vocabulary is fixed, the other axis is free."""
    table, indices = c.operand("weight"), c.operand("indices")
    freeze(table[0], "a vocabulary")
    c.role([table[1]], "produced")
    return [[*indices, table[1]]]


def constant(c: Context) -> Sequence[Sequence[Term]]:
    """`zeros`, `ones`, `full`, `empty`, `rand`: every unit is alike, so any size will do."""
    axes = c.units(0)
    given: Argument = c.node.argument("size")
    sizes = given if isinstance(given, tuple) else ()
    c.freeze([a for a, s in zip(axes, sizes, strict=True) if isinstance(s, Value)], "a run-time size")
    c.spell(
        lambda size: Spelling(
            {"size": tuple(s if isinstance(s, Value) else size(a) for s, a in zip(sizes, axes, strict=True))}
        )
    )
    return [axes]


def position(c: Context) -> Sequence[Sequence[Term]]:
    """`arange`, `linspace`, `eye`, `tril_indices`: every unit has a position."""
    return [c.fresh("its units are numbered", i) for i in range(len(c.sizes))]


RULES: dict[str, Rule] = {
    "aten.embedding.default": embedding,
    "aten.empty.memory_format": constant,
    **{
        f"aten.{op}.default": constant
        for op in ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
    },
    **{
        f"aten.{op}": position
        for op in (
            "arange.default",
            "arange.start",
            "arange.start_step",
            "linspace.default",
            "eye.default",
            "eye.m",
            "tril_indices.default",
            "triu_indices.default",
        )
    },
}
