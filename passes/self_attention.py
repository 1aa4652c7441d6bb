"""Self-attention: a block of attention among the tokens or positions of a value, its last layer zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.input_checks import example_symbols
from archir.ir.node import Node, Value
from archir.ir.types import Size, TensorType, evaluate, symbols_of
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import Surroundings, layer_ends, look_around, short_name

LIMIT = 1024
"""Most tokens of a value for which candidates are proposed, unless another number is asked for."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a value.

    Attributes:
        around: what is around the value.
        sizes: the sizes of the axes along which they lie.
    """

    around: Surroundings
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class SelfAttention(Morphism[Tokens]):
    """Add `out(attention(norm(v)))` to a value `v`, where the layer `out` is zero.

    The tokens of an image are its positions, row by row.

    Attributes:
        after: the value.
        heads: number of heads; each is as large as the features of the value divided by it.
        causal: let no token see those after it; candidates do, if the graph may have a mask of that kind and the tokens
            one axis.
        limit: candidates are proposed where there are so many tokens at most.

    Source: Vaswani et al. 2017, section 3.2; the norm in front is that of Xiong et al. 2020; Wang et al. 2018 for
    images.
    """

    name: ClassVar[str] = "self-attention"
    summary: ClassVar[str] = "add attention among the tokens or positions of a value, its last layer zero"
    preserves: ClassVar[str] = "the function"

    after: Reference = ""
    heads: int = 4
    causal: bool = False
    limit: int = LIMIT

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each value of some tokens at which a layer ends."""
        causal = self.causal or has_causal_mask(graph)
        for value, around in layer_ends(graph):
            tokens = _tokens(graph, value, around)
            count = 0 if isinstance(tokens, Miss) else _usual_count(graph, tokens)
            if not isinstance(tokens, Miss) and 1 < count <= self.limit:
                yield replace(self, after=refer(graph, value), causal=causal and len(tokens) == 1, limit=LIMIT)

    def match(self, graph: Graph) -> Tokens | Miss:
        """Return the tokens of the value, or why there can be no attention."""
        if self.heads < 1:
            return Miss("the number of heads has to be positive")
        value = find_value(graph, self.after)
        around = look_around(graph, value)
        if isinstance(around, Miss):
            return around
        sizes = _tokens(graph, value, around)
        if isinstance(sizes, Miss):
            return sizes
        if self.causal and len(sizes) > 1:
            return Miss("its tokens have more than one axis, and so no order to be causal in", (value.node,))
        return Tokens(around, sizes)

    def rewrite(self, graph: Graph, found: Tokens) -> Patch:
        """Add the attention."""
        value = find_value(graph, self.after)
        return splice(graph, value, lambda e: self._build(e, value, found.around, found.sizes), by=format_spec(self))

    def _build(self, e: Edit, value: Value, around: Surroundings, tokens: tuple[Size, ...]) -> Value:
        new = Insertion(e, value, "attention", "SelfAttention")
        size = max(around.features // self.heads, 1)
        x = value
        if len(tokens) > 1:
            x = new.call("aten.flatten.using_ints", x, *((2,) if around.spatial else (1, -2)))
        if around.spatial:
            x = new.call("aten.transpose.int", x, 1, 2)
        x = new.layer_norm("norm", x)

        def project(name: str) -> Value:
            by_head = new.call("aten.unflatten.int", new.linear(name, x, self.heads * size), -1, (self.heads, size))
            return new.call("aten.transpose.int", by_head, 1, 2)

        heads = project("query"), project("key"), project("value")
        y = new.call("aten.scaled_dot_product_attention.default", *heads, is_causal=self.causal)
        y = new.call("aten.flatten.using_ints", new.call("aten.transpose.int", y, 1, 2), 2)
        y = new.linear("out", y, around.features, start=Start.ZERO)
        if around.spatial:
            y = new.call("aten.transpose.int", y, 1, 2)
        if len(tokens) > 1:
            first = 2 if around.spatial else 1
            sizes = [
                size if isinstance(size, int) else new.call("aten.sym_size.int", value, axis)
                for axis, size in enumerate(tokens, first)
            ]
            y = new.call("aten.unflatten.int", y, first, tuple(sizes))
        return new.call("aten.add.Tensor", value, y)


def _usual_count(graph: Graph, tokens: tuple[Size, ...]) -> int:
    """Return how many tokens there usually are, 0 if that is not known."""
    sizes = dict(graph.signature.sizes)
    known = all(symbols_of(size) <= sizes.keys() for size in tokens)
    return math.prod(evaluate(size, sizes, floored=True) for size in tokens) if known else 0


def _tokens(graph: Graph, value: Value, around: Surroundings) -> tuple[Size, ...] | Miss:
    """Return the sizes of the axes along which the tokens of a value lie."""
    type_ = graph.type_of(value)
    assert isinstance(type_, TensorType)
    if isinstance(type_.shape[0], int):
        return Miss("its first axis is not that of the batch", (value.node,))
    sizes: tuple[Size, ...] = type_.shape[1 : around.axis] + type_.shape[around.axis + 1 :]
    if around.spatial and around.axis > 1:
        return Miss("its features are neither the first axis after the batch nor the last", (value.node,))
    if short_name(graph.node(value.node)) == "scaled_dot_product_attention":
        return Miss("it holds the heads of another attention", (value.node,))
    if not sizes:
        return Miss("it has no axis of tokens", (value.node,))
    if any(symbols_of(size) & example_symbols(graph) for size in sizes):
        return Miss("the number of tokens is that of the examples, known only at run time", (value.node,))
    return sizes


def has_causal_mask(graph: Graph) -> bool:
    """Say whether a graph may hide later tokens from earlier ones, as far as that can be seen.

    It may if an attention is causal or has a mask, if a triangle is cut out of a matrix, if positions are compared
    with each other, or if a square matrix that is no parameter is stored with nothing above (or below) its diagonal.
    """
    stored = (graph.tensors[n.id] for n in graph.parameters if not n.is_trainable)
    return any(_masks(graph, node) for node in graph.calls) or any(map(_is_triangle, stored))


def _masks(graph: Graph, node: Node) -> bool:
    name = short_name(node)
    if name == "scaled_dot_product_attention":
        return bool(node.argument("is_causal")) or node.argument("attn_mask") is not None
    if name in ("le", "lt", "ge", "gt"):
        types = [graph.type_of(value) for value in node.values]
        shapes = [t.shape for t in types if isinstance(t, TensorType) and not t.dtype.is_floating_point]
        return len(shapes) == 2 and shapes[0] != shapes[1]
    return name in ("tril", "triu")


def _is_triangle(tensor: torch.Tensor) -> bool:
    if tensor.dim() < 2 or tensor.shape[-1] != tensor.shape[-2] or tensor.shape[-1] < 2:
        return False
    set_ = tensor != 0
    above, below = set_.triu(1).any(), set_.tril(-1).any()
    return bool(above) != bool(below)
