"""Add a bias: a layer without one is given a bias of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.ir.registry import operator_of
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import is_layer, short_name


@dataclass(frozen=True)
class AddBias(Morphism[Node]):
    """Give a linear layer or a convolution without a bias one that is zero.

    A layer that is called in several places, with one weight, gets one bias.

    Attributes:
        layer: result of the layer.
    """

    name: ClassVar[str] = "add-bias"
    summary: ClassVar[str] = "give a layer without a bias one that is zero"
    preserves: ClassVar[str] = "the function"

    layer: Reference = ""

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each layer; for one that is called in several places, where it comes first."""
        for node in graph.calls:
            if is_layer(graph, node) and _calls(graph, node)[:1] in ([], [node]):
                yield replace(self, layer=refer(graph, Value(node.id)))

    def match(self, graph: Graph) -> Node | Miss:
        """Return the call of the layer, or why it can have no bias, or why that would be idle."""
        node = graph.node(find_value(graph, self.layer).node)
        if not is_layer(graph, node):
            return Miss("it is not the result of a linear layer or a convolution", (node.id,))
        if node.argument("bias") is not None:
            return Miss("the layer has a bias", (node.id,))
        weight = node.argument("weight")
        if not isinstance(weight, Value) or graph.node(weight.node).parameter is None:
            return Miss("its weight is computed, so there is no place for a bias beside it", (node.id,))
        calls = _calls(graph, node)
        users = [graph.node(u.node) for call in calls for u in graph.uses(Value(call.id))]
        if users and all(map(_is_centred, users)):
            return Miss(f"a {short_name(users[0]).replace('_', ' ')} right after it takes a bias away", (users[0].id,))
        return node

    def rewrite(self, graph: Graph, found: Node) -> Patch:
        """Add the bias."""
        weight, type_ = found.operand("weight"), found.tensor_type()
        axis = operator_of(found.op).features
        features = None if axis is None else type_.shape[axis]
        assert isinstance(features, int)
        with graph.edit(by=format_spec(self)) as e:
            zeros = graph.tensors[weight.node].new_zeros(features)
            bias = e.add_parameter(_name(graph, found, weight), zeros, location=found.location)
            for call in _calls(graph, found):
                e.update(call.id, arguments={"bias": bias})
        return e.patch


def _is_centred(node: Node) -> bool:
    """Say whether a call is a normalisation that takes away what is the same everywhere in a feature."""
    layer = operator_of(node.op).layer
    return layer is not None and "running_mean" in layer.tensors


def _calls(graph: Graph, node: Node) -> list[Node]:
    """Return the calls of a layer: those without a bias that use its weight as it does, in order."""
    users = {u.node for u in graph.uses(node.operand("weight")) if u.argument == "weight"}
    found = map(graph.node, sorted(users, key=graph.structure.position.__getitem__))
    return [n for n in found if n.op == node.op and n.argument("bias") is None]


def _name(graph: Graph, node: Node, weight: Value) -> str:
    """Return the name of a bias beside a weight, in the module that makes the call if the weight is tied."""
    here = node.location.module if node.location else ""
    path, dot, leaf = max(graph.node(weight.node).names, key=lambda n: n.rpartition(".")[0] == here).rpartition(".")
    return f"{path}{dot}{'bias' if leaf == 'weight' else f'{leaf}_bias'}"
