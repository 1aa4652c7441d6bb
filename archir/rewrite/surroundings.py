"""What is around a value: along which axis its features lie, and what layers there are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from archir.ir.graph import Graph
from archir.ir.node import OUTPUT, PARAMETER, Argument, Node, Value
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.structure import Structure
from archir.ir.types import TensorType
from archir.rewrite.miss import Miss

CONVOLUTIONS = frozenset({Kind.CONVOLUTION, Kind.TRANSPOSED})
LAYERS = CONVOLUTIONS | {Kind.LINEAR}
"""Kinds of layers with a weight for each feature of their results."""

_KEEPING = frozenset({Kind.NORM, Kind.DROPOUT, Kind.POOL})
"""Kinds of layers that keep the meaning of the axes, besides pointwise operators."""


@dataclass(frozen=True)
class Activation:
    """A non-linear function of one activation.

    Attributes:
        op: its operator.
        options: its other arguments.
    """

    op: str
    options: tuple[tuple[str, Argument], ...] = ()


RELU = Activation("aten.relu.default")


@dataclass(frozen=True)
class Surroundings:
    """What is around a value.

    Attributes:
        axis: the axis along which its features lie.
        features: their number.
        spatial: number of spatial axes, which follow the features; zero where the features are the last axis.
        activation: the activation of the layers around it, ReLU if there is none.
        norm: name of the normalisation of the layer that makes it, empty if it has none.
        layer: the call that gives it its features.
    """

    axis: int
    features: int
    spatial: int
    activation: Activation
    norm: str
    layer: int

    @property
    def per_feature(self) -> tuple[int, ...]:
        """Shape of a tensor with one number a feature, as it is broadcast against the value."""
        return (self.features, *(1,) * self.spatial)


def short_name(node: Node) -> str:
    """Return the name of an operator without namespace and overload: `conv2d`."""
    return node.op.partition(".")[2].partition(".")[0]


def kind_of(node: Node) -> Kind | None:
    """Return what the layer a call belongs to is for, None if it belongs to none."""
    return operator_of(node.op).kind


def is_layer(graph: Graph, node: Node) -> bool:
    """Say whether a call is a linear layer or a convolution, with a weight for each feature of its result."""
    if kind_of(node) not in LAYERS:
        return False
    weight = node.argument("weight")
    type_ = graph.type_of(weight) if isinstance(weight, Value) else None
    return isinstance(type_, TensorType) and len(type_.shape) > 1 and all(isinstance(s, int) for s in type_.shape)


def look_around(graph: Graph, value: Value) -> Surroundings | Miss:
    """Return what is around a value.

    Returns:
        The surroundings, or why its features cannot be told.
    """
    type_ = graph.type_of(value)
    if not isinstance(type_, TensorType) or not type_.dtype.is_floating_point or len(type_.shape) < 2:
        return Miss("it is no tensor of features", (value.node,))
    activation: Activation | None = None
    norm = ""
    for node in _backwards(graph, value):
        activation = activation or activation_of(node)
        norm = norm or (short_name(node) if kind_of(node) is Kind.NORM else "")
        back = operator_of(node.op).features
        if back is None:
            continue
        axis = len(type_.shape) + back
        features = type_.shape[axis] if axis > 0 else None
        if not isinstance(features, int):
            break
        return Surroundings(axis, features, -1 - back, activation or usual_activation(graph), norm, node.id)
    return Miss("along which axis its features lie cannot be told", (value.node,))


def _backwards(graph: Graph, value: Value) -> Iterator[Node]:
    """Yield the calls a value comes from, nearest first, as far back as the axes keep their meaning."""
    rank = len(graph.node(value.node).tensor_type(value.index).shape)
    waiting, seen = [value], {value}
    while waiting:
        node = graph.node(waiting.pop(0).node)
        if not node.is_call:
            continue
        yield node
        keeps = operator_of(node.op).pointwise or kind_of(node) in _KEEPING or short_name(node) in ("roll", "cat")
        if not keeps:
            continue
        for operand in node.values:
            type_ = graph.type_of(operand)
            stored = graph.node(operand.node).op == PARAMETER
            if isinstance(type_, TensorType) and len(type_.shape) == rank and not stored and operand not in seen:
                seen.add(operand)
                waiting.append(operand)


def activation_of(node: Node) -> Activation | None:
    """Return the activation a call is, None if it is none or has stored parameters."""
    options = tuple(node.arguments.items())[1:]
    if kind_of(node) is not Kind.ACTIVATION or any(isinstance(a, Value) for _, a in options):
        return None
    return Activation(node.op, options)


_usual: WeakKeyDictionary[Structure, Activation] = WeakKeyDictionary()
"""What `usual_activation` has found: every candidate asks for it, and it takes a look at all calls."""


def usual_activation(graph: Graph) -> Activation:
    """Return the activation a graph has most, ReLU if it has none."""
    if graph.structure not in _usual:
        found = Counter(a for n in graph.calls if n.arguments and (a := activation_of(n)))
        _usual[graph.structure] = found.most_common(1)[0][0] if found else RELU
    return _usual[graph.structure]


def layer_ends(graph: Graph) -> Iterator[tuple[Value, Surroundings]]:
    """Yield the values at which a layer ends: what no norm, activation or sum of its own takes further.

    Those that only the output uses are left out.
    """
    for node in graph.calls:
        if operator_of(node.op).features is None and not _continues(node):
            continue
        users = [graph.node(u.node) for u in graph.uses(Value(node.id))]
        goes_on = len(users) == 1 and (_continues(users[0]) or users[0].op == OUTPUT)
        if users and not goes_on:
            found = look_around(graph, Value(node.id))
            if isinstance(found, Surroundings):
                yield Value(node.id), found


def _continues(node: Node) -> bool:
    """Say whether a call takes a layer further: a norm, an activation or a sum."""
    return kind_of(node) in (Kind.NORM, Kind.ACTIVATION) or node.op.startswith("aten.add.")
