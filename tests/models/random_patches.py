"""Random graphs of a few operators, made by hand, and random patches of them that need not keep the function."""

from __future__ import annotations

from random import Random

import torch

from archir.ir.builder import GraphBuilder
from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Value
from archir.ir.tensor_map import AxisMap, TensorMap
from archir.ir.types import TensorType


def random_graph(dice: Random, steps: int) -> Graph:
    """Return a graph on `f64[B, 4]`: each step reads one or two of the last values; some are views."""
    b = GraphBuilder("net")
    values = [b.input("x", "f64[B, 4]")]
    for step in range(steps):
        x, y = (dice.choice(values[-4:]) for _ in range(2))
        type_ = b.type_of(x)
        assert isinstance(type_, TensorType)
        width = type_.shape[1]
        kind = dice.randrange(7)
        if kind == 0:
            made = b.call("aten.tanh.default", x)
        elif kind == 1:
            made = b.call("aten.cat.default", (x, y), 1)
        elif kind == 2:
            made = b.call("aten.slice.Tensor", x, 1, 0, 1 + dice.randrange(3))
        elif kind == 3:
            made = b.call("aten.reshape.default", x, (-1, int(width)))
        elif kind == 4:
            made = b.call("aten.add.Tensor", x, b.call("aten.sum.dim_IntList", y, (1,), True))
        else:
            made = b.call("aten.linear.default", x, b.parameter(f"layer{step}.weight", f"f64[{width}, {width}]"))
        values.append(made)
    return b.graph(values[-1], *([dice.choice(values)] if dice.random() < 0.5 else []))


def random_patch(graph: Graph, dice: Random) -> Patch:
    """Return a patch that splices something in, takes a call out, rewires uses or changes a stored tensor.

    Raises:
        GraphError: it would make a cycle.
    """
    with graph.edit(by="random") as e:
        value = Value(dice.choice([n.id for n in graph.calls]))
        uses, kind = e.uses(value), dice.randrange(8)
        chosen = [u for u in uses if dice.random() < 0.7] if dice.random() < 0.5 else uses
        alike = [Value(n.id) for n in graph.calls if n.id != value.node and n.results == e.node(value.node).results]
        operands = [v for v in e.node(value.node).values if e.type_of(v) == e.type_of(value)]
        if kind < 3:
            e.replace_uses(value, _made_of(e, value, alike, dice), chosen)
        elif kind == 3 and operands:
            e.replace_uses(value, dice.choice(operands))
        elif kind == 4 and operands:
            e.replace_uses(value, _made_of(e, dice.choice(operands), [], dice), uses)
        elif kind == 5 and alike:
            e.replace_uses(value, dice.choice(alike), chosen)
        elif kind > 5 and graph.parameters:
            _change_tensor(e, dice.choice(graph.parameters).id, dice)
        if not e.uses(value) and dice.random() < 0.7:
            e.remove(value.node)
    return e.patch


def _made_of(e: Edit, value: Value, others: list[Value], dice: Random) -> Value:
    """Add up to three calls and return a value of the same type."""
    kind = dice.randrange(6)
    type_ = e.type_of(value)
    assert isinstance(type_, TensorType)
    width = int(type_.shape[1])
    if kind == 0:
        wide = e.call("aten.cat.default", (value,) * dice.randrange(2, 5), 1)
        return e.call("aten.slice.Tensor", wide, 1, 0, width)
    if kind == 1:
        return e.call("aten.reshape.default", value, (-1, width))
    if kind == 2:
        total = e.call("aten.sum.dim_IntList", e.call("aten.cat.default", (value, value), 1), (1,), True)
        return e.call("aten.add.Tensor", value, total)
    if kind == 3:
        weight = e.add_parameter("new.weight", torch.randn(width, width, dtype=torch.float64))
        return e.call("aten.linear.default", value, weight)
    if kind == 4 and others:
        return e.call("aten.mul.Tensor", value, dice.choice(others))
    return e.call("aten.tanh.default", value)


def _change_tensor(e: Edit, node: int, dice: Random) -> None:
    tensor, kind = e.tensor(node), dice.randrange(3)
    if kind == 0:
        e.set_tensor(node, torch.randn_like(tensor))
    elif kind == 1:
        e.remap(node, TensorMap((AxisMap(0, torch.randperm(len(tensor))),)))
    else:
        new = e.add_parameter("other.weight", torch.randn_like(tensor))
        e.replace_uses(Value(node), new)
