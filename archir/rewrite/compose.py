"""Composites: a sequence of rewrites that is itself a rewrite, with one score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.errors import PassError
from archir.ir.graph import Graph, Patch
from archir.ir.patch import no_patch
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.passes import Pass
from archir.rewrite.reference import Later
from archir.rewrite.spec import format_specs


@dataclass(frozen=True)
class Compose(Morphism[Patch]):
    """Apply rewrites one after another, each named as in the graph the one before it has made.

    It is scored as one: what all steps bring is learned together, and Δ is exact for all of them together.

    Attributes:
        steps: the rewrites.

    Source: ours.
    """

    name: ClassVar[str] = "compose"
    summary: ClassVar[str] = "apply rewrites one after another as one candidate"
    preserves: ClassVar[str] = "what every step preserves"

    steps: tuple[Pass, ...] = ()

    @property
    def label(self) -> str:
        """The steps."""
        return format_specs(self.steps)

    def candidates(self, graph: Graph) -> tuple[Self, ...]:
        """Return the composite itself."""
        return (self,)

    def match(self, graph: Graph) -> Patch | Miss:
        """Return what all steps change, or why one does not apply."""
        if not self.steps:
            return Miss("a composite needs steps")
        found = no_patch(graph)
        for step in self.steps:
            try:
                found = found.then(step.patch(found.after))
            except PassError as error:
                return Miss(f"{error.what}: {error.why}" if error.why else error.what)
        return found

    def rewrite(self, graph: Graph, found: Patch) -> Patch:
        """Return what all steps change."""
        return found

    def followed(self, later: Later) -> Self:
        """Return the same as it is written in a later graph: every step is done in both.

        Raises:
            PassError: what a step rewrites is no longer there.
        """
        steps: list[Pass] = []
        for step in self.steps:
            steps.append(step.followed(later))
            later = later.through(step.apply(later.before), steps[-1].apply(later.after))
        return replace(self, steps=tuple(steps))
