"""The cost of a set of candidates, read off sizes: no weight is touched, and only the calls that change are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from archir.axes.infer import infer_widths
from archir.axes.positions import size_of
from archir.axes.terms import Atom, Term, leaves
from archir.axes.widths import Widths
from archir.cost import Cost, Sizes, cost, cost_change, memory, node_cost
from archir.ir.graph import Graph, Patch
from archir.ir.node import Value
from archir.ir.structure import Structure
from archir.ir.types import ScalarType, TensorType, Type
from archir.rewrite.morphism import Morphism, Site, WidthMorphism
from archir.rewrite.pipeline import follow_widths, merged_changes, rewrite_together
from archir.rewrite.reindex import plan_reindexing, reindex, resized_type

_known: WeakKeyDictionary[Structure, dict[tuple[int, frozenset[tuple[Atom, int]], Sizes], Cost]] = WeakKeyDictionary()
"""What calls and stored tensors cost, by their node, the new sizes of the widths in them, and other sizes."""

_effects_of: WeakKeyDictionary[Structure, dict[WidthMorphism, list[tuple[Atom, frozenset[int], int]]]] = (
    WeakKeyDictionary()
)
"""For each width that a morphism changes, the units that go and how many come."""

_run_time: WeakKeyDictionary[Structure, Sequence[Term]] = WeakKeyDictionary()
"""What `_run_time_axes` has found."""


def cost_of(graph: Graph, site: Site) -> Cost:
    """Return what one member of a family adds to the cost of the graph, for one example; all add the same.

    Raises:
        PassError: it does not apply there.
    """
    member = site.members[0]
    if isinstance(member, WidthMorphism):
        return cost_of_set(graph, [member]) - cost(graph)
    return cost_change(member.rewrite(graph, site.found))


def cost_of_set(graph: Graph, members: Sequence[Morphism]) -> Cost:
    """Return the exact cost of a graph with a set of candidates applied, for one example.

    Args:
        graph: the graph they were found in.
        members: the candidates, which can be done together.

    Raises:
        PassError: those that are no changes of widths cannot, or a width is gone after them.
    """
    on_widths = [m for m in members if isinstance(m, WidthMorphism)]
    return cost_after(
        rewrite_together(graph, [(m, None) for m in members if not isinstance(m, WidthMorphism)]), on_widths
    )


def cost_after(spliced: Patch, on_widths: Sequence[WidthMorphism]) -> Cost:
    """Return the exact cost of a graph after some rewrites and then some changes of widths, for one example.

    Args:
        spliced: what the rewrites that are no changes of widths change.
        on_widths: the changes of widths, as they were found in the graph before.

    Raises:
        PassError: a width is gone after the other rewrites.
    """
    found = cost(spliced.before) + cost_change(spliced)
    if not on_widths:
        return found
    widths = infer_widths(spliced.after)
    followed = [(m, None) for m in on_widths]
    removed: dict[Atom, set[int]] = {}
    sizes: dict[Atom, int] = {}
    for morphism, _ in follow_widths(spliced, followed):
        for atom, gone, more in _effects(widths, morphism):
            removed.setdefault(atom, set()).update(gone)
            sizes[atom] = sizes.get(atom, atom.size) + more
    sizes = {atom: size - len(removed[atom]) for atom, size in sizes.items()}
    if any(size_of(term, sizes) != term.size for term in _run_time_axes(widths)):
        named = follow_widths(spliced, followed)
        return cost(reindex(plan_reindexing(widths, merged_changes(widths, named)), by="").after)
    return found + resizing_cost(widths, sizes)


def effect_on_sizes(widths: Widths, morphism: WidthMorphism) -> Mapping[Atom, int]:
    """Return by how much a morphism changes the size of each width it acts on."""
    found: dict[Atom, int] = {}
    for atom, gone, more in _effects(widths, morphism):
        found[atom] = found.get(atom, 0) + more - len(gone)
    return found


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
    return cost(graph) + resizing_cost(widths, {widths[name].atom: size for name, size in sizes.items()})


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


def resizing_cost(widths: Widths, sizes: Mapping[Atom, int]) -> Cost:
    """Return what other sizes of widths add to the cost of a graph, for one example."""
    found, made = _resized_calls(widths, sizes)
    kept = memory(widths.graph)
    total, peak = kept.resized(made)
    return Cost(found.parameters, found.flops, total - kept.total, peak - kept.peak)


def bytes_alive(widths: Widths, sizes: Mapping[Atom, int]) -> Sequence[int]:
    """Return the bytes that are kept while each call of a graph runs, where widths have other sizes."""
    _, made = _resized_calls(widths, sizes)
    found: Sequence[int] = memory(widths.graph).followed(made)[1].tolist()
    return found


def _resized_calls(widths: Widths, sizes: Mapping[Atom, int]) -> tuple[Cost, Mapping[int, int]]:
    """Return the parameters and FLOPs that other sizes of widths add, and the bytes of the results that change."""
    graph, known = widths.graph, _known.setdefault(widths.graph.structure, {})
    near: dict[int, list[Atom]] = {}
    by_atom = widths.analysis.by_atom
    for atom, size in sizes.items():
        if size != atom.size and atom in by_atom:
            for id_ in widths.nodes(by_atom[atom]):
                near.setdefault(id_, []).append(atom)
    parameters = flops = 0
    made: dict[int, int] = {}
    for id_, atoms in near.items():
        counts = []
        for new in ({}, {a: sizes[a] for a in atoms}):
            key = id_, frozenset(new.items()), graph.signature.sizes
            if key not in known:
                known[key] = node_cost(_Resized(widths, new), graph.node(id_), sizes=graph.signature.sizes)
            counts.append(known[key])
        was, now = counts
        parameters, flops = parameters + now.parameters - was.parameters, flops + now.flops - was.flops
        if graph.node(id_).is_call:
            made[id_] = now.bytes
    return Cost(parameters, flops), made


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
