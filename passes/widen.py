"""Widen: fresh units whose outgoing weights are zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from archir.axes.positions import mixes, positions, unit_index
from archir.axes.terms import Term, resolve
from archir.axes.widths import Width, Widths
from archir.errors import PassError
from archir.ir.execute import Call, compile_call
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.ir.room import too_large
from archir.rewrite.changes import Change
from archir.rewrite.derived import derive_perturbation
from archir.rewrite.fresh_perturbation import FreshPerturbation, FreshPlaces
from archir.rewrite.fresh_units import solve_fresh
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site, UnitMorphism
from archir.rewrite.multiplicity import solve_exponents
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.reindex import plan_reindexing
from archir.rewrite.remembered import remembered
from archir.rewrite.subgraph import (
    Subgraph,
    Values,
    call_for,
    makes_linearly,
    members_of,
    standing_twice,
    unmatched_subgraph_of,
)
from archir.rewrite.theta import Key, Theta, by_node, noise_like

MANY = 64
"""How many fresh units a set may hold of a width that has fewer itself."""

BYTES_OF_UNIT = 100
"""What a unit takes at least, whatever tensors it stands in: its number, and where that goes in each."""


@dataclass(frozen=True)
class Widen(UnitMorphism):
    """Append fresh units to a width; they are random, and zero where they go out.

    The function is kept at θ = 0; θ = (W, V) are the incoming and outgoing weights of the fresh units, at first
    (random, 0). Under a normalisation W is what they hold beyond the mean of the others, at first zero, and V random;
    see `archir.rewrite.fresh_units`.

    Attributes:
        width: name of the width.
        count: number of fresh units.
        rest: as a kind of rewrite, only of widths of which no single unit can be split and scored.

    Source: Chen, Goodfellow, Shlens 2016 (Net2Net) for the idea; zero outgoing weights as in
        Evci et al. 2022 (GradMax).
    """

    name: ClassVar[str] = "widen"
    summary: ClassVar[str] = "append fresh units with zero outgoing weights"
    preserves: ClassVar[str] = "the function"

    count: int = 1
    rest: bool = False

    def units_of(self, widths: Widths, width: Width) -> tuple[Self, ...]:
        """Return one candidate if the width can take fresh units."""
        if self.miss(widths, width) or (self.rest and _splits(widths, width)):
            return ()
        return (replace(self, width=width.name, rest=False),)

    def doubled(self, found: Widths) -> Self | None:
        """Return one of twice as many units, None where these are more than the width has, and many."""
        count = 2 * self.count
        return replace(self, count=count) if count <= max(found[self.width].size, MANY) else None

    def part_of(self, found: Widths, larger: Self, theta: Theta) -> Theta | None:
        """Return θ of the first of the fresh units of one of more of them, None if it has fewer."""
        if larger.count < self.count:
            return None
        width = found[self.width]
        size, sizes = width.size + self.count, {width.atom: width.size + larger.count}
        fresh, part = torch.arange(width.size, width.size + larger.count), dict[Key, torch.Tensor]()
        places = {place.node: place for place in width.places}
        for node, tensor in by_node(theta).items():
            place = places[node]
            units = unit_index(place.term, width.atom, None, sizes)[positions(place.term, width.atom, fresh, sizes)]
            part[node] = tensor.index_select(place.axis, (units < size).nonzero()[:, 0].to(tensor.device))
        return part

    def miss(self, widths: Widths, width: Width) -> Miss | None:
        """Say why the width cannot take fresh units, or None if it can."""
        found = solve_fresh(widths, width)
        return found if isinstance(found, Miss) else None

    def perturbation(self, graph: Graph, site: Site[Widths]) -> WidenPerturbation | FreshPerturbation | Miss:
        """Return the change of activations that the fresh units of a width make together."""
        (candidate,) = site.members
        assert isinstance(candidate, Widen)
        widths, width = site.found, site.found[site.label]
        found = solve_fresh(widths, width)
        if isinstance(found, Miss):
            return found
        apart = ends_apart(widths, width)
        return _among_others(widths, width, candidate) if apart is None else _apart(widths, width, candidate, apart)

    def changes(self, widths: Widths, theta: Theta | None = None) -> Mapping[str, Change]:
        """Return the units of the width and the fresh ones, and whether these add up with others."""
        width = widths[self.width]
        return {self.width: replace(self.change(width, theta), adds_up=adds_up(widths, width))}

    def change(self, width: Width, theta: Theta | None = None) -> Change:
        """Return the units of the width and the fresh ones.

        Raises:
            PassError: the number of fresh units is not positive, or there is no room for them.
        """
        if self.count < 1:
            raise PassError("widen needs a positive number of fresh units", why=f"count is {self.count}")
        why = too_large(BYTES_OF_UNIT * (width.size + self.count))
        if why:
            raise PassError(f"width {width.name} cannot have so many units", why=why)
        return Change(tuple(range(width.size + self.count)), fresh=self.count, values=theta or {})


@dataclass(frozen=True)
class WidenPerturbation:
    """`Δ = V h(W x)` on the results of the calls that sum over the width, for all fresh units together.

    Attributes:
        edges: the results that change.
        theta: what W and V are measured by: tensors of their shape, as large as the weights of the other units.
        fixed: what the fresh units hold in all stored tensors before learning.
        calls: the calls of the subgraph and its ends, for the fresh units alone.
        results: the calls at the ends.
        needs: the values of the unchanged program that are read.
    """

    edges: Mapping[Edge, Members]
    theta: Theta
    fixed: Mapping[int, torch.Tensor]
    calls: Mapping[int, Call]
    results: tuple[int, ...]
    needs: frozenset[Value]

    @property
    def members(self) -> int:
        """One: the fresh units are scored together."""
        return 1

    def initial_theta(self, values: Values, seed: int) -> Theta:
        """Return W as the fresh units are born, and V small and random."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[Key, torch.Tensor] = {}
        for id_ in by_node(self.theta):
            fixed = self.fixed[id_]
            if bool(fixed.any()):
                found[id_] = fixed.clone()
            else:
                found[id_] = noise_like(fixed, generator) * values[Value(id_)].std() * 0.1
        return found

    def delta(self, values: Values, theta: Theta) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on the results of the calls at the ends."""
        new: dict[Value, torch.Tensor] = {Value(i): t for i, t in {**self.fixed, **by_node(theta)}.items()}
        for id_, call in self.calls.items():
            for i, result in enumerate(call(lambda v: new[v] if v in new else values[v])):
                new[Value(id_, i)] = result
        return {Value(id_): new[Value(id_)] for id_ in self.results}


@remembered
def ends_apart(widths: Widths, width: Width) -> Subgraph | None:
    """Return where the fresh units of a width are evaluated without the others; None where they cannot be."""
    found, subgraph = solve_fresh(widths, width), unmatched_subgraph_of(widths, width)
    if isinstance(found, Miss) or found.acts_on_others or isinstance(subgraph, Miss):
        return None
    if standing_twice(width, "fresh units"):
        return None
    ends = [widths.graph.node(use.node) for use, _ in subgraph.ends]
    touched = [term for node in (*subgraph.nodes, *ends) for term in _terms(widths, node)]
    made = {node.id for node in ends}
    reads_ends = any(value.node in made for node in subgraph.nodes for value in node.values)
    if any(mixes(term, width.atom) for term in touched) or not all(map(makes_linearly, ends)) or reads_ends:
        return None
    return subgraph


@remembered
def adds_up(widths: Widths, width: Width) -> bool:
    """Say whether what fresh units of a width do is a sum over them, and the same whatever others come besides.

    What is drawn for them and not learned depends on how many there are, so matrices have to be learned.
    """
    graph = widths.graph
    drawn = (p for p in width.places if len(widths.axes[Value(p.node)]) > 1 and not graph.node(p.node).is_trainable)
    return ends_apart(widths, width) is not None and not any(drawn)


def _splits(widths: Widths, width: Width) -> bool:
    """Say whether single units of a width can be split, and what that does can be scored."""
    found, subgraph = solve_exponents(widths, width), unmatched_subgraph_of(widths, width)
    alone = not isinstance(found, Miss) and found.uniform is None
    return alone and not isinstance(subgraph, Miss) and bool(subgraph.weights)


def _apart(widths: Widths, width: Width, candidate: Widen, subgraph: Subgraph) -> WidenPerturbation:
    """Return what fresh units do, evaluated without the others."""
    graph, atom, count = widths.graph, width.atom, candidate.count
    ends = [graph.node(use.node) for use, _ in subgraph.ends]
    edges: dict[Edge, Members] = {Value(node.id): members_of(widths, Value(node.id), None) for node in ends}
    fixed = _born(widths, width, candidate)
    learned = _learned(graph, fixed)
    calls = {n.id: compile_call(call_for(widths, n, atom, count, bias=True)) for n in subgraph.nodes}
    calls |= {n.id: compile_call(call_for(widths, n, atom, count, bias=False)) for n in ends}
    ordered = dict(sorted(calls.items(), key=lambda item: graph.structure.position[item[0]]))
    read = {v for n in (*subgraph.nodes, *ends) for v in n.values if v.node not in {**fixed, **calls}}
    needs = frozenset(read | set(map(Value, by_node(learned))))
    return WidenPerturbation(edges, learned, fixed, ordered, tuple(n.id for n in ends), needs)


def _learned(graph: Graph, born: Mapping[int, torch.Tensor]) -> Theta:
    """Return what is learned of fresh units, matrices and kernels, each by what it is measured by."""
    return {
        id_: torch.full_like(held, float(graph.tensors[id_].square().mean().sqrt()) or 1.0)
        for id_, held in born.items()
        if graph.node(id_).is_trainable and held.dim() > 1
    }


def _among_others(widths: Widths, width: Width, candidate: Widen) -> FreshPerturbation | Miss:
    """Return what fresh units do where they cannot be evaluated apart: all calls that see them are."""
    miss = standing_twice(width, "fresh units")
    if miss is not None:
        return miss
    patch = candidate.rewrite(widths.graph, widths)
    derived = derive_perturbation(patch)
    if isinstance(derived, Miss):
        return derived
    fresh, sizes = torch.arange(width.size, width.size + candidate.count), {width.atom: width.size + candidate.count}
    places: dict[int, FreshPlaces] = {}
    units = solve_fresh(widths, width)
    assert not isinstance(units, Miss)
    for place in width.places:
        tensor = patch.after.tensors[place.node]
        index = positions(place.term, width.atom, fresh, sizes).to(tensor.device)
        born = tensor.index_select(place.axis, index)
        if (Value(place.node), place.axis) in units.means:
            born = torch.zeros_like(born)
        places[place.node] = FreshPlaces(place.axis, index, tensor.shape, born)
    learned = _learned(widths.graph, {id_: found.born for id_, found in places.items()})
    return FreshPerturbation(derived, places, learned) if learned else Miss("no trainable weight makes its units")


def _born(widths: Widths, width: Width, candidate: Widen) -> dict[int, torch.Tensor]:
    """Return what the fresh units hold in every stored tensor as they are born."""
    size = width.size + candidate.count
    plan = plan_reindexing(widths, {width.name: candidate.change(width)})
    fresh, sizes = torch.arange(width.size, size), {width.atom: size}
    found: dict[int, torch.Tensor] = {}
    for place in width.places:
        extended = plan.map(place.node).weight(widths.graph.tensors[place.node])
        index = positions(place.term, width.atom, fresh, sizes).to(extended.device)
        found[place.node] = extended.index_select(place.axis, index)
    return found


def _terms(widths: Widths, node: Node) -> Iterator[Term]:
    for value in (*node.values, *node.made):
        yield from map(resolve, widths.axes.get(value, ()))
