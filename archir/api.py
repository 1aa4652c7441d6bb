"""The functions of the public face that need the passes, the axes and the frontends together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archir.axes.infer import infer_widths
from archir.axes.widths import Widths
from archir.cost import Cost
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism, Pass
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import format_spec, parse_specs
from passes.catalog import PASSES
from passes.catalog import morphisms as default_morphisms


@dataclass(frozen=True)
class Candidate:
    """A rewrite that may be applied.

    Attributes:
        morphism: the rewrite.
        cost: what it adds to the cost of the graph, for one example.
    """

    morphism: Morphism
    cost: Cost

    @property
    def spec(self) -> str:
        """Its text, which `archir.apply` takes."""
        return format_spec(self.morphism)


def widths(graph: Graph) -> Widths:
    """Return the widths of a graph: the free ones, and through `.frozen` the others with their reasons."""
    return infer_widths(graph)


def apply(graph: Graph, passes: str | Pass | Sequence[Pass], *, registry: Mapping[str, type[Pass]] = PASSES) -> Graph:
    """Apply passes, given as text (`"split{width=w3, units=[5]}; prune{width=w1, units=[0]}"`) or as objects.

    Raises:
        ParseError: the text is not a specification.
        PassError: a pass does not apply.
    """
    if isinstance(passes, str):
        return apply_passes(graph, parse_specs(passes, registry))
    return apply_passes(graph, [passes] if isinstance(passes, Pass) else passes)


def candidates(graph: Graph, morphisms: Sequence[Morphism] | None = None) -> list[Candidate]:
    """Return every candidate rewrite of a graph, with its cost.

    Args:
        graph: the graph.
        morphisms: the kinds of rewrite; split and prune if not given.
    """
    found: list[Candidate] = []
    for morphism in default_morphisms() if morphisms is None else morphisms:
        for site in morphism.sites(graph):
            applicable = [m for m in site.members if m.match(graph) is None]
            if applicable:
                # Units of one width cost the same.
                price = applicable[0].cost(graph)
                found += [Candidate(m, price) for m in applicable]
    return found
