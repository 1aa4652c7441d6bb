"""Translates an ONNX graph, node by node, and names all that cannot be read at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

import onnx_ir as ir
import torch

from archir.errors import ArchirError, CaptureError
from archir.ir.axis_names import BATCH, name_fault
from archir.ir.builder import GraphBuilder
from archir.ir.graph import Graph
from archir.ir.guards import Guard
from archir.ir.node import MOST_GUARDS, PARAMETER, Node, Value
from archir.ir.types import Size, TensorType, symbol
from archir.ir.verify import verify
from frontends.onnx import control
from frontends.onnx.asserted import Asserted, asserted
from frontends.onnx.call import Call, Results, as_tensor, torch_type
from frontends.onnx.names import argument_names, is_anonymous, location, state_kinds
from frontends.onnx.operands import Known, Operand, Refusal, Series, Sizes
from frontends.onnx.operators.table import OPERATORS
from frontends.onnx.shapes import fold
from frontends.onnx.translation import Translation

DOMAINS = ("", "ai.onnx")
"""The names of the domain whose operators are read."""

MOST_TOLD = 50
"""The most nodes an error names."""

_SENSELESS = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What goes wrong with numbers that do not fit together."""

CONTROL = {"If": control.branch, "Loop": control.loop}
"""The operators that hold graphs."""


def translate(model: ir.Model, name: str, sizes: Mapping[str, int], guards: tuple[Guard, ...] = ()) -> Graph:
    """Return the graph of an ONNX model.

    Args:
        model: the model, functions inlined.
        name: name of the graph.
        sizes: numbers for axes that have a name in the file.
        guards: what is noted of the sizes of its inputs; what holds is what the file checks.

    Raises:
        CaptureError: nodes cannot be read; all of them are named.
    """
    work = _Work(model, name, sizes, guards)
    work.nodes(model.graph)
    results = [work.result(output) for output in model.graph.outputs]
    if work.problems:
        raise _told(name, work.problems)
    try:
        graph = _live(work.graph.builder.graph(*[work.graph.value(r) for r in results if r is not None]))
        verify(graph)
    except ArchirError as error:
        raise CaptureError(f"{name} was read as a malformed graph", where=error.where, why=str(error)) from error
    return graph


class _Work:
    """An ONNX model on its way to being a graph."""

    def __init__(self, model: ir.Model, name: str, sizes: Mapping[str, int], guards: tuple[Guard, ...]) -> None:
        self.graph = Translation(GraphBuilder(name))
        self.problems: list[str] = []
        self._opset = next((v for d, v in model.graph.opset_imports.items() if d in DOMAINS), 0)
        self._sizes = sizes
        self._symbols: dict[str, str] = {}
        self._batch = _first_axis(model.graph)
        self._inputs(model.graph)
        self._asserted = self._guarded(model.graph, guards)
        self._initialisers(model.graph, state_kinds(model.graph))

    def nodes(self, graph: ir.Graph) -> None:
        """Translate the nodes of a graph."""
        for node in graph:
            if node in self._asserted.nodes:
                continue
            if node in self._asserted.inputs:
                self.graph.values[node.outputs[0]] = self.graph.values[self._asserted.inputs[node]]
                continue
            if node in self.graph.absorbed:
                self._keep(node, self.graph.absorbed[node])
                continue
            try:
                self._node(node)
            except Refusal as refusal:
                self.problems.append(f"{_shown(node)}: {refusal}")
            except _SENSELESS as error:  # numbers that ONNX does not check: lists of other lengths, strides of 0
                told = (str(error).splitlines() or [type(error).__name__])[0]
                self.problems.append(f"{_shown(node)}: its attributes or shapes make no sense: {told}")

    def _guarded(self, graph: ir.Graph, noted: Sequence[Guard]) -> Asserted:
        """Guard the graph by what the file checks of its sizes."""
        types = {v: self.graph.type_of(o) for v, o in self.graph.values.items() if isinstance(o, Value)}
        found = asserted(graph, types, noted)
        self.problems += [f"the file is not for these sizes: {name}" for name in found.wrong]
        if len(found.guards) > MOST_GUARDS:
            self.problems.append(f"the file checks its sizes in more than {MOST_GUARDS} ways")
        self.graph.builder.guards = tuple(found.guards[:MOST_GUARDS])
        return found

    def result(self, output: ir.Value) -> Operand | None:
        """Return an output of the model, None if it could not be read."""
        found = self.graph.values.get(output)
        if isinstance(found, Series):
            self.problems.append(f"output {output.name}: it is a sequence, and graphs return tensors")
            return None
        if found is None and not self.problems:
            self.problems.append(f"output {output.name}: nothing makes it")
        return found

    def _inputs(self, graph: ir.Graph) -> None:
        given = [v for v in graph.inputs if v.name not in graph.initializers]
        for value, name in zip(given, argument_names([v.name or "" for v in given]), strict=True):
            try:
                self.graph.values[value] = self.graph.input(name, self._type(value))
            except Refusal as refusal:
                self.problems.append(f"input {value.name}: {refusal}")

    def _type(self, value: ir.Value) -> TensorType:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise Refusal(f"it is a {type(value.type).__name__}, and graphs have tensors")
        if value.shape is None:
            raise Refusal("the file does not say how many axes it has")
        return TensorType(torch_type(value.dtype), tuple(self._size(*dim) for dim in enumerate(value.shape.dims)))

    def _size(self, axis: int, dim: int | ir.SymbolicDim) -> Size:
        if isinstance(dim, int) and dim >= 0:
            return dim
        name = "" if isinstance(dim, int) else dim.value or ""
        if name in self._sizes:
            return self._sizes[name]
        # An axis without a name is as large as no other.
        key = name or f" {len(self._symbols)}"
        if key not in self._symbols:
            taken = set(self._symbols.values())
            first = BATCH not in taken and (name == self._batch if self._batch else axis == 0)
            numbered = next(f"B{i}" for i in count(max(len(taken), 1)) if f"B{i}" not in taken)
            free = name not in taken and not name_fault(name)
            self._symbols[key] = BATCH if first else name if free else numbered
        return symbol(self._symbols[key])

    def _initialisers(self, graph: ir.Graph, kinds: Mapping[str, str]) -> None:
        for name, value in graph.initializers.items():
            try:
                self.graph.values[value] = _initialiser(name, value, kinds)
            except Refusal as refusal:
                self.problems.append(f"initialiser {name}: {refusal}")
            except (OSError, *_SENSELESS) as error:  # elements that do not fit the shape
                told = (str(error).splitlines() or [type(error).__name__])[0]
                self.problems.append(f"initialiser {name}: its elements cannot be read: {told}")

    def _node(self, node: ir.Node) -> None:
        name = str(node.op_type)
        known = node.domain in DOMAINS and (name in OPERATORS or name in CONTROL)
        if not known:
            raise Refusal(f"there is no operator {name} in the domain {node.domain or 'ai.onnx'} that can be read")
        missing = [v for v in node.inputs if v is not None and v not in self.graph.values]
        if missing:
            return  # what should make them is told already
        operands = [None if v is None else self.graph.values[v] for v in node.inputs]
        while operands and operands[-1] is None:
            operands.pop()
        self.graph.location = location(node)
        c = Call(node, operands, self._opset, self.graph)
        if name in CONTROL:
            self._keep(node, CONTROL[name](c, self._body))
            return
        folded = fold(c) if any(isinstance(part, Sizes) for part in operands) else None
        self._keep(node, OPERATORS[name](c) if folded is None else folded)

    def _keep(self, node: ir.Node, results: Results) -> None:
        found = [results] if isinstance(results, Known | Sizes | Value | Series) else list(results)
        for output, made in zip(node.outputs, found, strict=False):
            if made is not None:
                self.graph.values[output] = made
        lacking = [o.name for o in node.outputs[len(found) :] if o.uses() or o.is_graph_output()]
        if lacking:
            raise Refusal(f"its result {lacking[0]} cannot be read")

    def _body(self, graph: ir.Graph, inputs: Sequence[Operand]) -> list[Operand]:
        self.graph.values.update(zip(graph.inputs, inputs, strict=True))
        self._initialisers(graph, {})
        before = len(self.problems)
        self.nodes(graph)
        if len(self.problems) > before or any(v not in self.graph.values for v in graph.outputs):
            raise Refusal("nodes inside of it cannot be read")
        found = [self.graph.values[value] for value in graph.outputs]
        if any(isinstance(part, Series) for part in found):
            raise Refusal("it makes a sequence")
        return [part for part in found if not isinstance(part, Series)]


