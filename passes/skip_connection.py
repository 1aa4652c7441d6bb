"""Skip connection: a linear map of one value is added to another, nought to begin with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx

from archir.ir.edit import Edit
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.types import TensorType
from archir.rewrite.equations import Miss
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import Surroundings, layer_ends, look_around, require


@dataclass(frozen=True)
class SkipConnection(Morphism):
    """Add `P(u)` to a value `v`, where P is a linear map of the features that starts at nought.

    P is a 1x1 convolution where the values are images, with a stride if `u` is larger, else a linear layer.

    Attributes:
        source: the value u.
        target: the value v, of which u must not be made.
        reach: for each value, candidates start from so many values before it at most.

    Source: He et al. 2016, eq. 2, for projections across layers; between any two values is ours.
    """

    name: ClassVar[str] = "skip-connection"
    summary: ClassVar[str] = "add a linear map of one value to another, nought to begin with"
    preserves: ClassVar[str] = "the function"

    source: Reference = ""
    target: Reference = ""
    reach: int = 2

    def sites(self, graph: Graph) -> Iterator[Site]:
        """Yield a family of one candidate for each two values near to each other at which layers end."""
        before: list[tuple[Value, Surroundings]] = []
        for value, around in layer_ends(graph):
            found = (u for u, its in reversed(before) if not isinstance(_stride(graph, u, its, value, around), Miss))
            for _, source in zip(range(self.reach), found, strict=False):
                ends = refer(graph, source), refer(graph, value)
                yield Site(" to ".join(ends), (SkipConnection(*ends),))
            before.append((value, around))

    def match(self, graph: Graph) -> Miss | None:
        """Say why the two values cannot be connected, or None if they can."""
        source, target = find_value(graph, self.source), find_value(graph, self.target)
        if source == target or source.node in nx.descendants(graph.networkx, target.node):
            return Miss("the source is made of the target", (source.node, target.node))
        arounds = look_around(graph, source), look_around(graph, target)
        misses = [a for a in arounds if isinstance(a, Miss)]
        if misses:
            return misses[0]
        its, around = (require(a, "skip-connection does not apply") for a in arounds)
        found = _stride(graph, source, its, target, around)
        return found if isinstance(found, Miss) else None

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with the connection.

        Raises:
            PassError: there are no such values, or they cannot be connected.
        """
        self.require_match(graph)
        target = find_value(graph, self.target)
        return splice(graph, target, lambda e: self._build(graph, e, target), by=format_spec(self))

    def _build(self, graph: Graph, e: Edit, target: Value) -> Value:
        source = find_value(graph, self.source)
        its, around = (require(look_around(graph, v), "skip-connection does not apply") for v in (source, target))
        stride = _stride(graph, source, its, target, around)
        assert not isinstance(stride, Miss)
        new = Insertion(e, target, "skip", "SkipConnection")
        if stride:
            point = (1,) * around.spatial
            x = new.conv("proj", source, around.features, point, stride=stride, start=Start.ZERO, bias=False)
        else:
            x = new.linear("proj", source, around.features, start=Start.ZERO, bias=False)
        return new.call("aten.add.Tensor", target, x)


def _stride(
    graph: Graph, source: Value, its: Surroundings, target: Value, around: Surroundings
) -> tuple[int, ...] | Miss:
    """Return the stride at which an image has the size of another, `()` for tokens of the same length.

    Args:
        graph: the graph.
        source: the value a connection starts from.
        its: what is around the source.
        target: the value it ends at.
        around: what is around the target.
    """
    nodes = source.node, target.node
    old, new = graph.type_of(source), graph.type_of(target)
    assert isinstance(old, TensorType)
    assert isinstance(new, TensorType)
    if old.dtype != new.dtype:
        return Miss("the two values have different element types", nodes)
    if len(old.shape) != len(new.shape) or its.spatial != around.spatial:
        return Miss("one of the two values is an image and the other is not, or their ranks differ", nodes)
    if old.shape[: its.axis] != new.shape[: around.axis]:
        return Miss("the two values differ in the batch or the number of tokens", nodes)
    strides: list[int] = []
    for large, small in zip(old.shape[its.axis + 1 :], new.shape[around.axis + 1 :], strict=True):
        if not isinstance(large, int) or not isinstance(small, int):
            return Miss("the size of an image is known only at run time", nodes)
        stride = -(-large // small)
        if (large - 1) // stride + 1 != small:
            return Miss(f"no stride takes a size of {large} to {small}", nodes)
        strides.append(stride)
    return tuple(strides)
