"""Prune: units are removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from archir.axes.infer import infer_widths
from archir.axes.widths import Width
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.rewrite.equations import Miss
from archir.rewrite.family import apply_alone, check_units
from archir.rewrite.morphism import Site, Theta, WidthMorphism
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.region import Region, Values, region_of
from archir.rewrite.reindex import Change


@dataclass(frozen=True)
class Prune(WidthMorphism):
    """Remove units of a width: the same function as with noughts in their place wherever they are summed over.

    Noughts in their parameters do the same, unless something else is made of nought (by a sigmoid, say, or by division)
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

    def sites(self, graph: Graph) -> Iterator[Site]:
        """Yield a family for each width of two or more units."""
        for width in infer_widths(graph):
            yield Site(width.name, tuple(Prune(width.name, (unit,)) for unit in range(width.size)))

    def match(self, graph: Graph) -> Miss | None:
        """Say why the units cannot be removed, or None if they can."""
        width = infer_widths(graph)[self.width]
        return Miss("no unit would be left") if len(check_units(self, self.units, width)) == width.size else None

    def perturbation(self, graph: Graph, site: Site) -> PrunePerturbation | Miss:
        """Return the change of activations for all units of a width at once."""
        widths = infer_widths(graph)
        region = region_of(widths, widths[site.label])
        return region if isinstance(region, Miss) else PrunePerturbation(region)

    def change(self, width: Width, theta: Theta | None = None) -> Change:
        """Return the units that stay.

        Raises:
            PassError: a unit is out of range, or none would be left.
        """
        if not self.units:
            raise PassError("prune needs the units to remove", mend=f"prune{{width={width.name}, units=[0]}}")
        removed = set(check_units(self, self.units, width))
        return Change(tuple(u for u in range(width.size) if u not in removed))

    def apply(self, graph: Graph, theta: Theta | None = None) -> Graph:
        """Return the graph without the units.

        Raises:
            PassError: there is no such width or unit, or none would be left.
        """
        return apply_alone(self, graph)


@dataclass(frozen=True)
class PrunePerturbation:
    """`Δ = −h` on every end of the region, for all units at once."""

    region: Region

    @property
    def members(self) -> int:
        """Number of units."""
        return self.region.width.size

    @property
    def edges(self) -> Mapping[Edge, Members]:
        """The ends of the region."""
        return self.region.members

    @property
    def needs(self) -> frozenset[Value]:
        """Values of the unchanged program that are read."""
        return frozenset(v for _, v in self.region.ends)

    @property
    def theta(self) -> Mapping[int, torch.Tensor]:
        """Nothing to learn."""
        return {}

    def initial_theta(self, values: Values, seed: int) -> Mapping[int, torch.Tensor]:
        """Return nothing."""
        return {}

    def delta(self, values: Values, theta: Mapping[int, torch.Tensor]) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every end."""
        return {use: -values[v] for use, v in self.region.ends}
