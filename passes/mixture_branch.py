"""Mixture branch: an MLP gets further experts, mixed for each token by a router, their last layer zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import Activation, activation_of, short_name


@dataclass(frozen=True)
class Mlp:
    """A linear layer, an activation, and a linear layer.

    Attributes:
        input: what it is given.
        activation: the activation.
        hidden: number of units between the layers.
        features: number of features of its result.
    """

    input: Value
    activation: Activation
    hidden: int
    features: int


@dataclass(frozen=True)
class MixtureBranch(Morphism[Mlp]):
    """Add `Σ_e p_e(x) V_e f(W_e x + b_e)` to the result of an MLP of `x`, where p = softmax(router(x)) and all V are 0.

    The MLP is a linear layer, an activation f (and a gate perhaps), and a linear layer; dropout in it is passed over.
    The experts are computed together: W and V of all of them are one linear layer each.

    Attributes:
        after: the result of the last layer of the MLP.
        experts: number of experts.
        hidden: units of each expert; if zero the experts together have about as many as the MLP.

    Source: Jacobs, Jordan, Nowlan, Hinton 1991 for mixtures; Shazeer et al. 2017 for a router in front of an MLP,
    which is sparse there and dense here; an expert that is always on beside them: Dai et al. 2024 (DeepSeekMoE).
    """

    name: ClassVar[str] = "mixture-branch"
    summary: ClassVar[str] = "add experts to an MLP, mixed by a router, their last layer zero"
    preserves: ClassVar[str] = "the function"

    after: Reference = ""
    experts: int = 4
    hidden: int = 0

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each linear layer, which may be the last of an MLP."""
        return (replace(self, after=refer(graph, Value(n.id))) for n in graph.calls if short_name(n) == "linear")

    def match(self, graph: Graph) -> Mlp | Miss:
        """Return the MLP, or why there can be no experts."""
        if self.experts < 1 or self.hidden < 0:
            return Miss("the number of experts and their units have to be positive")
        return find_mlp(graph, find_value(graph, self.after))

    def rewrite(self, graph: Graph, found: Mlp) -> Patch:
        """Add the experts."""
        value = find_value(graph, self.after)
        return splice(graph, value, lambda e: self._build(e, value, found), by=format_spec(self))

    def _build(self, e: Edit, value: Value, mlp: Mlp) -> Value:
        new = Insertion(e, value, "mixture", "MixtureBranch")
        hidden = self.hidden or max(mlp.hidden // self.experts, 1)
        x = new.activate(mlp.activation, new.linear("linear1", mlp.input, self.experts * hidden))
        by_expert = new.call("aten.unflatten.int", x, -1, (self.experts, hidden))
        router = new.call("aten.softmax.int", new.linear("router", mlp.input, self.experts), -1)
        mixed = new.call("aten.mul.Tensor", by_expert, new.call("aten.unsqueeze.default", router, -1))
        x = new.call("aten.flatten.using_ints", mixed, -2)
        x = new.linear("linear2", x, mlp.features, start=Start.ZERO, bias=False)
        return new.call("aten.add.Tensor", value, x)


def find_mlp(graph: Graph, value: Value) -> Mlp | Miss:
    """Return the MLP whose result a value is, or why it is not that of one."""
    last = graph.node(value.node)
    if short_name(last) != "linear":
        return Miss("no linear layer makes it", (last.id,))
    between = _before(graph, last)
    if between is not None and short_name(between) == "mul":
        gated = [graph.node(v.node) for v in between.values]
        between = next((n for n in gated if n.is_call and activation_of(n)), None)
    activation = activation_of(between) if between is not None and between.is_call else None
    if between is None or activation is None:
        return Miss("no activation without parameters comes before the linear layer that makes it", (last.id,))
    first = _before(graph, between)
    if first is None or short_name(first) != "linear":
        return Miss("no linear layer comes before the activation", (between.id,))
    source, hidden = first.argument("input"), first.tensor_type().shape[-1]
    features = last.tensor_type().shape[-1]
    if not isinstance(source, Value) or not isinstance(hidden, int) or not isinstance(features, int):
        return Miss("the number of its units is known only at run time", (first.id,))
    return Mlp(source, activation, hidden, features)


def _before(graph: Graph, node: Node) -> Node | None:
    """Return the call that makes the first operand of another, dropout passed over."""
    source = next(iter(node.arguments.values()), None)
    while isinstance(source, Value):
        found = graph.node(source.node)
        if not found.is_call:
            return None
        if short_name(found) != "dropout":
            return found
        source = found.argument("input")
    return None
