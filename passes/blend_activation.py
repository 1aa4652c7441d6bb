"""Blend an activation: another function of its argument is mixed into it, in a share for each feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Self

from archir.errors import suggest
from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.rewrite.insertion import Insertion, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import Surroundings, activation_of, look_around, short_name

IDENTITY = "identity"

FUNCTIONS: Mapping[str, str] = MappingProxyType(
    {n: f"aten.{n}.default" for n in ("relu", "silu", "gelu", "tanh", "sigmoid", "softplus", "square")}
)
"""The functions that can be blended in, besides the identity, and their operators."""


@dataclass(frozen=True)
class BlendActivation(Morphism[Surroundings]):
    """Turn `act(x)` into `act(x) + a (other(x) - act(x))`, with a number `a` for each feature that starts at zero.

    Attributes:
        activation: result of the activation.
        into: the other function: relu, silu, gelu, tanh, sigmoid, softplus, square, or identity, which makes a leak
            that can be learned.

    Source: He et al. 2015 (PReLU) for ReLU and the identity; Manessi, Rozza 2018 for blends of functions.
    """

    name: ClassVar[str] = "blend-activation"
    summary: ClassVar[str] = "mix another function into an activation, in a share for each feature that starts at 0"
    preserves: ClassVar[str] = "the function"

    activation: Reference = ""
    into: str = IDENTITY

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each activation."""
        for node in graph.calls:
            if activation_of(node) is not None:
                yield replace(self, activation=refer(graph, Value(node.id)))

    def match(self, graph: Graph) -> Surroundings | Miss:
        """Return what is around the activation, or why it cannot be blended."""
        if self.into != IDENTITY and self.into not in FUNCTIONS:
            hint = suggest(self.into, [*FUNCTIONS, IDENTITY])
            return Miss(f"there is no function {self.into!r}; {hint}")
        value = find_value(graph, self.activation)
        node = graph.node(value.node)
        if activation_of(node) is None:
            return Miss("it is not the result of an activation", (node.id,))
        if short_name(node) == self.into:
            return Miss(f"it is a {self.into} already", (node.id,))
        return look_around(graph, value)

    def rewrite(self, graph: Graph, found: Surroundings) -> Patch:
        """Add the blend."""
        value = find_value(graph, self.activation)
        node = graph.node(value.node)
        return splice(graph, value, lambda e: self._build(e, node, found), by=format_spec(self))

    def _build(self, e: Edit, node: Node, around: Surroundings) -> Value:
        new = Insertion(e, Value(node.id), "blend", "BlendedActivation")
        (x,) = node.values
        other = x if self.into == IDENTITY else new.call(FUNCTIONS[self.into], x)
        return new.blend("share", Value(node.id), other, around.per_feature)
