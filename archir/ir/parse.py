"""Reads the text form of a graph that `archir.ir.text` prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from archir.errors import GraphError, ParseError, suggest
from archir.ir import ops
from archir.ir.graph import Graph
from archir.ir.limits import Room
from archir.ir.literals import PREFIXES, is_constant, show_path
from archir.ir.names import check_keyword
from archir.ir.node import (
    INPUT,
    OUTPUT,
    PARAMETER,
    Argument,
    Constant,
    Leaf,
    Node,
    Parameter,
    Signature,
    Tree,
    Value,
    map_values,
)
from archir.ir.random_tensors import LARGEST, sample
from archir.ir.reader import Reader
from archir.ir.scanner import Token
from archir.ir.text import plain_signature
from archir.ir.types import TensorType, Type
from archir.ir.verify import verify


def parse_graph(text: str, tensors: Mapping[str, torch.Tensor] | None = None) -> Graph:
    """Return the graph of a text form; it is verified.

    Nodes are numbered anew (inputs, stored tensors, calls, output) unless the text tells their ids.
    Result types may be left out where they can be inferred. Each leaf of what is returned is an
    output of its own.

    Args:
        text: the text form.
        tensors: the stored tensors, by the first name of each. If not given they are made up by `sample`.

    Raises:
        ParseError: the text is not a graph, with line and column; or a tensor is missing or has another type.
    """
    return _Parser(text, tensors).graph()


class _Parser:
    """What has been read so far while a text is read from top to bottom.

    Until the end, nodes have provisional ids: their places in `nodes`.
    """

    def __init__(self, text: str, tensors: Mapping[str, torch.Tensor] | None) -> None:
        self._reader = Reader(text)
        self._scanner = self._reader.scanner
        self._given = tensors
        self._nodes: list[Node] = []
        self._told: dict[int, int] = {}
        self._ids: set[int] = set()
        self._room = Room()
        self._made = 0
        self._tensors: dict[int, torch.Tensor] = {}
        self._inputs: dict[str, Node] = {}
        self._stored: dict[str, Node] = {}
        self._calls: dict[str, Node] = {}

    def graph(self) -> Graph:
        scanner = self._scanner
        scanner.expect("graph", "`graph`")
        name = self._reader.name("the name of the graph")
        self._header()
        self._usual = self._reader.usual_sizes()
        self._guards = self._reader.guards()
        history = self._reader.history_note()
        form: tuple[Tree, Tree] | None = None
        modes: frozenset[str] | None = None
        called = scanner.peek()
        while not scanner.accept("return"):
            token = scanner.peek()
            if token.kind == "value":
                self._call()
            elif token.text in PREFIXES:
                self._declaration()
            elif token.text == "call" and form is None:
                called, form = token, self._call_form()
            elif token.text == "mode" and modes is None:
                modes = self._reader.modes()
            else:
                raise scanner.unexpected("a call, a declaration or `return`")
        outputs: list[Value] = []
        result = self._reader.tree(lambda: self._output(outputs))
        self._add(Node(0, OUTPUT, {str(i): v for i, v in enumerate(outputs)}))
        scanner.expect("}")
        if scanner.peek().kind != "end":
            raise scanner.unexpected("nothing after the graph")
        with scanner.blaming(called):
            signature = plain_signature(len(self._inputs), result) if form is None else Signature(*form, result)
            modes = modes or frozenset()
            signature = replace(signature, guards=self._guards, mode_changes=modes, sizes=self._usual)
        return self._finish(name, signature, history)

    def _finish(self, name: str, signature: Signature, history: tuple[str, ...]) -> Graph:
        kinds = {INPUT: 0, PARAMETER: 1, OUTPUT: 3}
        ordered = sorted(self._nodes, key=lambda n: (kinds.get(n.op, 2), n.id))
        first = max(self._told.values(), default=-1) + 1
        fresh = (n.id for n in ordered if n.id not in self._told)
        ids = self._told | {i: first + number for number, i in enumerate(fresh)}

        def moved(value: Value) -> Argument:
            return Value(ids[value.node], value.index)

        def final(node: Node) -> Node:
            return replace(
                node, id=ids[node.id], arguments={k: map_values(a, moved) for k, a in node.arguments.items()}
            )

        tensors = {ids[i]: tensor for i, tensor in self._tensors.items()}
        try:
            graph = Graph(name, [final(n) for n in ordered], tensors, signature, history)
            verify(graph)
        except GraphError as error:
            raise ParseError(error.what, where=error.where, why=error.why, hint=error.hint) from error
        return graph

    def _header(self) -> None:
        scanner = self._scanner
        scanner.expect("(")
        while not scanner.accept(")"):
            token = scanner.peek()
            name = self._reader.name("an input")
            if name in self._inputs:
                raise scanner.error(token, f"there are two inputs {name}")
            scanner.expect(":")
            type_ = self._reader.type()
            comma = scanner.accept(",")
            with scanner.blaming(token):
                node = Node(0, INPUT, results=(type_,), name=name)
            self._inputs[name] = self._add(node)
            if not comma and scanner.peek().text != ")":
                raise scanner.unexpected("',' or ')'")

    def _add(self, node: Node) -> Node:
        """Add a node with what the note that follows says about it."""
        token = self._scanner.peek()
        note = self._reader.node_note()
        name = node.name or note.name
        found = replace(node, id=len(self._nodes), name=name, born=note.born, location=note.location)
        if note.id is not None:
            if note.id in self._ids:
                raise self._scanner.error(token, f"two nodes have the id {note.id}")
            self._told[found.id] = note.id
            self._ids.add(note.id)
        self._nodes.append(found)
        return found

    def _declaration(self) -> None:
        parameter = self._reader.kind()
        token = self._scanner.peek()
        names = [self._reader.path()]
        while self._scanner.accept("="):
            names.append(self._reader.path())
        self._scanner.expect(":")
        start = self._scanner.peek()
        type_ = self._reader.type()
        if not isinstance(type_, TensorType):
            raise self._scanner.error(start, f"a stored tensor cannot be {type_}")
        self._store(token, parameter, tuple(names), type_)

    def _store(self, token: Token, kind: Parameter, names: tuple[str, ...], type_: TensorType) -> Node:
        name = names[0]
        with self._scanner.blaming(token):
            parameter = replace(kind, names=names)
        if not all(isinstance(size, int) for size in type_.shape):
            why = "its sizes are integers, or widths named before as w0=16"
            raise self._scanner.error(token, f"the stored tensor {show_path(name)} cannot be {type_}", why=why)
        several = Counter(parameter.names)
        for other in parameter.names:
            if other in self._stored or several[other] > 1:
                raise self._scanner.error(token, f"{show_path(other)} is introduced twice")
        if self._given is None:
            tensor = self._made_up(token, name, type_, parameter.kind)
        elif name not in self._given:
            raise self._scanner.error(token, f"there is no tensor for {show_path(name)}")
        else:
            tensor = self._given[name].detach()
        found = TensorType(tensor.dtype, tuple(tensor.shape))
        if found != type_:
            raise self._scanner.error(token, f"the tensor for {show_path(name)} is {found}, not {type_}")
        node = self._add(Node(0, PARAMETER, results=(type_,), parameter=parameter))
        self._tensors[node.id] = tensor
        self._stored |= dict.fromkeys(parameter.names, node)
        return node

    def _made_up(self, token: Token, name: str, type_: TensorType, kind: str) -> torch.Tensor:
        self._made += math.prod(map(int, type_.shape))
        if self._made > LARGEST:
            why = f"those of the graph would have more than {LARGEST:,} elements together"
            raise self._scanner.error(token, f"cannot make a tensor {type_}", why=why)
        with self._scanner.blaming(token):
            return sample(name, type_, kind)

    def _reference(self) -> Value:
        parameter = self._reader.kind()
        token = self._scanner.peek()
        name = self._reader.path()
        if self._scanner.peek().text in ("[", ":"):
            dtype = self._reader.dtype() if self._scanner.accept(":") else torch.float32
            self._scanner.expect("[")
            shape = self._reader.shape()
            with self._scanner.blaming(token):
                type_ = TensorType(dtype, shape)
            return Value(self._store(token, parameter, (name,), type_).id)
        if name not in self._stored:
            hint = f"give its shape where it is first used, {show_path(name)}[...]"
            hint += f"; {suggest(name, self._stored)}" if self._stored else ""
            raise self._scanner.error(token, f"{show_path(name)} is not introduced", hint=hint)
        return Value(self._stored[name].id)

    def _call(self) -> None:
        scanner = self._scanner
        token = scanner.next()
        if "." in token.text or token.text in self._calls:
            what = "is one result" if "." in token.text else "is defined twice"
            raise scanner.error(token, f"{token.text} {what}", hint=f"write %{len(self._calls)} = ...")
        scanner.expect("=")
        called = scanner.peek()
        op = self._operator()
        arguments = self._arguments(called, op)
        results = self._results(called, op, arguments)
        self._calls[token.text] = self._add(Node(0, op, arguments, results))

    def _operator(self) -> str:
        token = self._scanner.peek()
        if token.kind != "word":
            raise self._scanner.unexpected("an operator")
        self._scanner.next()
        with self._scanner.blaming(token):
            target = ops.function(token.text)
        return ops.op_name(target) if isinstance(target, torch._ops.OpOverload) else token.text

    def _arguments(self, called: Token, op: str) -> dict[str, Argument]:
        scanner, names = self._scanner, ops.schema(op).names
        args: list[Argument] = []
        kwargs: dict[str, Argument] = {}

        def read() -> None:
            key = scanner.peek()
            if key.kind != "word" or scanner.peek(1).text != "=":
                if kwargs:
                    raise scanner.error(key, "arguments without a name come first")
                args.append(self._argument())
                return
            scanner.next()
            scanner.expect("=")
            if key.text not in names:
                raise scanner.error(key, f"{called.text} has no argument {key.text!r}", hint=suggest(key.text, names))
            if key.text in kwargs or key.text in names[: len(args)]:
                raise scanner.error(key, f"the argument {key.text!r} is given twice")
            kwargs[key.text] = self._argument()

        scanner.expect("(")
        self._reader.items(")", read)
        with scanner.blaming(called):
            return ops.normalise(op, args, kwargs)

    def _results(self, called: Token, op: str, arguments: Mapping[str, Argument]) -> tuple[Type, ...]:
        scanner = self._scanner

        def typed(argument: Argument) -> object:
            if isinstance(argument, tuple):
                return tuple(map(typed, argument))
            return self._nodes[argument.node].results[argument.index] if isinstance(argument, Value) else argument

        inferred: tuple[Type, ...] | None = None
        try:
            operands = {name: typed(a) for name, a in arguments.items()}
            inferred = ops.infer_types(op, operands, self._guards, self._room)
        except ops.NotInferable as error:
            if scanner.peek().text != ":":
                raise scanner.error(called, error.what, why=error.why, hint="write the types, : f32[B, 3]") from error
        except GraphError as error:
            raise scanner.error(called, error.what, why=error.why, hint=error.hint) from error
        if inferred is not None and scanner.peek().text != ":":
            return inferred
        scanner.expect(":")
        token = scanner.peek()
        declared: list[Type] = []
        if scanner.accept("("):
            scanner.expect(")")
        else:
            declared.append(self._reader.type())
            while scanner.accept(","):
                declared.append(self._reader.type())
        if inferred is not None and not ops.same_types(inferred, declared, self._guards):
            makes = ", ".join(map(str, inferred)) or "()"
            raise scanner.error(scanner.since(token), f"{called.text} makes {makes}", hint=f"write {makes}")
        return tuple(declared)

    def _argument(self) -> Argument:
        token = self._scanner.peek()
        if token.kind == "value":
            return self._value()
        if token.kind == "path" or token.text in PREFIXES:
            return self._reference()
        if self._scanner.accept("["):
            parts: list[Argument] = []
            self._reader.items("]", lambda: parts.append(self._argument()))
            return tuple(parts)
        if token.kind not in ("word", "quoted"):
            return self._reader.constant()
        if token.kind == "word" and (is_constant(token.text) or token.text == "complex"):
            return self._reader.constant()
        name = self._reader.name("an input")
        if name not in self._inputs:
            what = f"{token.text} is neither an input nor a constant"
            raise self._scanner.error(token, what, hint=suggest(name, self._inputs))
        return Value(self._inputs[name].id)

    def _value(self) -> Value:
        token = self._scanner.next()
        number, dot, index = token.text.partition(".")
        node = self._calls.get(number)
        if node is None:
            hint = f"the values so far are {_listed(self._calls)}" if self._calls else "no value is defined so far"
            raise self._scanner.error(token, f"{number} is not defined before it is used", hint=hint)
        count = len(node.results)
        if (not dot and count != 1) or (dot and (len(index) > 9 or int(index) >= count)):
            results = ", ".join(f"{number}.{i}" for i in range(count)) or "none"
            raise self._scanner.error(token, f"{token.text} is not a result of {node.op}", hint=f"it has {results}")
        return Value(node.id, int(index or 0))

    def _call_form(self) -> tuple[Tree, Tree]:
        scanner = self._scanner
        token = scanner.next()
        args: list[Leaf] = []
        kwargs: dict[str, Leaf] = {}
        used: list[int] = []

        def read() -> None:
            key = scanner.peek()
            if key.kind not in ("word", "quoted") or scanner.peek(1).text != "=":
                if kwargs:
                    raise scanner.error(key, "arguments without a name come first")
                args.append(self._reader.tree(lambda: self._input(used)))
                return
            name = self._reader.name("an argument")
            with scanner.blaming(key):
                check_keyword(name)
            scanner.expect("=")
            kwargs[name] = self._reader.tree(lambda: self._input(used))

        scanner.expect("(")
        self._reader.items(")", read)
        if sorted(used) != list(range(len(self._inputs))):
            raise scanner.error(token, "each input stands once in `call`", hint=f"inputs: {', '.join(self._inputs)}")
        return Tree("tuple", tuple(args)), Tree("dict", tuple(kwargs.values()), tuple(kwargs))

    def _input(self, used: list[int]) -> Leaf:
        token = self._scanner.peek()
        found = self._leaf()
        if not isinstance(found, Value):
            return found
        if found.node >= len(self._inputs):
            raise self._scanner.error(token, f"{token.text} is not an input")
        used.append(found.node)
        return found.node

    def _output(self, outputs: list[Value]) -> Leaf:
        found = self._leaf()
        if not isinstance(found, Value):
            return found
        outputs.append(found)
        return len(outputs) - 1

    def _leaf(self) -> Value | Constant:
        token = self._scanner.peek()
        found = self._argument()
        if isinstance(found, Value):
            return found
        if isinstance(found, int | float | bool | str | None):
            return Constant(found)
        raise self._scanner.error(token, f"{token.text} can be neither called with nor returned")


def _listed(names: Iterable[str], most: int = 8) -> str:
    """Return names with commas between, the last few if there are many."""
    found = list(names)
    return ", ".join(found if len(found) <= most else ["...", *found[-most:]])
