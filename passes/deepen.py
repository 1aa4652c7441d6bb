"""Deepen: a layer that is the identity at first, and an activation, are inserted after a value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.ir.operators.operator import Kind
from archir.ir.types import TensorType
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import (
    Activation,
    Surroundings,
    activation_of,
    kind_of,
    layer_ends,
    look_around,
    short_name,
)

PROJECTIONS = frozenset({"relu", "relu6", "hardtanh"})
"""Activations that change nothing when they are applied once more."""


@dataclass(frozen=True)
class Deepen(Morphism[Surroundings]):
    """Insert a layer that starts as the identity after a value, with the activation of the layers around it.

    The layer is a convolution (all channels to all, also after a depthwise one) where the value is an image, a linear
    one where it is tokens or a table. Let `y` be what it makes of the value. An activation that changes nothing when
    it is applied once more (ReLU, ReLU6, hardtanh) and that made the value follows as it is: `act(y)`. Any other is
    blended in, `y + a (act(y) - y)`, with a number `a` for each feature that starts at zero.

    A batch norm keeps the function in evaluation mode only, since in training mode it takes the statistics of the
    batch; so there is none unless asked for. Recalibrate its statistics before the network is trained on.

    Attributes:
        after: the value.
        kernel: kernel size of a convolution; that of the layer that makes the value if zero, three if that is even.
        norm: whether a batch norm follows the layer, where the features are the second axis.

    Source: Chen, Goodfellow, Shlens 2016 (Net2DeeperNet) for idempotent activations; the blend is ours.
    """

    name: ClassVar[str] = "deepen"
    summary: ClassVar[str] = "insert a layer that starts as the identity, with the activation around it, after a value"
    preserves: ClassVar[str] = "the function"

    after: Reference = ""
    kernel: int = 0
    norm: bool = False

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each value at which a layer ends."""
        return (replace(self, after=refer(graph, value)) for value, _ in layer_ends(graph))

    def match(self, graph: Graph) -> Surroundings | Miss:
        """Return what is around the value, or why no layer can be inserted."""
        if self.kernel < 0 or (self.kernel and self.kernel % 2 == 0):
            return Miss("the kernel has to be odd")
        return look_around(graph, find_value(graph, self.after))

    def rewrite(self, graph: Graph, found: Surroundings) -> Patch:
        """Insert the layer."""
        value = find_value(graph, self.after)
        exact = _is_made_by(graph, value, found.activation)
        kernel = (self.kernel,) * found.spatial if self.kernel else _kernel(graph, found)
        return splice(graph, value, lambda e: self._build(e, value, found, kernel, exact), by=format_spec(self))

    def _build(self, e: Edit, value: Value, around: Surroundings, kernel: tuple[int, ...], exact: bool) -> Value:
        new = Insertion(e, value, "deeper", "Deeper")
        if around.spatial:
            x = new.conv("conv", value, around.features, kernel, start=Start.IDENTITY)
        else:
            x = new.linear("linear", value, around.features, start=Start.IDENTITY)
        if self.norm and around.axis == 1:
            x = new.batch_norm("norm", x)
        activated = new.activate(around.activation, x)
        return activated if exact else new.blend("blend", x, activated, around.per_feature)


def _is_made_by(graph: Graph, value: Value, activation: Activation) -> bool:
    """Say whether a value comes from an activation, pooled at most, that changes nothing when applied once more."""
    node = graph.node(value.node)
    while kind_of(node) is Kind.POOL and not {"padding", "divisor_override"} & _averaging(node):
        node = graph.node(node.operand("self").node)
    return activation_of(node) == activation and short_name(node) in PROJECTIONS


def _averaging(node: Node) -> frozenset[str]:
    """Return the options of an average pooling, none for another one."""
    return frozenset(node.arguments) if short_name(node).startswith("avg") else frozenset()


def _kernel(graph: Graph, around: Surroundings) -> tuple[int, ...]:
    """Return the kernel size of the convolution that makes a value, three where it is even."""
    weight = graph.node(around.layer).arguments.get("weight")
    type_ = graph.type_of(weight) if isinstance(weight, Value) else None
    sizes = type_.shape[2:] if isinstance(type_, TensorType) else ()
    return tuple(s if isinstance(s, int) and s % 2 else 3 for s in sizes)
