"""Morphisms: rewrites that keep the function at θ = 0 and can be scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Self, cast, final

from typing_extensions import TypeVar

from archir.axes.infer import infer_widths
from archir.axes.widths import Width, Widths
from archir.errors import PassError
from archir.ir.graph import Graph, Patch
from archir.rewrite.changes import Change
from archir.rewrite.derived import derive_perturbation
from archir.rewrite.miss import Miss, missed
from archir.rewrite.passes import Pass
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.reference import Later
from archir.rewrite.reindex import plan_reindexing, reindex
from archir.rewrite.spec import format_spec
from archir.rewrite.theta import Theta

Found = TypeVar("Found", default=Any)
"""What a morphism has to find out about a place before it can be carried out there."""


@dataclass(frozen=True)
class Site(Generic[Found]):
    """A family of candidates.

    Attributes:
        label: where it is, for people (`w3`).
        members: the candidates of the family; each is a morphism with all its options given.
        found: what `match` returns for each of them.
    """

    label: str
    members: tuple[Morphism[Found], ...]
    found: Found


class Morphism(Pass, Generic[Found]):
    """A pass that keeps the function at θ = 0 (or, for removals, whose effect is known), and can be scored.

    A subclass says where it may be tried, what it finds there, and how it is carried out with that.
    """

    @abstractmethod
    def candidates(self, graph: Graph) -> Iterable[Self]:
        """Return what may be tried in a graph; only those that match are candidates in the end."""

    @abstractmethod
    def match(self, graph: Graph) -> Found | Miss:
        """Return what it needs to know to be carried out, or why it does not apply.

        Raises:
            PassError: it names something that is not there.
        """

    @abstractmethod
    def rewrite(self, graph: Graph, found: Found) -> Patch:
        """Carry it out.

        Args:
            graph: the graph.
            found: what `match` has returned for it.

        Raises:
            PassError: it cannot be done.
        """

    def united(self, members: Sequence[Self]) -> Self | None:
        """Return one rewrite that does what some members of its family do; None if there is none, as here."""
        return None

    def doubled(self, found: Found) -> Self | None:
        """Return the same with twice as many units, for what comes in any size; None for all else, as here.

        Args:
            found: what `match` has returned for it.
        """
        return None

    def part_of(self, found: Found, larger: Self, theta: Theta) -> Theta | None:
        """Return what part of θ of a larger one at the same place is for what this one brings; None if none, as here.

        Args:
            found: what `match` has returned for both.
            larger: one that `doubled` has led to.
            theta: θ of that.
        """
        return None

    @property
    def label(self) -> str:
        """Where it is, for people: the first of its options."""
        first, *_ = fields(cast(Any, self))
        return str(getattr(self, first.name))

    @final
    def patch(self, graph: Graph) -> Patch:
        """Return what it changes.

        Raises:
            PassError: it does not apply there.
        """
        found = self.match(graph)
        if isinstance(found, Miss):
            raise missed(graph, f"{format_spec(self)} does not apply", found)
        return self.rewrite(graph, found)

    def sites(self, graph: Graph) -> Iterator[Site[Found]]:
        """Yield the families of candidates in a graph; a family is what is scored together."""
        for candidate in self.candidates(graph):
            found = candidate.match(graph)
            if not isinstance(found, Miss):
                yield Site(candidate.label, (candidate,), found)

    def perturbation(self, graph: Graph, site: Site[Found]) -> Perturbation | Miss:
        """Return what a family of candidates does to the activations, or why that cannot be said.

        Unless a subclass knows a cheaper way, it is derived from what changes in the graph; the family then has one
        member.

        Raises:
            PassError: it does not apply there.
        """
        (member,) = site.members
        return derive_perturbation(member.rewrite(graph, site.found))


@dataclass(frozen=True)
class WidthMorphism(Morphism[Widths]):
    """A morphism that changes the units of one or more widths."""

    @abstractmethod
    def changes(self, widths: Widths, theta: Theta | None = None) -> Mapping[str, Change]:
        """Return what it makes of the units of each width it changes, by name.

        Raises:
            PassError: it names a width or a unit that is not there.
        """

    def rewrite(self, graph: Graph, found: Widths) -> Patch:
        """Change the units.

        Raises:
            PassError: the function cannot be kept.
        """
        return reindex(plan_reindexing(found, self.changes(found)), by=format_spec(self))


@dataclass(frozen=True)
class UnitMorphism(WidthMorphism):
    """A morphism that changes the units of one width.

    Attributes:
        width: name of the width.
    """

    width: str = ""

    @abstractmethod
    def change(self, width: Width, theta: Theta | None = None) -> Change:
        """Return what it makes of the units of its width.

        Raises:
            PassError: it names a unit that is not there.
        """

    @abstractmethod
    def units_of(self, widths: Widths, width: Width) -> Iterable[Self]:
        """Return the candidates of a width, which are scored together; none if it does not apply there."""

    def miss(self, widths: Widths, width: Width) -> Miss | None:
        """Say why it does not apply to a width, or None if it does.

        Raises:
            PassError: it names a unit that is not there.
        """
        return None

    def changes(self, widths: Widths, theta: Theta | None = None) -> Mapping[str, Change]:
        """Return what it makes of the units of its width."""
        return {self.width: self.change(widths[self.width], theta)}

    def match(self, graph: Graph) -> Widths | Miss:
        """Return the widths of the graph, or why it does not apply.

        Raises:
            PassError: there is no such width, or no such unit.
        """
        widths = infer_widths(graph)
        return self.miss(widths, widths[self.width]) or widths

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield the candidates of all widths."""
        return (member for site in self.sites(graph) for member in cast(tuple[Self, ...], site.members))

    def sites(self, graph: Graph) -> Iterator[Site[Widths]]:
        """Yield a family for each width it applies to."""
        widths = infer_widths(graph)
        for width in widths:
            members = tuple(self.units_of(widths, width))
            if members:
                yield Site(width.name, members, widths)

    def followed(self, later: Later) -> Self:
        """Return the same for the name its width has in a later graph.

        Raises:
            PassError: the width is no longer there.
        """
        return replace(self, width=later.width(self.width))


def check_units(morphism: UnitMorphism, units: tuple[int, ...], width: Width) -> tuple[int, ...]:
    """Return the units a morphism acts on; all of them if none are named.

    Raises:
        PassError: a unit is out of range or named twice.
    """
    wrong = [u for u in units if not 0 <= u < width.size]
    if wrong:
        why = f"width {width.name} has units 0 to {width.size - 1}, not {wrong[0]}"
        raise PassError(f"{format_spec(morphism)} does not apply", why=why)
    if len(set(units)) < len(units):
        raise PassError(f"{format_spec(morphism)} does not apply", why="a unit is named twice")
    return units or tuple(range(width.size))
