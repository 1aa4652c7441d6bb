"""Families of candidates in a graph, which are scored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from archir.axes.widths import Widths
from archir.cost import Cost
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.equations import Miss
from archir.rewrite.family import merge
from archir.rewrite.morphism import Morphism, Site, WidthMorphism
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.spec import format_spec


@dataclass(frozen=True)
class Family:
    """Candidates that are scored together.

    Attributes:
        graph: where they were found.
        morphism: the kind of rewrite.
        site: where it is, and its members.
        perturbation: what they do to the activations.
    """

    graph: Graph = field(repr=False)
    morphism: Morphism
    site: Site
    perturbation: Perturbation = field(repr=False)

    @cached_property
    def cost(self) -> Cost:
        """What one member adds to the cost of the graph; units of one width cost the same."""
        return self.site.members[0].cost(self.graph)


def find_families(graph: Graph, morphisms: Sequence[Morphism]) -> tuple[list[Family], list[tuple[str, Miss]]]:
    """Return the families of candidates in a graph, and the sites that cannot be scored with the reasons.

    Args:
        graph: the graph.
        morphisms: the kinds of rewrite.
    """
    families: list[Family] = []
    misses: list[tuple[str, Miss]] = []
    for morphism in morphisms:
        for site in morphism.sites(graph):
            found = morphism.perturbation(graph, site)
            if isinstance(found, Miss):
                misses.append((f"{morphism.name} {site.label}", found))
            else:
                families.append(Family(graph, morphism, site, found))
    return families, misses


def compatible(widths: Widths, morphisms: Sequence[Morphism]) -> bool:
    """Say whether candidates found in one graph can be applied together.

    No unit may be both removed and copied, and of every width some unit has to stay.
    """
    by_width: dict[str, list[WidthMorphism]] = {}
    for morphism in morphisms:
        if isinstance(morphism, WidthMorphism):
            by_width.setdefault(morphism.width, []).append(morphism)
    try:
        for name, members in by_width.items():
            if not merge(widths[name], [m.change(widths[name]) for m in members]).source:
                return False
    except PassError:
        return False
    return len({format_spec(m) for m in morphisms}) == len(morphisms)
