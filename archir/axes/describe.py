"""Widths as text for people, and as names of axes for the text form of a graph."""

from __future__ import annotations

from archir.axes.terms import leaves
from archir.axes.widths import Width, Widths
from archir.ir.node import Value
from archir.ir.text import AxisNames


def describe(widths: Widths) -> str:
    """Return a table of the widths of a graph: name, size, roles or reason, and the axes of each tensor they stand in.

    w0 | 16 | contracted, produced | stem.weight: w0, 3, 3, 3; fc.weight: f0, w0
    f0 | 10 | frozen: an axis of an output | fc.weight: f0, w0; fc.bias: f0
    free widths reach 100% of the trainable parameters
    """
    lines = [f"{w.name} | {w.size} | {', '.join(sorted(w.roles))} | {places_of(widths, w)}" for w in widths]
    lines += [f"{w.name} | {w.size} | frozen: {w.reason} | {places_of(widths, w)}" for w in widths.frozen]
    return "\n".join([*lines, f"free widths reach {widths.coverage:.0%} of the trainable parameters"])


def places_of(widths: Widths, width: Width) -> str:
    """Return the tensors a width stands in, each with its axes: `stem.weight: w0, 3, 3, 3; stem.bias: w0`."""
    tensors = dict.fromkeys(place.parameter for place in width.places)
    return "; ".join(f"{name}: {widths.notation_of(name)}" for name in tensors)


def axis_names(widths: Widths) -> AxisNames:
    """Return the names of the axes in which free widths stand, as `print_graph` takes them."""
    free = {w.atom for w in widths}

    def names(value: Value) -> tuple[str, ...]:
        terms = widths.axes.get(value, ())
        return tuple(widths.notation(t) if not free.isdisjoint(leaves(t)) else "" for t in terms)

    return {n.id: tuple(map(names, n.made)) for n in widths.graph.nodes}
