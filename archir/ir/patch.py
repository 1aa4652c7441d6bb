"""What an edit changed: costs, perturbations and checks are read from it, and never from two whole graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic

import torch
from typing_extensions import TypeVar

from archir.ir.data import GraphData
from archir.ir.node import Node
from archir.ir.tensor_map import TensorMap

G_co = TypeVar("G_co", bound=GraphData, covariant=True)
G = TypeVar("G", bound=GraphData)


@dataclass(frozen=True)
class GraphPatch(Generic[G_co]):
    """A graph before and after edits, and what differs.

    Attributes:
        before: the graph.
        after: what it has become.
        touched: ids of the nodes of the graph after that are new or may differ.
        removed: ids of the nodes of the graph before that are gone.
        maps: for the stored tensors of both that differ, how they are made of the old ones; None for one that has
            nothing of it.
    """

    before: G_co
    after: G_co
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

    @cached_property
    def affected(self) -> tuple[Node, ...]:
        """The nodes that are new or may differ, and those that use results which are of another type, by id."""
        retyped = [n.id for n in self.changed if n.results != self.before.node(n.id).results]
        users = {use.node for i in retyped for use, _ in self.after.structure.users.get(i, ())}
        mapped = {use.node for i in self.maps for use, _ in self.after.structure.users.get(i, ())}
        return tuple(self.after.node(i) for i in sorted(self.touched | users | mapped))

    def carry(self, tensors: Mapping[int, torch.Tensor], power: int = 1) -> dict[int, torch.Tensor]:
        """Return what an optimiser has gathered of the gradients as it is after the edits.

        Copies of units hold what they would have gathered; what is new holds zero; what is gone is left out.

        Args:
            tensors: by parameter node, shaped like what is stored.
            power: of the gradients in them: 1 for momentum, 2 for second moments.
        """
        found: dict[int, torch.Tensor] = {}
        for node, tensor in tensors.items():
            if node in self.after:
                by = self.maps.get(node, _SAME)
                like = self.after.tensors[node]
                found[node] = torch.zeros_like(like) if by is None else by.gradient(tensor, power)
        return found

    def then(self, later: GraphPatch[G_co]) -> GraphPatch[G_co]:
        """Return this patch followed by one of the graph it made."""
        gone = later.removed
        maps = {i: m for i, m in self.maps.items() if i not in gone}
        for node, map_ in later.maps.items():
            if node in self.before:
                first = maps.get(node, TensorMap())
                maps[node] = None if first is None or map_ is None else first.then(map_)
        return GraphPatch(
            self.before,
            later.after,
            (self.touched - gone) | later.touched,
            self.removed | frozenset(i for i in gone if i in self.before),
            maps,
        )


_SAME = TensorMap()


def no_patch(graph: G) -> GraphPatch[G]:
    """Return the patch that leaves a graph as it is."""
    return GraphPatch(graph, graph, frozenset(), frozenset(), {})
