"""Passes: rewrites of graphs, as frozen dataclasses whose fields are their options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self, final

from archir.ir.graph import Graph, Patch
from archir.rewrite.reference import Later, follow


class Pass(ABC):
    """A rewrite of a graph. A subclass is a frozen dataclass.

    Attributes:
        name: its name in specifications.
        summary: one line for people.
        preserves: what it leaves as it was, for people: "the function", "all but the removed units".
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    preserves: ClassVar[str] = ""

    @abstractmethod
    def patch(self, graph: Graph) -> Patch:
        """Return what it changes.

        Raises:
            PassError: it does not apply there.
        """

    @final
    def apply(self, graph: Graph) -> Graph:
        """Return the rewritten graph.

        Raises:
            PassError: it does not apply there.
        """
        return self.patch(graph).after

    def followed(self, later: Later) -> Self:
        """Return a pass that is meant for one graph as it is written in a later one.

        Raises:
            PassError: what it rewrites is no longer there.
        """
        return follow(self, later)
