"""Candidates: rewrites that may be applied, with their cost."""

from __future__ import annotations

from dataclasses import dataclass

from archir.cost import Cost
from archir.rewrite.morphism import Morphism
from archir.rewrite.spec import format_spec


@dataclass(frozen=True)
class Candidate:
    """A rewrite that may be applied.

    Attributes:
        morphism: the rewrite, all its options given.
        cost: what it adds to the cost of the graph, alone, for one example.
    """

    morphism: Morphism
    cost: Cost

    @property
    def spec(self) -> str:
        """Its text, which `archir.apply` takes."""
        return format_spec(self.morphism)
