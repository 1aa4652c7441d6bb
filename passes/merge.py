"""Merge: two units that are nearly alike become one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import torch

from archir.axes.positions import contains, gather_index, unit_index
from archir.axes.widths import Width, Widths
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Value
from archir.rewrite.changes import Change
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site, UnitMorphism, check_units
from archir.rewrite.multiplicity import Exponents, solve_exponents
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.replay import Replay
from archir.rewrite.subgraph import Subgraph, Values, overlaps, standing_twice, unmatched_subgraph_of
from archir.rewrite.theta import Theta


@dataclass(frozen=True)
class Merge(UnitMorphism):
    """Merge pairs of units: one unit with the mean of their weights and the sum of their outgoing weights.

    It is the inverse of a split: two units that are the same become one with the function kept. The unit keeps the
    lower number of its pair.

    Attributes:
        width: name of the width.
        units: the units, one pair after the other.

    Source: ours; Srinivas, Babu 2015 for merging alike units of linear layers.
    """

    name: ClassVar[str] = "merge"
    summary: ClassVar[str] = "merge pairs of units that are nearly alike"
    preserves: ClassVar[str] = "all but the merged units"

    units: tuple[int, ...] = ()

    def units_of(self, widths: Widths, width: Width) -> Iterator[Self]:
        """Yield disjoint pairs, nearest incoming weights first, if units can be merged."""
        exponents = _exponents(widths, width)
        if not isinstance(exponents, Miss) and width.size > 1:
            for pair in nearest_pairs(_incoming(widths, width, exponents)):
                yield replace(self, width=width.name, units=pair)

    def united(self, members: Sequence[Self]) -> Self:
        """Return one that merges the pairs of several."""
        return replace(self, units=tuple(u for m in members for u in m.units))

    def miss(self, widths: Widths, width: Width) -> Miss | None:
        """Say why the units cannot be merged, or None if they can."""
        found = _exponents(widths, width)
        if isinstance(found, Miss):
            return found
        check_units(self, self.units, width)
        return Miss("its units are no pairs") if not self.units or len(self.units) % 2 else None

    def perturbation(self, graph: Graph, site: Site[Widths]) -> MergePerturbation | Miss:
        """Return the change of activations for all pairs of a family at once."""
        widths = site.found
        width = widths[site.label]
        subgraph = unmatched_subgraph_of(widths, width)
        if isinstance(subgraph, Miss):
            return subgraph
        if (miss := standing_twice(width, "its units")) is not None:
            return miss
        change = Change((), merged=tuple(m.change(width).merged[0] for m in site.members if isinstance(m, Merge)))
        carried = {v for values in subgraph.carried.values() for v in values if graph.node(v.node).op == PARAMETER}
        partners: dict[int, tuple[int, torch.Tensor]] = {}
        for place in width.places:
            if Value(place.node) in carried and graph.tensors[place.node].is_floating_point():
                index = gather_index(place.term, {width.atom: change.partners(width.size)}, {})
                partners[place.node] = place.axis, index
        if not partners:
            return Miss("no stored tensor makes its units")
        return MergePerturbation(subgraph, change.merged, partners)

    def change(self, width: Width, theta: Theta | None = None) -> Change:
        """Return the units after the merge: those that stay, in order.

        Raises:
            PassError: the units are no pairs, or one of them is out of range or named twice.
        """
        if not self.units or len(self.units) % 2:
            raise PassError("merge needs pairs of units", hint=f"merge{{width={width.name}, units=[0, 1]}}")
        units = check_units(self, self.units, width)
        pairs = tuple((min(pair), max(pair)) for pair in zip(units[::2], units[1::2], strict=True))
        gone = {other for _, other in pairs}
        return Change(tuple(u for u in range(width.size) if u not in gone), merged=pairs)


@dataclass(frozen=True)
class MergePerturbation:
    """`Δ = h((w_i + w_j) / 2) − h(w)` at both units of each pair, on every end of the subgraph, for all pairs at once.

    Attributes:
        subgraph: the subgraph of the width.
        pairs: the pairs of units.
        partners: for each stored tensor that makes units, the axis along which they lie, and for each position along
            it that of the other unit of the pair.
    """

    subgraph: Subgraph
    pairs: tuple[tuple[int, int], ...]
    partners: Mapping[int, tuple[int, torch.Tensor]]

    @property
    def members(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @cached_property
    def edges(self) -> Mapping[Edge, Members]:
        """The ends of the subgraph; both units of a pair belong to it."""
        owner = torch.full((self.subgraph.width.size + 1,), -1)
        for number, pair in enumerate(self.pairs):
            owner[list(pair)] = number
        return {edge: replace(m, index=owner[m.index]) for edge, m in self.subgraph.members.items()}

    @property
    def needs(self) -> frozenset[Value]:
        """Values of the unchanged program that are read."""
        return self.replay.needs

    @cached_property
    def replay(self) -> Replay:
        """The subgraph with other weights."""
        return Replay(self.subgraph, self.partners)

    @property
    def theta(self) -> Theta:
        """Nothing to learn."""
        return {}

    def initial_theta(self, values: Values, seed: int) -> Theta:
        """Return nothing."""
        return {}

    def delta(self, values: Values, theta: Theta) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every end."""
        steps: dict[int, torch.Tensor] = {}
        for id_, (axis, index) in self.partners.items():
            tensor = values[Value(id_)]
            steps[id_] = (tensor.index_select(axis, index.to(tensor.device)) - tensor) / 2
        (new,) = self.replay(values, steps)
        return {use: new[v] - values[v] if v in new else torch.zeros_like(values[v]) for use, v in self.subgraph.ends}


