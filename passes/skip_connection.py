"""Skip connection: a linear map of one value is added to another, zero to begin with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import sympy
import torch

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.input_checks import example_symbols
from archir.ir.inputs import symbol_sizes
from archir.ir.node import Value
from archir.ir.ops import same_types
from archir.ir.types import Size, TensorType, as_size, evaluate, symbols_of
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import Surroundings, layer_ends, look_around

REACH = 2
"""From how many values before a value candidates start, unless another number is asked for."""


@dataclass(frozen=True)
class Connection:
    """Two values and the linear map between them.

    Attributes:
        source: where it starts.
        target: where it ends.
        around: what is around the target.
        stride: the stride of the map between images, `()` between tokens.
    """

    source: Value
    target: Value
    around: Surroundings
    stride: tuple[int, ...]


@dataclass(frozen=True)
class SkipConnection(Morphism[Connection]):
    """Add `P(u)` to a value `v`, where P is a linear map of the features that starts at zero.

    P is a 1x1 convolution where the values are images, with a stride if `u` is larger, else a linear layer.

    Attributes:
        source: the value u.
        target: the value v, of which u must not be made.
        reach: for each value, candidates start from so many values before it at most.

    Source: He et al. 2016, eq. 2, for projections across layers; between any two values is ours.
    """

    name: ClassVar[str] = "skip-connection"
    summary: ClassVar[str] = "add a linear map of one value to another, zero to begin with"
    preserves: ClassVar[str] = "the function"

    source: Reference = ""
    target: Reference = ""
    reach: int = REACH

    @property
    def label(self) -> str:
        """Both ends."""
        return f"{self.source} to {self.target}"

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each two values near to each other at which layers end."""
        before: list[tuple[Value, Surroundings]] = []
        for value, around in layer_ends(graph):
            found = (u for u, its in reversed(before) if not isinstance(_stride(graph, u, its, value, around), Miss))
            for _, source in zip(range(self.reach), found, strict=False):
                yield replace(self, source=refer(graph, source), target=refer(graph, value), reach=REACH)
            before.append((value, around))

    def match(self, graph: Graph) -> Connection | Miss:
        """Return the two values and the map between them, or why they cannot be connected."""
        source, target = find_value(graph, self.source), find_value(graph, self.target)
        if source == target or _is_made_of(graph, source, target):
            return Miss("the source is made of the target", (source.node, target.node))
        its, around = look_around(graph, source), look_around(graph, target)
        if isinstance(its, Miss):
            return its
        if isinstance(around, Miss):
            return around
        stride = _stride(graph, source, its, target, around)
        return stride if isinstance(stride, Miss) else Connection(source, target, around, stride)

    def rewrite(self, graph: Graph, found: Connection) -> Patch:
        """Add the connection."""
        return splice(graph, found.target, lambda e: _build(e, found), by=format_spec(self))


def _build(e: Edit, found: Connection) -> Value:
    new, features = Insertion(e, found.target, "skip", "SkipConnection"), found.around.features
    if found.stride:
        point = (1,) * found.around.spatial
        x = new.conv("proj", found.source, features, point, stride=found.stride, start=Start.ZERO, bias=False)
    else:
        x = new.linear("proj", found.source, features, start=Start.ZERO, bias=False)
    return new.call("aten.add.Tensor", found.target, x)


def _is_made_of(graph: Graph, source: Value, target: Value) -> bool:
    """Say whether a value is made of another: only what comes after the other in the order of the graph can be."""
    position = graph.structure.position
    waiting, seen = [source.node], {source.node}
    while waiting:
        for value in graph.node(waiting.pop()).values:
            if value.node == target.node:
                return True
            if value.node not in seen and position[value.node] > position[target.node]:
                seen.add(value.node)
                waiting.append(value.node)
    return False


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
    before, behind = old.shape[: its.axis], new.shape[: around.axis]
    if not _are_same(graph, before, behind):
        return Miss("the two values differ in the batch or the number of tokens", nodes)
    strides: list[int] = []
    for large, small in zip(old.shape[its.axis + 1 :], new.shape[around.axis + 1 :], strict=True):
        if (symbols_of(large) | symbols_of(small)) & example_symbols(graph):
            return Miss("the size of an image is that of the batch, known only at run time", nodes)
        first, second = (_example(graph, size) for size in (large, small))
        stride = -(-first // max(second, 1))
        if not _are_same(graph, (_strided(large, stride),), (small,)):
            return Miss(f"no stride takes a size of {large} to {small}", nodes)
        strides.append(stride)
    return tuple(strides)


_LARGE = 64
"""Sizes that are known at run time only are at least as large where a stride is looked for."""


def _example(graph: Graph, size: Size) -> int:
    """Return a size as it is for large inputs."""
    return size if isinstance(size, int) else evaluate(size, symbol_sizes(graph, _LARGE), floored=True)


def _strided(size: Size, stride: int) -> Size:
    return (size - 1) // stride + 1 if isinstance(size, int) else as_size(sympy.floor((size - 1) / stride) + 1)


def _are_same(graph: Graph, one: tuple[Size, ...], other: tuple[Size, ...]) -> bool:
    """Say whether sizes are the same wherever the guards of a graph hold."""
    left, right = (TensorType(torch.float32, sizes) for sizes in (one, other))
    return same_types((left,), (right,), graph.signature.guards)
