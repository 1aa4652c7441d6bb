"""Blend an activation: another function of its argument is mixed into it, in a share for each feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from archir.errors import suggest
from archir.ir.edit import Edit
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.rewrite.equations import Miss
from archir.rewrite.insertion import Insertion, splice
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import Surroundings, activation_of, look_around, require, short_name

IDENTITY = "identity"

FUNCTIONS: Mapping[str, str] = MappingProxyType(
    {n: f"aten.{n}.default" for n in ("relu", "silu", "gelu", "tanh", "sigmoid", "softplus", "square")}
)
"""The functions that can be blended in, besides the identity, and their operators."""


@dataclass(frozen=True)
class BlendActivation(Morphism):
    """Turn `act(x)` into `act(x) + a (other(x) - act(x))`, with a number `a` for each feature that starts at nought.

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

    def sites(self, graph: Graph) -> Iterator[Site]:
        """Yield a family of one candidate for each activation."""
        for node in graph.calls:
            if activation_of(node) is None:
                continue
            found = BlendActivation(refer(graph, Value(node.id)), self.into)
            if found.match(graph) is None:
                yield Site(found.activation, (found,))

    def match(self, graph: Graph) -> Miss | None:
        """Say why it cannot be blended, or None if it can."""
        if self.into != IDENTITY and self.into not in FUNCTIONS:
            hint = suggest(self.into, [*FUNCTIONS, IDENTITY])
            return Miss(f"there is no function {self.into!r}; {hint}")
        value = find_value(graph, self.activation)
        node = graph.node(value.node)
        if activation_of(node) is None:
            return Miss("it is not the result of an activation", (node.id,))
        if short_name(node) == self.into:
            return Miss(f"it is a {self.into} already", (node.id,))
        found = look_around(graph, value)
        return found if isinstance(found, Miss) else None

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with the blend.

        Raises:
            PassError: there is no such function or activation, or its features cannot be told.
        """
        self.require_match(graph)
        value = find_value(graph, self.activation)
        around = require(look_around(graph, value), "blend-activation does not apply")
        node = graph.node(value.node)
        return splice(graph, value, lambda e: self._build(e, node, around), by=format_spec(self))

    def _build(self, e: Edit, node: Node, around: Surroundings) -> Value:
        new = Insertion(e, Value(node.id), "blend", "BlendedActivation")
        (x,) = node.values
        other = x if self.into == IDENTITY else new.call(FUNCTIONS[self.into], x)
        return new.blend("share", Value(node.id), other, around.per_feature)