def _exponents(widths: Widths, width: Width) -> Exponents | Miss:
    """Return how units are stored, or why two of them cannot become one."""
    found = solve_exponents(widths, width)
    if isinstance(found, Miss):
        return found
    overlapping = [p.node for p in width.places if overlaps((p.term,), width.atom)]
    if overlapping:
        return Miss("two factors of an axis of a tensor have it", tuple(overlapping))
    picking = [p.node for p in width.places if not widths.graph.tensors[p.node].is_floating_point()]
    if picking:
        return Miss("an index tensor or a mask has it, whose numbers have no mean", tuple(picking))
    return found.uniform or found


def _incoming(widths: Widths, width: Width, exponents: Exponents) -> torch.Tensor:
    """Return what is stored of each unit and makes it what it is; `[units, numbers of each]`."""
    graph = widths.graph
    parts = [torch.zeros(width.size, 0, dtype=torch.float64)]
    for place in width.places:
        tensor = graph.tensors[place.node].double().movedim(place.axis, 0).cpu()
        for occurrence, exponent in enumerate(exponents.of(Value(place.node), place.axis)):
            if exponent == 0 and graph.node(place.node).is_trainable and contains(place.term, width.atom):
                owner = unit_index(place.term, width.atom, occurrence)
                order = owner.argsort(stable=True)[int((owner < 0).sum()) :]
                parts.append(tensor[order].reshape(width.size, -1))
    return torch.cat(parts, 1)


def nearest_pairs(points: torch.Tensor) -> list[tuple[int, int]]:
    """Return disjoint pairs of points, each time the nearest two of those that are left; `[points, dimensions]`.

    Pairs that are nearest to each other are taken together, which comes to the same.
    """
    squares = points.square().sum(1)
    distance = squares[:, None] + squares[None, :] - 2 * points @ points.T
    distance = (distance + distance.T).fill_diagonal_(torch.inf)
    left = torch.arange(len(points))
    found: list[tuple[float, int, int]] = []
    while len(left) > 1:
        lengths, nearest = distance[left][:, left].min(1)
        mutual = (nearest[nearest] == torch.arange(len(left))).nonzero()[:, 0]
        firsts = mutual[mutual < nearest[mutual]]
        found += [(float(lengths[i]), int(left[i]), int(left[nearest[i]])) for i in firsts]
        kept = torch.ones(len(left), dtype=torch.bool)
        kept[mutual] = False
        left = left[kept]
    return [(one, other) for _, one, other in sorted(found)]
