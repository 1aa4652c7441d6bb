"""Families of candidates in a graph, which are scored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from archir.axes.infer import infer_widths
from archir.cost import Cost
from archir.errors import PassError
from archir.ir.graph import Graph
from archir.rewrite.derived import DerivedPerturbation
from archir.rewrite.equations import Miss
from archir.rewrite.family import merged_changes
from archir.rewrite.morphism import Morphism, Site, WidthMorphism
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.pipeline import rewrite_together
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
    def claims(self) -> frozenset[int]:
        """The calls that no other rewrite of a set may claim; a change of a width claims none."""
        found = self.perturbation
        return found.claims if isinstance(found, DerivedPerturbation) else frozenset(e.node for e in found.edges)

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
        for site in morphism.families(graph):
            found = morphism.perturbation(graph, site)
            if isinstance(found, Miss):
                misses.append((f"{morphism.name} {site.label}", found))
            else:
                families.append(Family(graph, morphism, site, found))
    return families, misses


def compatible(graph: Graph, families: Sequence[Family], members: Sequence[Morphism]) -> bool:
    """Say whether candidates found in one graph can be applied together.

    No unit may be both removed and copied, of every width some unit has to stay, no two rewrites that are no
    changes of widths may claim the same call, and none may bring tensors of other shapes because of those before it.

    Args:
        graph: the graph.
        families: the family of each candidate.
        members: the candidates.
    """
    if len({format_spec(m) for m in members}) < len(members):
        return False
    claimed: set[int] = set()
    for family, morphism in zip(families, members, strict=True):
        if isinstance(morphism, WidthMorphism):
            continue
        claims = family.claims
        if claims & claimed:
            return False
        claimed |= claims
    try:
        if claimed:
            # θ of a splice has the shapes of what it is measured by; a change of a width has one size alone
            like = [
                None if isinstance(m, WidthMorphism) else f.perturbation.theta
                for f, m in zip(families, members, strict=True)
            ]
            rewrite_together(graph, list(zip(members, like, strict=True)))
        else:
            widths = infer_widths(graph)
            on_widths = [(m, None) for m in members if isinstance(m, WidthMorphism)]
            return all(change.source for change in merged_changes(widths.graph, on_widths).values())
    except PassError:
        return False
    return True