def _first_axis(graph: ir.Graph) -> str:
    """Return the name of the first axis of the first input whose first axis is dynamic; nothing if it has none."""
    given = (v.shape.dims[0] for v in graph.inputs if v.name not in graph.initializers and v.shape)
    return next(("" if isinstance(d, int) else d.value or "" for d in given if not isinstance(d, int) or d < 0), "")


def _initialiser(name: str, value: ir.Value, kinds: Mapping[str, str]) -> Known:
    if value.const_value is None:
        raise Refusal("it has no elements")
    tensor = as_tensor(value.const_value)
    usual = tensor.is_floating_point() and bool(torch.isfinite(tensor).all())
    kind = kinds.get(name, "")
    folded = bool(kinds) and not kind and tensor.numel() == 1  # a number of the program: the exporter lists all others
    trains = usual and kind != "BUFFER" and not is_anonymous(name) and not folded
    return Known(tensor, name, trains, kind == "BUFFER" and not trains)


def _live(graph: Graph) -> Graph:
    """Return a graph without calls and stored tensors that no result needs, and paths that are names of tensors.

    Modules of it begin in evaluation mode, in which files are run.
    """
    needed, todo = set(), [graph.output.id]
    while todo:
        node = graph.node(todo.pop())
        if node.id not in needed:
            needed.add(node.id)
            todo += [value.node for value in node.values]
    kept = [n for n in graph.nodes if n.id in needed or n.op == "input"]
    names = {name for n in kept for name in n.names}
    nodes = [_placed(n, names) for n in kept]
    tensors = {n.id: graph.tensors[n.id] for n in kept if n.op == PARAMETER}
    return Graph(graph.name, nodes, tensors, replace(graph.signature, mode_changes=frozenset({""})))


def _placed(node: Node, names: set[str]) -> Node:
    path = node.location.module if node.location else ""
    above = {path[:i] for i, sign in enumerate(path) if sign == "."} | {path}
    return replace(node, location=None) if path and above & names else node


def _shown(node: ir.Node) -> str:
    inner = node.graph
    name = f"node {node.name}" if node.name else f"a node that makes {', '.join(o.name or '' for o in node.outputs)}"
    return f"{name} ({node.op_type})" if inner is not None else name


def _told(name: str, problems: Sequence[str]) -> CaptureError:
    told = list(dict.fromkeys(problems))
    more = f"\n         and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return CaptureError(
        f"{name} has {len(told)} {'part' if len(told) == 1 else 'parts'} that cannot be read",
        why="\n         ".join(told[:MOST_TOLD]) + more,
    )
