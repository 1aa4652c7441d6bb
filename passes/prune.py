"""Prune: units are removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from archir.axes.widths import Width, Widths
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.changes import Change
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Site, UnitMorphism, check_units
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.subgraph import Subgraph, Values, subgraph_of
from archir.rewrite.theta import Theta


@dataclass(frozen=True)
class Prune(UnitMorphism):
    """Remove units of a width: the same function as with zeros in their place wherever they are summed over.

    Zeros in their parameters do the same, unless something else is made of zero (by a sigmoid, say, or by division)
    before the units are summed over against something that is computed: the role is `matched` then. Widths with the
    role `norm` or `reduced` are the exception: the statistics then run over fewer units.

    Attributes:
        width: name of the width.
        units: the units to remove.

    Source: Lawton, Galstyan, Ver Steeg 2024 for channels; widths of any wiring are ours.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "remove units"
    preserves: ClassVar[str] = "all but the removed units"

    units: tuple[int, ...] = ()

    def units_of(self, widths: Widths, width: Width) -> Iterator[Self]:
        """Yield one for each unit."""
        return (replace(self, width=width.name, units=(unit,)) for unit in range(width.size))

    def united(self, members: Sequence[Self]) -> Self:
        """Return one that removes the units of several."""
        return replace(self, units=tuple(u for m in members for u in m.units))

    def miss(self, widths: Widths, width: Width) -> Miss | None:
        """Say why the units cannot be removed, or None if they can."""
        if not self.units:
            return Miss("it names no units to remove")
        return Miss("no unit would be left") if len(check_units(self, self.units, width)) == width.size else None

    def perturbation(self, graph: Graph, site: Site[Widths]) -> PrunePerturbation | Miss:
        """Return the change of activations for all units of a width at once."""
        subgraph = subgraph_of(site.found, site.found[site.label])
        return subgraph if isinstance(subgraph, Miss) else PrunePerturbation(subgraph)

    def change(self, width: Width, theta: Theta | None = None) -> Change:
        """Return the units that stay.

        Raises:
            PassError: a unit is out of range, or none would be left.
        """
        if not self.units:
            raise PassError("prune needs the units to remove", hint=f"prune{{width={width.name}, units=[0]}}")
        removed = set(check_units(self, self.units, width))
        return Change(tuple(u for u in range(width.size) if u not in removed))


@dataclass(frozen=True)
class PrunePerturbation:
    """`Δ = −h` on every end of the subgraph, for all units at once."""

    subgraph: Subgraph

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
        return frozenset(v for _, v in self.subgraph.ends)

    @property
    def theta(self) -> Theta:
        """Nothing to learn."""
        return {}

    def initial_theta(self, values: Values, seed: int) -> Theta:
        """Return nothing."""
        return {}

    def delta(self, values: Values, theta: Theta) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every end."""
        return {use: -values[v] for use, v in self.subgraph.ends}
