"""The cost of a set of candidates, read off sizes: no weight is touched, and only the calls that change are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from archir.axes.infer import infer_widths
from archir.axes.positions import size_of
from archir.axes.terms import Atom, Term, leaves
from archir.axes.widths import Widths
from archir.cost import Cost, cost, cost_change, memory, node_cost
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.structure import Structure
from archir.ir.types import ScalarType, TensorType, Type
from archir.rewrite.morphism import Morphism, WidthMorphism
from archir.rewrite.pipeline import follow_widths, rewrite_together
from archir.rewrite.reindex import resized_type

_known: WeakKeyDictionary[Structure, dict[tuple[int, tuple[tuple[Atom, int], ...]], Cost]] = WeakKeyDictionary()
"""What calls and stored tensors cost, by their node and the new sizes of the widths in them."""

_effects_of: WeakKeyDictionary[Structure, dict[WidthMorphism, list[tuple[Atom, frozenset[int], int]]]] = (
    WeakKeyDictionary()
)
"""For each width that a morphism changes, the units that go and how many come."""

_run_time: WeakKeyDictionary[Structure, Sequence[Term]] = WeakKeyDictionary()
"""What `_run_time_axes` has found."""


def cost_of_set(graph: Graph, members: Sequence[Morphism]) -> Cost:
    """Return the exact cost of a graph with a set of candidates applied, for one example.

    Args:
        graph: the graph they were found in.
        members: the candidates, which can be done together.

    Raises:
        PassError: those that are no changes of widths cannot, or a width is gone after them.
    """
    on_widths = [(m, None) for m in members if isinstance(m, WidthMorphism)]
    spliced = rewrite_together(graph, [(m, None) for m in members if not isinstance(m, WidthMorphism)])
    found = cost(graph) + cost_change(spliced)
    if not on_widths:
        return found
    widths = infer_widths(spliced.after)
    removed: dict[Atom, set[int]] = {}
    sizes: dict[Atom, int] = {}
    for morphism, _ in follow_widths(spliced, on_widths):
        for atom, gone, more in _effects(widths, morphism):
            removed.setdefault(atom, set()).update(gone)
            sizes[atom] = sizes.get(atom, atom.size) + more
    sizes = {atom: size - len(removed[atom]) for atom, size in sizes.items()}
    if any(size_of(term, sizes) != term.size for term in _run_time_axes(widths)):
        return cost(rewrite_together(graph, [(m, None) for m in members]).after)
    return found + _resizing(widths, sizes)


def cost_of_sizes(graph: Graph, sizes: Mapping[str, int]) -> Cost:
    """Return the cost of a graph with other sizes of widths, for one example.

    Its peak may be lower, where sizes known at run time are no longer asked for once -1 can take their place.

    Args:
        graph: the graph.
        sizes: the new size of each width that changes, by name.

    Raises:
        PassError: there is no such width.
    """
    widths = infer_widths(graph)
    return cost(graph) + _resizing(widths, {widths[name].atom: size for name, size in sizes.items()})


def _run_time_axes(widths: Widths) -> Sequence[Term]:
    """Return the axes with widths in them that run-time sizes are given for.

    Where such a width changes, -1 takes the place of the number, and calls that are then not needed go, which changes
    how long others are kept.
    """
    graph, atoms = widths.graph, {width.atom for width in widths}
    if graph.structure not in _run_time:
        _run_time[graph.structure] = [
            term
            for node in graph.calls
            if any(isinstance(graph.type_of(v), ScalarType) for v in node.values)
            for i, type_ in enumerate(node.results)
            if isinstance(type_, TensorType)
            for size, term in zip(type_.shape, widths.axes.get(Value(node.id, i), ()), strict=False)
            if not isinstance(size, int) and not atoms.isdisjoint(leaves(term))
        ]
    return _run_time[graph.structure]


def _effects(widths: Widths, morphism: WidthMorphism) -> list[tuple[Atom, frozenset[int], int]]:
    """Return for each width that a morphism changes the units that go, and how many come."""
    known = _effects_of.setdefault(widths.graph.structure, {})
    if morphism not in known:
        known[morphism] = []
        for name, change in morphism.changes(widths).items():
            atom = widths[name].atom
            gone = frozenset(range(atom.size)).difference(change.source)
            known[morphism].append((atom, gone, len(change.source) - (atom.size - len(gone))))
    return known[morphism]


def _resizing(widths: Widths, sizes: Mapping[Atom, int]) -> Cost:
    """Return what other sizes of widths add to the cost of a graph."""
    graph, known = widths.graph, _known.setdefault(widths.graph.structure, {})
    near: dict[int, list[Atom]] = {}
    for width in widths:
        if sizes.get(width.atom, width.size) != width.size:
            for id_ in widths.nodes(width):
                near.setdefault(id_, []).append(width.atom)
    parameters = flops = 0
    made: dict[int, int] = {}
    for id_, atoms in near.items():
        counts = []
        for new in ({}, {a: sizes[a] for a in atoms}):
            key = id_, tuple(new.items())
            if key not in known:
                known[key] = node_cost(_Resized(widths, new), graph.node(id_))
            counts.append(known[key])
        was, now = counts
        parameters, flops = parameters + now.parameters - was.parameters, flops + now.flops - was.flops
        if graph.node(id_).is_call:
            made[id_] = now.bytes
    kept = memory(graph)
    total, peak = kept.resized(made)
    return Cost(parameters, flops, total - kept.total, peak - kept.peak)


@dataclass(frozen=True)
class _Resized:
    """The types of the values of a graph where some widths have other sizes."""

    widths: Widths
    sizes: Mapping[Atom, int]

    def type_of(self, value: Value) -> Type:
        """Return the type of a value."""
        type_ = self.widths.graph.type_of(value)
        axes = self.widths.axes.find(value)
        return type_ if axes is None or not isinstance(type_, TensorType) else resized_type(type_, axes, self.sizes)
