"""Split: a unit becomes two, with half the outgoing weight each, that may then differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import torch

from archir.axes.positions import unit_index
from archir.axes.terms import Term
from archir.axes.widths import Width, Widths
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.tensor_map import along
from archir.rewrite.changes import Change
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site, UnitMorphism, check_units
from archir.rewrite.multiplicity import solve_exponents
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.replay import Replay
from archir.rewrite.subgraph import Subgraph, Values, unmatched_subgraph_of
from archir.rewrite.theta import Key, Theta, by_node, noise_like


@dataclass(frozen=True)
class Split(UnitMorphism):
    """Split units of a width: the children hold the weights `w + θ` and `w - θ` and half the outgoing weights.

    The function is kept at θ = 0. The first child keeps the number of the unit, the second is appended.

    Attributes:
        width: name of the width.
        units: the units to split; all of them if empty.

    Source: Lawton, Galstyan, Ver Steeg 2024 for channels; widths of any wiring are ours.
    """

    name: ClassVar[str] = "split"
    summary: ClassVar[str] = "split units in two that may differ"
    preserves: ClassVar[str] = "the function"

    units: tuple[int, ...] = ()

    def units_of(self, widths: Widths, width: Width) -> Iterator[Self]:
        """Yield one for each unit, if units can be split one by one."""
        found = solve_exponents(widths, width)
        units = range(width.size) if not isinstance(found, Miss) and found.uniform is None else ()
        return (replace(self, width=width.name, units=(unit,)) for unit in units)

    def united(self, members: Sequence[Self]) -> Self:
        """Return one that splits the units of several."""
        return replace(self, units=tuple(u for m in members for u in m.units))

    def miss(self, widths: Widths, width: Width) -> Miss | None:
        """Say why the units cannot be split, or None if they can."""
        found = solve_exponents(widths, width)
        if isinstance(found, Miss):
            return found
        return None if len(check_units(self, self.units, width)) == width.size else found.uniform

    def perturbation(self, graph: Graph, site: Site[Widths]) -> SplitPerturbation | Miss:
        """Return the change of activations for all units of a width at once."""
        widths = site.found
        width = widths[site.label]
        subgraph = unmatched_subgraph_of(widths, width)
        if isinstance(subgraph, Miss):
            return subgraph
        if not subgraph.weights:
            return Miss("no trainable weight makes its units")
        weights: Theta = {w: graph.tensors[w] for w in subgraph.weights}
        return SplitPerturbation(
            subgraph, weights, {w: _mask(widths.axes[Value(w)], subgraph) for w in subgraph.weights}
        )

    def change(self, width: Width, theta: Theta | None = None) -> Change:
        """Return the units after the split: the old ones, then the second children.

        Raises:
            PassError: a unit is out of range.
        """
        units = check_units(self, self.units, width)
        sign = tuple(int(u in set(units)) for u in range(width.size)) + (-1,) * len(units)
        source = (*range(width.size), *units)
        return Change(source, sign=sign, theta=theta) if theta else Change(source)


def _mask(terms: tuple[Term, ...], subgraph: Subgraph) -> torch.Tensor | None:
    """Return ones where a weight belongs to some unit, None if it does everywhere; broadcastable to its shape."""
    for axis, term in enumerate(terms):
        owner = unit_index(term, subgraph.width.atom)
        if (owner >= 0).any() and not (owner >= 0).all():
            return along(axis, owner >= 0, len(terms))
    return None


@dataclass(frozen=True)
class SplitPerturbation:
    """`Δ(θ) = ½[h(w + θ) + h(w − θ)] − h(w)` on every end of the subgraph, for all units at once.

    Attributes:
        subgraph: the subgraph of the width.
        theta: each weight that makes units; θ changes it.
        masks: for each weight, where it belongs to units of the width.
    """

    subgraph: Subgraph
    theta: Theta
    masks: Mapping[int, torch.Tensor | None]

    @property
    def members(self) -> int:
        """Number of units."""
        return self.subgraph.width.size

    @property
    def edges(self) -> Mapping[Edge, Members]:
        """The ends of the subgraph."""
        return self.subgraph.members

    @property
    def needs(self) -> frozenset[Value]:
        """Values of the unchanged program that are read."""
        return self.replay.needs

    @cached_property
    def replay(self) -> Replay:
        """The subgraph with other weights."""
        return Replay(self.subgraph, by_node(self.theta))

    def initial_theta(self, values: Values, seed: int) -> Theta:
        """Return a tenth of the weights' standard deviation, at random."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[Key, torch.Tensor] = {}
        for w in self.subgraph.weights:
            weight = values[Value(w)]
            found[w] = noise_like(weight, generator) * weight.std() * 0.1
        return found

    def delta(self, values: Values, theta: Theta) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every end."""
        masked: dict[int, torch.Tensor] = {}
        for w, change in by_node(theta).items():
            mask = self.masks[w]
            masked[w] = change if mask is None else change * mask.to(change)
        plus, minus = self.replay(values, masked, (1, -1))
        return {
            use: (plus[v] + minus[v]).mul_(0.5).sub_(values[v]) if v in plus else torch.zeros_like(values[v])
            for use, v in self.subgraph.ends
        }
