"""The subgraph of a width: the part of a graph that is evaluated anew when its units change, and where it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from archir.axes.positions import occurrences, unit_index
from archir.axes.terms import Atom, Sum, Term, leaves
from archir.axes.widths import Width, Widths
from archir.ir.execute import Call, compile_call
from archir.ir.node import Node, Use, Value
from archir.ir.registry import operator_of
from archir.ir.types import Type
from archir.rewrite.miss import Miss
from archir.rewrite.multiplicity import relate
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.remembered import remembered

Values = Mapping[Value, torch.Tensor]


@dataclass(frozen=True)
class Subgraph:
    """Where a width lives.

    Attributes:
        width: the width.
        nodes: calls whose results carry it, in order.
        ends: uses in which it is summed over, with the values there; perturbations are injected on them.
        weights: stored weights of two or more axes in which it is not summed over: what makes the units.
        members: how the units lie in the value on each end.
        matched: a call that sums it over between two activations, if there is one.
        carried: for each node, the operands that carry the width through it.
    """

    width: Width
    nodes: tuple[Node, ...]
    ends: tuple[tuple[Use, Value], ...]
    weights: tuple[int, ...]
    members: Mapping[Edge, Members]
    matched: Miss | None
    carried: Mapping[int, frozenset[Value]]

    @cached_property
    def calls(self) -> Mapping[int, Call]:
        """The calls, ready to be executed."""
        return {n.id: compile_call(n) for n in self.nodes}

    @cached_property
    def types(self) -> Mapping[Value, Type]:
        """The types of the results of the calls."""
        return {v: t for n in self.nodes for v, t in zip(n.made, n.results, strict=True)}

    @cached_property
    def changes(self) -> Mapping[int, Call]:
        """For nodes linear in a weight whose other operands stay: the call on the weight's change alone."""
        found: dict[int, Call] = {}
        for node in self.nodes:
            carriers = self.carried[node.id]
            weight = node.arguments.get("weight")
            if makes_linearly(node) and isinstance(weight, Value) and carriers <= {weight, node.arguments.get("bias")}:
                linear = {n: a for n, a in node.arguments.items() if n != "bias"}
                found[node.id] = compile_call(replace(node, arguments=linear))
        return found


def makes_linearly(node: Node) -> bool:
    """Say whether a call is a layer that is linear in its argument `weight`, any `bias` left out."""
    operator = operator_of(node.op)
    return operator.layer is not None and "weight" in operator.multilinear


@remembered
def subgraph_of(widths: Widths, width: Width) -> Subgraph | Miss:
    """Find the subgraph of a width.

    Returns:
        The subgraph, or the reason why its units cannot be looked at one by one.
    """
    graph = widths.graph
    equations = relate(widths, width)
    blocked = equations.miss or equations.uniform or equations.fresh or equations.mixed
    if blocked is not None:
        return blocked
    carrying = set(widths.values(width))
    for value in carrying:
        if graph.node(value.node).is_call and overlaps(widths.axes[value], width.atom):
            return Miss("a value has two axes of it, so its units cannot be told apart", (value.node,))
    ended = set(equations.ends)
    made = sorted({v.node for v in carrying}, key=graph.structure.position.__getitem__)
    nodes = tuple(n for n in map(graph.node, made) if n.is_call)
    carried = {n.id: frozenset(v for v in n.values if v in carrying and (n.id, v) not in ended) for n in nodes}
    ends: list[tuple[Use, Value]] = []
    members: dict[Edge, Members] = {}
    seen: set[int] = set()
    matched: Miss | None = None
    for id_, value in equations.ends:
        if graph.node(value.node).parameter:
            continue
        if id_ in seen:
            matched = Miss("two activations are multiplied along it", (id_,))
            continue
        use = next(u for u, v in graph.node(id_).operands() if v == value)
        ends.append((use, value))
        seen.add(id_)
        members[use] = members_of(widths, value, width.atom)
    if not ends:
        return Miss("it is nowhere summed over against an activation")
    weights = tuple(
        v.node
        for v in sorted(carrying)
        if graph.node(v.node).parameter and len(widths.axes[v]) > 1 and _makes_units(widths, v, ended)
    )
    return Subgraph(width, nodes, tuple(ends), weights, members, matched, carried)


def unmatched_subgraph_of(widths: Widths, width: Width) -> Subgraph | Miss:
    """Return the subgraph of a width that is summed over against stored weights alone, or why there is none."""
    found = subgraph_of(widths, width)
    return found if isinstance(found, Miss) else found.matched or found


def weighted_subgraph_of(widths: Widths, width: Width) -> Subgraph | Miss:
    """Return the subgraph of a width whose units trainable weights make, or why there is none."""
    found = subgraph_of(widths, width)
    return found if isinstance(found, Miss) or found.weights else Miss("no trainable weight makes its units")


def standing_twice(width: Width, units: str) -> Miss | None:
    """Return why some units cannot be evaluated apart where a width stands on two axes of a tensor, None elsewhere."""
    counts = Counter(place.node for place in width.places)
    twice = next((node for node, count in counts.items() if count > 1), None)
    return None if twice is None else Miss(f"a tensor has it on two axes, so {units} act on each other", (twice,))


def call_for(widths: Widths, node: Node, atom: Atom, units: int, *, bias: bool) -> Node:
    """Return a call as it is for so many units of an atom alone, with its bias or without."""
    spelling = widths.spell(node.id, {atom: units})
    arguments = {n: a for n, a in node.arguments.items() if n not in spelling.drop and (bias or n != "bias")}
    return replace(node, op=spelling.op or node.op, arguments=arguments | dict(spelling.arguments))


def overlaps(terms: Sequence[Term], atom: Atom) -> bool:
    """Say whether one element of a value can belong to two units of an atom."""

    def depth(term: Term) -> int:
        if isinstance(term, Atom):
            return int(term is atom)
        found = [depth(p) for p in term.parts]
        return max(found) if isinstance(term, Sum) else sum(found)

    return sum(map(depth, terms)) > 1


def _makes_units(widths: Widths, value: Value, ended: set[tuple[int, Value]]) -> bool:
    """Say whether a stored tensor carries a width into some call without being summed over it there."""
    trainable = widths.graph.node(value.node).is_trainable
    return trainable and any((u.node, value) not in ended for u in widths.graph.uses(value))


def members_of(widths: Widths, value: Value, atom: Atom | None) -> Members:
    """Return how units of an atom, or one member if it is None, lie in a value."""
    terms, analysis = widths.axes[value], widths.analysis
    along = [(i, leaf) for i, t in enumerate(terms) for leaf in leaves(t)]
    told = (place for atoms in (analysis.examples, analysis.rows) for place in along if place[1] in atoms)
    number, leaf = next(told, (None, None))
    axis = next((i for i in range(len(terms)) if i != number), 0)
    if atom is not None:
        axis = next(i for i, t in enumerate(terms) if occurrences(t, atom))
    index = torch.empty(0, dtype=torch.long)
    if terms and analysis.run_time.isdisjoint(leaves(terms[axis])):
        size = terms[axis].size
        index = torch.zeros(size, dtype=torch.long) if atom is None else unit_index(terms[axis], atom)
    run_time = frozenset(leaf for term in terms for leaf in leaves(term) if leaf in analysis.run_time)
    return Members(axis, index, number, None if number is None else terms[number], leaf, terms, run_time, atom)
