"""The text form of a graph; `archir.ir.parse` reads it back.

    graph net(x: f32[B, 3, 32, 32]) {
      buffer @bn.num_batches_tracked : i64[]

      %0 = aten.conv2d(x, @stem.weight[16, 3, 3, 3], padding=[1, 1]) : f32[B, 16, 32, 32]
      %1 = aten.relu(%0)                                             : f32[B, 16, 32, 32]
      return %1
    }

What the sizes of the inputs have to satisfy stands behind them, `graph net(x: f32[B, 3]) where B >= 3, B % 2 == 0 {`,
after what sizes besides the batch usually are, `graph net(x: f32[B, T]) at T = 128 where T <= 512 {`.
A stored tensor is introduced where it is first used, `@name[shape]`, with its element type if that is not
f32 (`@name: f64[shape]`) and words before it if it is no ordinary parameter (`buffer @name[shape]`). Those
with several names and those that nothing uses are declared before the body.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import torch

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.data import GraphData
from archir.ir.literals import show_constant, show_kind, show_name, show_path
from archir.ir.node import INPUT, PARAMETER, Argument, Constant, Leaf, Node, Parameter, Signature, Tree, Value, fold
from archir.ir.types import TensorType, Type, dtype_name

_WIDEST = 100
"""Lines longer than this do not move the column of types."""

AxisNames = Mapping[int, tuple[tuple[str, ...], ...]]
"""By node id: for each result, the name of each axis, empty where it has none."""


def print_graph(
    graph: GraphData,
    *,
    names: AxisNames | None = None,
    comments: Mapping[int, str] | None = None,
    locations: bool = False,
) -> str:
    """Return the text form of a graph, which `parse_graph` reads back.

    Args:
        graph: the graph.
        names: names of axes, shown as `w0=16` where they first stand and as `w0` later; those of
            axes whose size is no integer are not shown.
        comments: what to say at the end of the lines of calls, by node id; not shown where locations are.
        locations: whether to keep everything else too: the history, and the id, the source location
            and the pass that made it for each node, in comments that start with `#:`. All stored
            tensors are then declared, in order.
    """
    return "\n".join(_Printer(graph, names or {}, comments or {}, locations).lines())


def print_function(graph: GraphData) -> str:
    """Return the text form of what a graph computes, the same for graphs that differ in how their modules begin."""
    signature = replace(graph.signature, mode_changes=frozenset())
    return print_graph(GraphData(graph.name, graph.structure, graph.tensors, signature))


def plain_signature(inputs: int, result: Leaf) -> Signature:
    """Return the signature of a model that is called with its inputs, one after the other."""
    return Signature(Tree("tuple", tuple(range(inputs))), Tree("dict"), result)


def _modes(changes: frozenset[str]) -> str:
    """Return the mode of a program, and the modules that are not in that of the one they stand in."""
    others = ", ".join(show_path(path) for path in sorted(changes - {""}))
    return ("eval" if "" in changes else "train") + (f" but {others}" if others else "")


class _Printer:
    """What has been introduced so far while a graph is printed from top to bottom."""

    def __init__(self, graph: GraphData, names: AxisNames, comments: Mapping[int, str], full: bool) -> None:
        self._graph = graph
        self._names = names
        self._comments = comments
        self._full = full
        self._numbers = {n.id: i for i, n in enumerate(graph.calls)}
        self._named: dict[str, int] = {}
        self._introduced: set[int] = set()

    def lines(self) -> list[str]:
        graph = self._graph
        lines = self._header()
        if self._full and graph.history:
            lines.append(f"  #: history={json.dumps(graph.history)}")
        declared = _columns([self._declaration(n) for n in graph.parameters if self._is_declared(n)])
        lines += [*declared, ""] if declared else []
        plain = plain_signature(len(graph.inputs), graph.signature.result)
        if (graph.signature.args, graph.signature.kwargs) != (plain.args, plain.kwargs):
            lines.append(f"  call {self._call_form()}")
        if graph.signature.mode_changes:
            lines.append(f"  mode {_modes(graph.signature.mode_changes)}")
        lines += _columns([self._call(n) for n in graph.calls])
        lines.append(f"  return {self._tree(graph.signature.result, self._output)}{self._note(graph.output)}")
        return [*lines, "}"]

    def _header(self) -> list[str]:
        graph = self._graph
        inputs = [f"{show_name(n.name)}: {self._type(n, 0)}" for n in graph.inputs]
        sizes = ", ".join(f"{name} = {size}" for name, size in graph.signature.sizes)
        where = f" at {sizes}" if sizes else ""
        where += f" where {', '.join(map(str, graph.signature.guards))}" if graph.signature.guards else ""
        if not self._full or not inputs:
            return [f"graph {show_name(graph.name)}({', '.join(inputs)}){where} {{"]
        rows = [f"  {text},{self._note(n)}" for text, n in zip(inputs, graph.inputs, strict=True)]
        return [f"graph {show_name(graph.name)}(", *rows, f"){where} {{"]

    def _is_declared(self, node: Node) -> bool:
        tied = len(_parameter(node).names) > 1
        return self._full or tied or not self._graph.uses(Value(node.id))

    def _declaration(self, node: Node) -> tuple[str, str]:
        self._introduced.add(node.id)
        names = " = ".join(map(show_path, _parameter(node).names))
        return f"{show_kind(_parameter(node))} {names}", self._type(node, 0) + self._note(node)

    def _call(self, node: Node) -> tuple[str, str]:
        positional = _positional(node)
        parts = [
            self._argument(argument) if i < positional else f"{name}={self._argument(argument)}"
            for i, (name, argument) in enumerate(node.arguments.items())
        ]
        types = [self._type(node, i) for i in range(len(node.results))]
        left = f"%{self._numbers[node.id]} = {node.op.removesuffix('.default')}({', '.join(parts)})"
        return left, (", ".join(types) or "()") + self._note(node)

    def _argument(self, argument: Argument) -> str:
        if isinstance(argument, tuple):
            return f"[{', '.join(map(self._argument, argument))}]"
        return self._value(argument) if isinstance(argument, Value) else show_constant(argument)

    def _value(self, value: Value) -> str:
        node = self._graph.node(value.node)
        if node.op == INPUT:
            return show_name(node.name)
        if node.op == PARAMETER:
            return self._stored(node)
        number = self._numbers[node.id]
        return f"%{number}" if len(node.results) == 1 else f"%{number}.{value.index}"

    def _stored(self, node: Node) -> str:
        parameter = _parameter(node)
        path = show_path(parameter.names[0])
        if node.id in self._introduced:
            return path
        self._introduced.add(node.id)
        type_ = node.tensor_type()
        colon = "" if type_.dtype == torch.float32 else f": {dtype_name(type_.dtype)}"
        kind = show_kind(parameter)
        words = "" if kind == "param" else f"{kind} "
        return f"{words}{path}{colon}[{self._shape(node, 0, type_)}]"

    def _type(self, node: Node, index: int) -> str:
        type_: Type = node.results[index]
        if not isinstance(type_, TensorType):
            return str(type_)
        return f"{dtype_name(type_.dtype)}[{self._shape(node, index, type_)}]"

    def _shape(self, node: Node, index: int, type_: TensorType) -> str:
        names = self._names.get(node.id, ())[index : index + 1]
        labels = dict(enumerate(names[0])) if names else {}
        sizes: list[str] = []
        for axis, size in enumerate(type_.shape):
            label = labels.get(axis, "")
            if label and isinstance(size, int):
                first = label not in self._named
                known = self._named.setdefault(label, size) == size
                sizes.append(f"{label}={size}" if first else label if known else str(size))
            else:
                sizes.append(str(size))
        return ", ".join(sizes)

    def _call_form(self) -> str:
        def leaf(number: int) -> str:
            return show_name(self._graph.inputs[number].name)

        signature = self._graph.signature
        parts = [self._tree(child, leaf) for child in signature.args.children]
        named = zip(signature.kwargs.keys, signature.kwargs.children, strict=True)
        parts += [f"{show_name(key)}={self._tree(child, leaf)}" for key, child in named]
        return f"({', '.join(parts)})"

    def _output(self, number: int) -> str:
        return self._argument(self._graph.output.arguments[str(number)])

    def _tree(self, tree: Leaf, leaf: Callable[[int], str]) -> str:
        def join(tree: Tree, children: list[str]) -> str:
            if tree.kind == "dict":
                pairs = (f"{show_constant(k)}: {c}" for k, c in zip(tree.keys, children, strict=True))
                return f"{{{', '.join(pairs)}}}"
            inside = ", ".join(children)
            if tree.kind == "list":
                return f"[{inside}]"
            return f"({inside},)" if len(children) == 1 else f"({inside})"

        return fold(tree, lambda end: show_constant(end.value) if isinstance(end, Constant) else leaf(end), join)

    def _note(self, node: Node) -> str:
        if not self._full:
            comment = " ".join(self._comments.get(node.id, "").split()).lstrip(":")
            return f"  # {comment}" if comment else ""
        fields: dict[str, object] = {"id": node.id}
        if node.name and node.op != INPUT:
            fields["name"] = node.name
        if node.born:
            fields["born"] = node.born
        if node.location is not None:
            place = node.location
            fields["module"] = place.module
            fields |= {"kind": place.kind} if place.kind else {}
            fields |= {"file": place.file} if place.file else {}
            fields |= {"line": place.line} if place.line else {}
        return "  #: " + " ".join(f"{key}={json.dumps(value)}" for key, value in fields.items())


def _parameter(node: Node) -> Parameter:
    if node.parameter is None:
        raise GraphError(f"parameter node {node.id} does not say what it is")
    return node.parameter


def _positional(node: Node) -> int:
    """Return how many arguments go without their names: the leading ones that hold tensors."""
    schema = ops.schema(node.op)
    bare = schema.tensors if isinstance(ops.function(node.op), torch._ops.OpOverload) else schema.names
    pairs = zip(node.arguments, schema.names[: schema.keyword_from], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] and pair[0] in bare, pairs))


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(left) for left, _ in rows if len(left) <= _WIDEST), default=0)
    return [f"  {left:{width}} : {right}" for left, right in rows]
