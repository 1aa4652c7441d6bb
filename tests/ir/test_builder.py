"""Graphs that are built by hand."""

from __future__ import annotations

import pytest
import torch

import archir
from archir.errors import GraphError, ParseError
from archir.ir.node import Tree, Value
from archir.ir.types import ScalarType, TensorType, symbol


def test_a_graph_computes_with_the_tensors_it_was_built_with() -> None:
    b = archir.GraphBuilder("net")
    x = b.input("x", "f64[B, 3]")
    weight = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    hidden = b.call("aten.linear.default", x, b.parameter("fc.weight", weight))
    graph = b.graph(hidden, x)
    assert b.type_of(hidden) == TensorType(torch.float64, (symbol("B"), 4))
    assert graph.signature.result == Tree("tuple", (0, 1)) and graph.name == "net"
    given = torch.randn(2, 3, dtype=torch.float64)
    found, same = graph.module()(given)
    assert torch.equal(found, given @ weight.T) and torch.equal(same, given)


def test_usual_flags_are_those_of_the_kind() -> None:
    b = archir.GraphBuilder()
    for kind in ("parameter", "buffer", "constant"):
        b.parameter(kind, "f32[2]", kind)
    b.parameter(("one", "other"), "f32[2]", trainable=False, persistent=True)
    length = b.input("length", "int(n)")
    graph = b.graph(length)
    flags = [(p.names, p.trainable, p.persistent) for n in graph.parameters if (p := n.parameter)]
    assert flags == [
        (("parameter",), True, True),
        (("buffer",), False, True),
        (("constant",), False, False),
        (("one", "other"), False, True),
    ]
    assert graph.inputs[0].results == (ScalarType("int", symbol("n")),) and graph.signature.result == 0


def test_what_cannot_be_built_is_refused() -> None:
    b = archir.GraphBuilder(step=2)
    x = b.input("x", "f32[B, 3]")
    with pytest.raises(ParseError, match="expected nothing after the type, found 'x'"):
        b.input("y", "f32[3] x")
    with pytest.raises(ParseError, match="int is no type of a tensor"):
        b.parameter("w", "int")
    with pytest.raises(GraphError, match="one of parameter, buffer, constant, not 'weight'"):
        b.parameter("w", "f32[3]", "weight")
    for value in (Value(1), Value(2), Value(0, 1), Value(-2)):
        with pytest.raises(GraphError, match="is no value of this builder"):
            b.call("aten.relu.default", value)
    with pytest.raises(GraphError, match="is used but not defined"):
        b.graph(x, Value(7))
