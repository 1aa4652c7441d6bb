"""Kinds of rewrite, of the widths alone that a model's own code lets change in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from archir.axes.widths import Widths
from archir.errors import GrowError
from archir.growing.plan import in_the_manner_of
from archir.growing.write_back import write_into
from archir.ir.graph import Graph
from archir.rewrite.changes import Change
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, Site, WidthMorphism
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.theta import Theta


@dataclass(frozen=True)
class InPlace(WidthMorphism):
    """A kind of rewrite of the widths of a graph, of some of them alone.

    Attributes:
        kind: the kind.
        widths: names of the widths, of one graph.
    """

    kind: WidthMorphism
    widths: frozenset[str] = field(repr=False)

    @property
    def name(self) -> str:  # type: ignore[override]  # that of the kind
        """What the kind is called."""
        return self.kind.name

    def candidates(self, graph: Graph) -> Iterable[WidthMorphism]:  # type: ignore[override]  # those of the kind
        """Return what may be tried in the graph."""
        members = (member for site in self.sites(graph) for member in site.members)
        return (member for member in members if isinstance(member, WidthMorphism))

    def match(self, graph: Graph) -> Widths | Miss:
        """Return what the kind needs to know to be carried out, or why it does not apply."""
        return self.kind.match(graph)

    def changes(self, widths: Widths, theta: Theta | None = None) -> Mapping[str, Change]:
        """Return what the kind makes of the units of each width it changes, by name."""
        return self.kind.changes(widths, theta)

    def sites(self, graph: Graph) -> Iterator[Site[Widths]]:
        """Yield the families of candidates of the kind that change these widths alone."""
        return (site for site in self.kind.sites(graph) if _changed(site) <= self.widths)

    def perturbation(self, graph: Graph, site: Site[Widths]) -> Perturbation | Miss:
        """Return what a family of candidates of the kind does to the activations, or why that cannot be said."""
        return self.kind.perturbation(graph, site)


def check_widths_only(kinds: Sequence[Morphism]) -> tuple[WidthMorphism, ...]:
    """Return kinds of rewrite that change widths.

    Raises:
        GrowError: one changes something else.
    """
    found = tuple(kind for kind in kinds if isinstance(kind, WidthMorphism))
    if others := [kind.name for kind in kinds if not isinstance(kind, WidthMorphism)]:
        raise GrowError(
            "only widths can change in place",
            why=f"{', '.join(others)} changes more",
            hint="take kinds of rewrite such as split and prune, or a loop of your own with archir.propose",
        )
    return found


def kinds_in_place(model: nn.Module, graph: Graph, kinds: Sequence[WidthMorphism]) -> tuple[InPlace, ...]:
    """Return kinds of rewrite, of those widths alone that can change in a model in place.

    One candidate for each width is put into the model, run, compared and taken out again: a model may split what it
    computes at places that are written into its code, as fused projections of queries, keys and values do.

    Args:
        model: the model, which is left as it is.
        graph: its graph.
        kinds: the kinds.

    Raises:
        GrowError: no width can change in place; the reason of the first is told.
    """
    can: dict[frozenset[str], GrowError | None] = {}
    for kind in kinds:
        for site in kind.sites(graph):
            if (widths := _changed(site)) not in can:
                can[widths] = _refused(model, graph, site)
    free = frozenset(name for widths, refused in can.items() if refused is None for name in widths)
    if not free and (first := next(iter(can.values()), None)) is not None:
        raise first
    return tuple(InPlace(kind, free) for kind in kinds)


def _changed(site: Site[Widths]) -> frozenset[str]:
    first = site.members[0]
    assert isinstance(first, WidthMorphism)
    return frozenset(first.changes(site.found))


def _refused(model: nn.Module, graph: Graph, site: Site[Widths]) -> GrowError | None:
    after = site.members[0].rewrite(graph, site.found).after
    try:
        write_into(model, graph, in_the_manner_of(model, after), after).take_back()
    except GrowError as error:
        return error
    return None
