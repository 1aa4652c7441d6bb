"""Builds graphs by hand, call by call, where there is no model to trace."""

from __future__ import annotations

from dataclasses import replace

import torch

from archir.errors import GraphError, ParseError
from archir.ir import ops
from archir.ir.graph import Graph
from archir.ir.guards import Guard
from archir.ir.literals import USUAL
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Argument, Leaf, Location, Node, Parameter, Signature, Tree, Value
from archir.ir.random_tensors import sample
from archir.ir.reader import Reader
from archir.ir.text import plain_signature
from archir.ir.types import TensorType, Type
from archir.ir.verify import verify


class GraphBuilder:
    """A graph that grows node by node.

        b = archir.GraphBuilder("net")
        x = b.input("x", "f32[B, 3]")
        weight = b.parameter("fc.weight", torch.zeros(4, 3))
        graph = b.graph(b.call("aten.linear.default", x, weight))

    Attributes:
        location: the place in the user's program that the calls which follow belong to.
        born: the pass that makes the calls which follow.
        guards: what the sizes of the inputs satisfy, for the calls which follow and in the graph.
    """

    def __init__(self, name: str = "net", step: int = 1) -> None:
        """Start with no nodes.

        Args:
            name: name of the program.
            step: how far the ids of nodes are apart.
        """
        self._name = name
        self._step = step
        self._nodes: list[Node] = []
        self._tensors: dict[int, torch.Tensor] = {}
        self.location: Location | None = None
        self.born = ""
        self.guards: tuple[Guard, ...] = ()

    def input(self, name: str, type_: Type | str) -> Value:
        """Add an input.

        Args:
            name: its name.
            type_: its type, also as text: `f32[B, 3]`, `int(n)`.

        Raises:
            GraphError: no argument can be called that.
            ParseError: the text is no type.
        """
        found = parse_type(type_) if isinstance(type_, str) else type_
        return self._add(Node(self._next, INPUT, results=(found,), name=name))

    def parameter(
        self,
        names: str | tuple[str, ...],
        tensor: torch.Tensor | str,
        kind: str = "parameter",
        *,
        trainable: bool | None = None,
        persistent: bool | None = None,
    ) -> Value:
        """Store a tensor.

        Args:
            names: its name, or all of them if it is tied.
            tensor: the tensor, or its type as text, `f32[4, 3]`; its elements are then made up by `sample`.
            kind: `parameter`, `buffer` or `constant`.
            trainable: whether it has gradients; as usual for the kind if not given.
            persistent: whether it is part of the state dict; as usual for the kind if not given.

        Raises:
            GraphError: no tensor can be called that, or there is no such kind.
            ParseError: the text is no type of a tensor, or one that is too large.
        """
        names = (names,) if isinstance(names, str) else names
        usual = USUAL.get(kind, (True, True))
        trains, persists = (
            default if flag is None else flag for flag, default in zip((trainable, persistent), usual, strict=True)
        )
        parameter = Parameter(names, kind, trains, persists)
        if isinstance(tensor, str):
            tensor = sample(names[0], parse_tensor_type(tensor), kind)
        type_ = TensorType(tensor.dtype, tuple(tensor.shape))
        value = self._add(Node(self._next, PARAMETER, results=(type_,), parameter=parameter))
        self._tensors[value.node] = tensor.detach()
        return value

    def call(self, op: str, *args: Argument, **kwargs: Argument) -> Value:
        """Add a call of an operator; the types of its results are inferred.

        Args:
            op: operator name, `aten.relu.default`.
            args: arguments in schema order.
            kwargs: arguments by name.

        Returns:
            Its first result; others are `Value(value.node, i)`.

        Raises:
            GraphError: the operator is unknown or rejects its operands, or a value is not one of this builder's.
        """
        arguments = ops.normalise(op, args, kwargs)
        results = ops.infer_types(op, {n: self._typed(argument) for n, argument in arguments.items()}, self.guards)
        return self._add(Node(self._next, op, arguments, results, location=self.location, born=self.born))

    def type_of(self, value: Value) -> Type:
        """Return the type of a value.

        Raises:
            GraphError: there is no such value here.
        """
        number, rest = divmod(value.node, self._step)
        if rest or not 0 <= number < len(self._nodes) or not 0 <= value.index < len(self._nodes[number].results):
            raise GraphError(f"{value} is no value of this builder")
        return self._nodes[number].results[value.index]

    def results(self, value: Value) -> tuple[Value, ...]:
        """Return all results of the call that makes a value."""
        self.type_of(value)
        return tuple(Value(value.node, i) for i in range(len(self._nodes[value.node // self._step].results)))

    def graph(
        self,
        *outputs: Value,
        result: Leaf | None = None,
        signature: Signature | None = None,
        history: tuple[str, ...] = (),
    ) -> Graph:
        """Return the graph, which is verified; the builder is of no use afterwards.

        Args:
            outputs: what it returns.
            result: how that is nested; a tuple of them, or the only one, if not given.
            signature: how it is called, and `result`; with its inputs, one after the other, if not given.
            history: specs of the passes applied so far.

        Raises:
            GraphError: it is malformed; all violations at once.
        """
        if result is None:
            result = 0 if len(outputs) == 1 else Tree("tuple", tuple(range(len(outputs))))
        self._add(Node(self._next, OUTPUT, {str(i): value for i, value in enumerate(outputs)}))
        inputs = sum(node.op == INPUT for node in self._nodes)
        signature = signature or replace(plain_signature(inputs, result), guards=self.guards)
        found = Graph(self._name, self._nodes, self._tensors, signature, history)
        verify(found)
        return found

    @property
    def _next(self) -> int:
        return len(self._nodes) * self._step

    def _add(self, node: Node) -> Value:
        self._nodes.append(node)
        return Value(node.id)

    def _typed(self, argument: Argument) -> object:
        if isinstance(argument, tuple):
            return tuple(map(self._typed, argument))
        return self.type_of(argument) if isinstance(argument, Value) else argument


def parse_type(text: str) -> Type:
    """Return the type of a text: `f32[B, 3]`, `int(n)`.

    Raises:
        ParseError: it is no type.
    """
    reader = Reader(text)
    found = reader.type()
    if reader.scanner.peek().kind != "end":
        raise reader.scanner.unexpected("nothing after the type")
    return found


def parse_tensor_type(text: str) -> TensorType:
    """Return the type of a tensor of a text: `f32[B, 3]`.

    Raises:
        ParseError: it is no type of a tensor.
    """
    found = parse_type(text)
    if not isinstance(found, TensorType):
        raise ParseError(f"{text} is no type of a tensor")
    return found
