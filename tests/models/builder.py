"""Builds small graphs by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from archir.ir import ops
from archir.ir.graph import Graph
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Argument, Leaf, Location, Node, Parameter, Signature, Value
from archir.ir.sample import sample
from archir.ir.text import plain_signature
from archir.ir.types import TensorType, Type, parse_dtype, parse_size
from archir.ir.verify import verify


def tensor_type(text: str) -> TensorType:
    """Return the type `f32[B, 3]`."""
    dtype, _, sizes = text.removesuffix("]").partition("[")
    return TensorType(parse_dtype(dtype), tuple(map(parse_size, sizes.split(","))) if sizes else ())


class Builder:
    """A graph that grows node by node; ids are `step` apart, and calls are made at `location` by the pass `born`."""

    def __init__(self, name: str = "net", step: int = 1) -> None:
        self.name = name
        self.step = step
        self.location: Location | None = None
        self.born = ""
        self.nodes: list[Node] = []
        self.tensors: dict[int, Tensor] = {}

    def _add(self, **fields: Any) -> Value:
        self.nodes.append(Node(len(self.nodes) * self.step, **fields))
        return Value(self.nodes[-1].id)

    def input(self, name: str, type_: Type | str) -> Value:
        found = tensor_type(type_) if isinstance(type_, str) else type_
        return self._add(op=INPUT, results=(found,), name=name)

    def parameter(self, names: str | tuple[str, ...], type_: str, kind: str = "parameter", **flags: bool) -> Value:
        names = (names,) if isinstance(names, str) else names
        usual = {"parameter": (True, True), "buffer": (False, True), "constant": (False, False)}[kind]
        trainable, persistent = flags.get("trainable", usual[0]), flags.get("persistent", usual[1])
        found = tensor_type(type_)
        value = self._add(op=PARAMETER, results=(found,), parameter=Parameter(names, kind, trainable, persistent))
        self.tensors[value.node] = sample(names[0], found, kind)
        return value

    def call(self, op: str, *args: Argument, **kwargs: Argument) -> Value:
        arguments = ops.normalise(op, args, kwargs)
        results = ops.infer_types(op, {k: self._typed(a) for k, a in arguments.items()})
        return self._add(op=op, arguments=arguments, results=results, location=self.location, born=self.born)

    def _typed(self, argument: Argument) -> object:
        if isinstance(argument, tuple):
            return tuple(map(self._typed, argument))
        return self.type_of(argument) if isinstance(argument, Value) else argument

    def type_of(self, value: Value) -> Type:
        return self.nodes[value.node // self.step].results[value.index]

    def graph(
        self,
        *outputs: Value,
        result: Leaf = 0,
        signature: Signature | None = None,
        history: tuple[str, ...] = (),
    ) -> Graph:
        self._add(op=OUTPUT, arguments={str(i): v for i, v in enumerate(outputs)})
        inputs = sum(n.op == INPUT for n in self.nodes)
        found = Graph(self.name, self.nodes, self.tensors, signature or plain_signature(inputs, result), history)
        verify(found)
        return found


def same(a: Graph, b: Graph) -> bool:
    """Say whether two graphs are equal down to the bits of their tensors, ids included."""
    return (
        (a.name, a.nodes, a.signature, a.history) == (b.name, b.nodes, b.signature, b.history)
        and a.tensors.keys() == b.tensors.keys()
        and all(bits_equal(a.tensors[i], b.tensors[i]) for i in a.tensors)
    )


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal bit by bit, not-a-numbers included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, other)
