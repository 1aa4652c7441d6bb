"""What an edit changed: costs, perturbations and checks are read from it, and never from two whole graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from archir.ir.node import Node
from archir.ir.tensor_map import TensorMap

if TYPE_CHECKING:
    from archir.ir.graph import Graph


@dataclass(frozen=True)
class Patch:
    """A graph before and after edits, and what differs.

    Attributes:
        before: the graph.
        after: what it has become.
        touched: ids of the nodes of the graph after that are new or may differ.
        removed: ids of the nodes of the graph before that are gone.
        maps: for the stored tensors of both that differ, how they are made of the old ones; None for one that has
            nothing of it.
    """

    before: Graph
    after: Graph
    touched: frozenset[int]
    removed: frozenset[int]
    maps: Mapping[int, TensorMap | None]

    @cached_property
    def added(self) -> tuple[Node, ...]:
        """The nodes that are new, in the order they were made."""
        return tuple(self.after.node(i) for i in sorted(self.touched) if i not in self.before)

    @cached_property
    def changed(self) -> tuple[Node, ...]:
        """The nodes of both graphs that may differ, as they are now, in order of their ids."""
        return tuple(self.after.node(i) for i in sorted(self.touched) if i in self.before)

    def then(self, later: Patch) -> Patch:
        """Return this patch followed by one of the graph it made."""
        gone = later.removed
        maps = {i: m for i, m in self.maps.items() if i not in gone}
        for node, map_ in later.maps.items():
            if node in self.before:
                first = maps.get(node, TensorMap())
                maps[node] = None if first is None or map_ is None else first.then(map_)
        return Patch(
            self.before,
            later.after,
            (self.touched - gone) | later.touched,
            self.removed | frozenset(i for i in gone if i in self.before),
            maps,
        )


def no_patch(graph: Graph) -> Patch:
    """Return the patch that leaves a graph as it is."""
    return Patch(graph, graph, frozenset(), frozenset(), {})
