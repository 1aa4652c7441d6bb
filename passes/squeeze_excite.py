"""Squeeze-excite: the features of a value are multiplied by gates made of that value, which start at one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import PARAMETER, Value
from archir.ir.operators.operator import Kind
from archir.ir.types import TensorType
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import (
    LAYERS,
    Surroundings,
    kind_of,
    layer_ends,
    look_around,
    short_name,
)

LEAST_HIDDEN = 4
"""Features between the two layers at least: a single one behind a ReLU might never be on."""


@dataclass(frozen=True)
class SqueezeExcite(Morphism[Surroundings]):
    """Multiply the features of a value `v` by gates, `v * 2 sigmoid(fc2(f(fc1(s))))`, where fc2 is zero.

    For an image `s` is the mean of `v` over space, and the layers are 1x1 convolutions: one gate for each channel of
    an example. For tokens and tables `s` is `v` itself, so every token has gates of its own and none sees another:
    causal models stay causal.

    Attributes:
        after: the value.
        ratio: features of the value for each one between the two layers, of which there are four at least.

    Source: Hu, Shen, Sun 2018, eq. 3, whose gate is `sigmoid`; twice that is one at zero.
    """

    name: ClassVar[str] = "squeeze-excite"
    summary: ClassVar[str] = "multiply features by gates made of their mean over space, which start at one"
    preserves: ClassVar[str] = "the function"

    after: Reference = ""
    ratio: int = 16

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each value at which a layer or a branch ends."""
        for value, around in (*layer_ends(graph), *branch_ends(graph)):
            if not around.spatial or _has_space(graph, value, around):
                yield replace(self, after=refer(graph, value))

    def match(self, graph: Graph) -> Surroundings | Miss:
        """Return what is around the value, or why there can be no gates."""
        if self.ratio < 1:
            return Miss("the ratio has to be positive")
        return look_around(graph, find_value(graph, self.after))

    def rewrite(self, graph: Graph, found: Surroundings) -> Patch:
        """Add the gates."""
        value = find_value(graph, self.after)
        return splice(graph, value, lambda e: self._build(e, value, found), by=format_spec(self))

    def _build(self, e: Edit, value: Value, around: Surroundings) -> Value:
        new = Insertion(e, value, "squeeze_excite", "SqueezeExcite")
        hidden = max(around.features // self.ratio, LEAST_HIDDEN)
        if around.spatial:
            space = tuple(range(around.axis + 1, around.axis + 1 + around.spatial))
            point = (1,) * around.spatial
            x = new.call("aten.mean.dim", value, space, True)
            x = new.activate(around.activation, new.conv("fc1", x, hidden, point))
            x = new.conv("fc2", x, around.features, point, start=Start.ZERO)
        else:
            x = new.activate(around.activation, new.linear("fc1", value, hidden))
            x = new.linear("fc2", x, around.features, start=Start.ZERO)
        gate = new.call("aten.mul.Tensor", new.call("aten.sigmoid.default", x), 2)
        return new.call("aten.mul.Tensor", value, gate)


def branch_ends(graph: Graph) -> Iterator[tuple[Value, Surroundings]]:
    """Yield the values at which a branch ends: a layer or norm makes them, and a sum with another value uses them."""
    for node in graph.calls:
        users = [graph.node(u.node) for u in graph.uses(Value(node.id))]
        if kind_of(node) not in LAYERS | {Kind.NORM} or len(users) != 1 or short_name(users[0]) != "add":
            continue
        summed = [v for v in users[0].values if v.node != node.id]
        found = look_around(graph, Value(node.id))
        if isinstance(found, Surroundings) and summed and graph.node(summed[0].node).op != PARAMETER:
            yield Value(node.id), found


def _has_space(graph: Graph, value: Value, around: Surroundings) -> bool:
    """Say whether an image has more than one position: gates made of a single one are made of gates, as a rule."""
    type_ = graph.type_of(value)
    return isinstance(type_, TensorType) and any(size != 1 for size in type_.shape[around.axis + 1 :])
