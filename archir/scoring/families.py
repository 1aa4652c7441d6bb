"""Families of candidates in a graph, which are scored together, and the candidates themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from archir.cost import Cost
from archir.ir.graph import Graph
from archir.rewrite.derived import DerivedPerturbation
from archir.rewrite.miss import Miss, missed
from archir.rewrite.morphism import Morphism, Site, WidthMorphism
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.set_cost import cost_of
from archir.rewrite.spec import format_spec


@dataclass(frozen=True, eq=False)
class Family:
    """Candidates that are scored together; it is itself alone, whatever another one holds.

    Attributes:
        graph: where they are applied.
        morphism: the kind of rewrite.
        site: where it is, and its members.
        measured: the graph in which they are scored: the same, or that with the statistics of the batch.
    """

    graph: Graph = field(repr=False)
    morphism: Morphism
    site: Site
    measured: Graph = field(repr=False)

    @property
    def label(self) -> str:
        """What it is and where, for people."""
        return f"{self.morphism.name} {self.site.label}"

    @property
    def miss(self) -> Miss | None:
        """Why it cannot be scored, None if it can.

        Raises:
            PassError: a member does not apply.
        """
        return self._found if isinstance(self._found, Miss) else None

    @property
    def perturbation(self) -> Perturbation:
        """What its members do to the activations.

        Raises:
            PassError: it cannot be scored.
        """
        if isinstance(self._found, Miss):
            raise missed(self.measured, f"{self.label} cannot be scored", self._found)
        return self._found

    @cached_property
    def claims(self) -> frozenset[int]:
        """The calls that no other rewrite of a set may claim; a change of a width claims none."""
        found = self.perturbation
        return found.claims if isinstance(found, DerivedPerturbation) else frozenset(e.node for e in found.edges)

    @cached_property
    def cost(self) -> Cost:
        """What one member adds to the cost of the graph, for one example; units of one width cost the same."""
        return cost_of(self.measured, self.site)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Its members, one after another."""
        return tuple(Candidate(self, (member,)) for member in range(len(self.site.members)))

    def united(self, members: Sequence[int]) -> Morphism | None:
        """Return one rewrite that does what some of its members do, None if there is none."""
        few = [self.site.members[m] for m in members]
        return few[0] if len(few) == 1 else few[0].united(few)

    @property
    def doubled(self) -> Family | None:
        """The family of twice as many units at the same place; None where there is none that can be scored."""
        if len(self.site.members) != 1:
            return None
        more = self.site.members[0].doubled(self.site.found)
        found = None if more is None else replace(self, site=replace(self.site, members=(more,)))
        return None if found is None or found.miss is not None else found

    @property
    def excluded(self) -> frozenset[str]:
        """The widths that no other rewrite of a set may give fresh units to: its own would do something else then."""
        member = self.site.members[0]
        if not isinstance(member, WidthMorphism):
            return frozenset()
        changes = member.changes(self.site.found)
        return frozenset(name for name, change in changes.items() if change.fresh and not change.adds_up)

    @cached_property
    def _found(self) -> Perturbation | Miss:
        return self.morphism.perturbation(self.measured, self.site)


@dataclass(frozen=True)
class Candidate:
    """A rewrite that may be applied: a member of a family, or several that are taken together.

    Attributes:
        family: the family it belongs to.
        members: their numbers in it; several only where one rewrite does what they do (`Family.united`).
    """

    family: Family
    members: tuple[int, ...]

    @cached_property
    def morphism(self) -> Morphism:
        """The rewrite, all its options given."""
        found = self.family.united(self.members)
        assert found is not None
        return found

    @cached_property
    def cost(self) -> Cost:
        """What it adds to the cost of the graph, alone, for one example."""
        if len(self.members) == 1:
            return self.family.cost
        return cost_of(self.family.measured, replace(self.family.site, members=(self.morphism,)))

    @property
    def spec(self) -> str:
        """Its text, which `archir.apply` takes."""
        return format_spec(self.morphism)


def find_families(
    graph: Graph, morphisms: Sequence[Morphism], *, measured: Graph | None = None
) -> tuple[list[Family], list[tuple[str, Miss]]]:
    """Return the families of candidates in a graph, and the sites that cannot be scored with the reasons.

    Args:
        graph: the graph.
        morphisms: the kinds of rewrite.
        measured: the graph in which they are scored, if it is another: one whose calls have the same ids.

    Raises:
        PassError: a morphism names a candidate that does not apply.
    """
    families: list[Family] = []
    misses: list[tuple[str, Miss]] = []
    there = graph if measured is None else measured
    for morphism in morphisms:
        for site in morphism.sites(there):
            family = Family(graph, morphism, site, there)
            if family.miss is None:
                families.append(family)
            else:
                misses.append((family.label, family.miss))
    return families, misses
