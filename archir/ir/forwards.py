"""Writes the forward functions of a graph as syntax trees: names and constants are nodes of them, never text.

A module has a forward where its calls stand together (`archir.ir.regions`); a statement a call, in the graph's order.
The call of a layer of `torch.nn` is written so, any other as that of its operator; what is not needed is deleted:

    def forward(self, x):
        check_inputs(x)
        linear = self.fc(x)
        del x
        return torch.ops.aten.add.Tensor(linear, self.shift)
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.arguments import fixed, parts
from archir.ir.data import GraphData
from archir.ir.execute import is_factory, mode_argument, returns_sequence
from archir.ir.function import Function
from archir.ir.input_checks import entry_check
from archir.ir.layer_forms import batch_counter
from archir.ir.layers import LayerCall
from archir.ir.node import Argument, Constant, Leaf, Node, Tree, Value, fold
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.regions import Region, Regions
from archir.ir.types import TensorType

SIZE = "aten.sym_size.int"


@dataclass(frozen=True, slots=True)
class Forward:
    """The `forward` of a module.

    Attributes:
        tree: a module of the syntax tree with the one function `forward`.
        scope: what its global names stand for.
        kind: the class the module was captured from, with its package; empty if unknown.
    """

    tree: ast.Module
    scope: dict[str, object]
    kind: str = ""


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    batches: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> torch.Tensor:
    """Normalise over the batch as `nn.BatchNorm2d` does, counting the batches it has seen.

    Args:
        x: `[batch, channels, ...]`.
        weight: `[channels]`.
        bias: `[channels]`.
        mean: running mean, `[channels]`; updated in training.
        variance: running variance, `[channels]`; updated in training.
        batches: number of batches seen, `[]`; updated in training.
        training: use and record the statistics of this batch instead of the running ones.
        momentum: weight of this batch in the running statistics; 0 stands for the cumulative average
            (`nn.BatchNorm2d(momentum=None)`) where batches are counted.
        eps: added to the variance.
        cudnn: allow cuDNN.
    """
    if training and batches is not None:
        batches.add_(1)
        if momentum == 0.0:
            momentum = 1.0 / float(batches)
    return torch.batch_norm(x, weight, bias, mean, variance, training, momentum, eps, cudnn)


class Anchors:
    """The stored tensors that calls take devices and element types from.

    Attributes:
        graph: the program.
        calls: its calls of layers, by node.
        dtype: the element type of its first floating-point parameter, None if it has none.
    """

    def __init__(self, graph: GraphData, calls: Mapping[int, LayerCall]) -> None:
        """Look through a graph.

        Args:
            graph: the program.
            calls: its calls of layers, by node.
        """
        self.graph, self.calls = graph, calls
        parameters = [n for n in graph.parameters if n.parameter and n.parameter.kind == "parameter"]
        floating = [n for n in parameters if n.tensor_type().dtype.is_floating_point]
        self.dtype = floating[0].tensor_type().dtype if floating else None
        self._tensors = _firsts([*parameters, *graph.parameters])
        self._floating = _firsts([n for n in floating if n.tensor_type().dtype == self.dtype])
        given = [n for n in graph.inputs if isinstance(n.results[0], TensorType)]
        self._anchor = next((Value(n.id) for n in (*parameters, *given, *graph.parameters)), None)

    def anchor(self, path: str) -> Value | None:
        """Return a tensor whose device those follow that a module makes from nothing; None if there is none."""
        return self._tensors.get(path) if path else self._anchor

    def floating(self, path: str) -> Value | None:
        """Return a parameter below a path whose element type those follow that are equal to it in the graph."""
        return self._floating.get(path)

    def wanting(self) -> dict[int, set[str]]:
        """Return the calls that take more of stored tensors than their operands, and the modules that have these."""
        found: dict[int, set[str]] = {}
        tensors, floating = set(self._tensors), set(self._floating)
        for node in self.graph.calls:
            if node.id in self.calls:
                continue
            if is_factory(node.op):
                found[node.id] = tensors
            if self.dtype is not None and self.dtype in node.arguments.values():
                found[node.id] = floating
            counter = batch_counter(self.graph, node) if node.op == BATCH_NORM else None
            if counter is not None:
                found[node.id] = set(_firsts([counter]))
        return found


def _firsts(nodes: Sequence[Node]) -> dict[str, Value]:
    """Return the first of some stored tensors below each path."""
    found: dict[str, Value] = {}
    for node in nodes:
        for name in node.names:
            path = name
            while path:
                path = path.rpartition(".")[0]
                found.setdefault(path, Value(node.id))
    return found


def write_forward(anchors: Anchors, regions: Regions, region: Region) -> Forward:
    """Return the forward of a module.

    Args:
        anchors: the stored tensors that calls take devices and element types from.
        regions: the division of the program.
        region: what the module does.
    """
    return _Writer(anchors, regions, region).forward()


class _Writer:
    """What has been written so far of one forward."""

    def __init__(self, anchors: Anchors, regions: Regions, region: Region) -> None:
        self._anchors, self._regions, self._region = anchors, regions, region
        self._graph, self._calls = anchors.graph, anchors.calls
        self._prefix = f"{region.path}." if region.path else ""
        self._names: dict[int, str] = {}
        self._given: dict[Value, str] = {}
        self._anchor, self._floating = anchors.anchor(region.path), anchors.floating(region.path)
        signature = anchors.graph.signature
        own = () if region.path else (*signature.kwargs.keys, *(n.name for n in anchors.graph.inputs))
        self._code = Function(set(own))
        self._arguments = self._taking() if region.path else self._declare(self._slots())

    def forward(self) -> Forward:
        region = self._region
        if not region.path:
            inputs = [self._value(Value(n.id)) for n in self._graph.inputs]
            self._code.statements.append(ast.Expr(self._code.call_global(entry_check(self._graph), *inputs)))
        for step in region.steps:
            if isinstance(step, Region):
                self._enter(step)
            else:
                self._call(step)
            self._delete(step)
        self._code.statements.append(ast.Return(self._result()))
        return Forward(self._code.tree("forward", self._arguments), self._code.scope, region.kind)

    def _result(self) -> ast.expr:
        if not self._region.path:
            outputs = [self._argument(a) for a in self._graph.output.arguments.values()]
            return self._structure(self._graph.signature.result, outputs)
        made = [self._value(value) for value in self._region.outputs]
        return made[0] if len(made) == 1 else ast.Tuple(made, ast.Load())

    # arguments and results

    def _taking(self) -> ast.arguments:
        """Return the arguments of a module within another: the values it takes from outside."""
        for value in self._region.inputs:
            node = self._graph.node(value.node)
            self._given[value] = self._code.fresh(
                re.sub(r"\W", "_", node.names[0].rpartition(".")[2]) if node.names else "x"
            )
        names = [ast.arg(name) for name in (self._code.own, *self._given.values())]
        for value, (source, axis) in self._region.sizes.items():
            size = ast.Call(self._operator(SIZE), [self._value(source), ast.Constant(axis)], [])
            self._given[value] = self._code.assign("size", size)
        return ast.arguments(posonlyargs=[], args=names, kwonlyargs=[], kw_defaults=[], defaults=[])

    def _slots(self) -> list[tuple[str, Leaf]]:
        """Return the arguments by name; constants that are given by keyword come last, since they have defaults."""
        signature = self._graph.signature
        named = list(zip(signature.kwargs.keys, signature.kwargs.children, strict=True))
        slots: list[tuple[str, Leaf]] = []
        for i, leaf in enumerate(signature.args.children):
            slots.append(
                (self._graph.inputs[leaf].name if isinstance(leaf, int) else self._code.fresh(f"arg{i}"), leaf)
            )
        slots += sorted(named, key=lambda slot: isinstance(slot[1], Constant))
        for name, count in Counter(name for name, _ in slots).items():
            if count > 1:
                raise GraphError(f"{count} arguments of graph {self._graph.name} are called {name!r}")
        return slots

    def _declare(self, slots: Sequence[tuple[str, Leaf]]) -> ast.arguments:
        optional = len(slots)
        while optional and isinstance(slots[optional - 1][1], Constant):
            optional -= 1
        defaults = [self._code.constant(leaf.value) for _, leaf in slots[optional:] if isinstance(leaf, Constant)]
        for name, leaf in slots:
            self._unpack(leaf, name, ast.Name(name, ast.Load()))
        names = [ast.arg(name) for name in (self._code.own, *(name for name, _ in slots))]
        return ast.arguments(posonlyargs=[], args=names, kwonlyargs=[], kw_defaults=[], defaults=defaults)

    def _unpack(self, leaf: Leaf, name: str, source: ast.expr, path: tuple[str | int, ...] = ()) -> None:
        """Check the constants and containers of an argument, and give names to the inputs that are nested in it."""
        shown = ast.Constant(name + "".join(f"[{key!r}]" for key in path))
        if isinstance(leaf, Constant):
            self._code.statements.append(
                ast.Expr(self._code.call_global(fixed, source, self._code.constant(leaf.value), shown))
            )
        elif isinstance(leaf, Tree):
            keys: ast.expr = ast.Constant(len(leaf.children))
            if leaf.kind == "dict":
                keys = ast.Tuple([ast.Constant(key) for key in leaf.keys], ast.Load())
            opened = self._code.assign(self._code.fresh("parts"), self._code.call_global(parts, source, keys, shown))
            for key, child in leaf.items():
                part = ast.Subscript(ast.Name(opened, ast.Load()), ast.Constant(key), ast.Load())
                self._unpack(child, name, part, (*path, key))
        else:
            node = self._graph.inputs[leaf]
            self._names[node.id] = self._code.assign(node.name, source) if path else name

    def _structure(self, leaf: Leaf, outputs: Sequence[ast.expr]) -> ast.expr:
        def join(tree: Tree, children: list[ast.expr]) -> ast.expr:
            if tree.kind == "dict":
                return ast.Dict([ast.Constant(key) for key in tree.keys], children)
            return (ast.Tuple if tree.kind == "tuple" else ast.List)(children, ast.Load())

        return fold(
            leaf, lambda end: self._code.constant(end.value) if isinstance(end, Constant) else outputs[end], join
        )

    # calls

    def _enter(self, region: Region) -> None:
        """Call a module that has a forward of its own."""
        given = [self._value(value) for value in region.inputs]
        result = ast.Call(self._reach(region.path), given, [])
        for value in region.outputs:
            self._given[value] = self._code.fresh(self._graph.node(value.node).op.split(".")[1])
        names: list[ast.expr] = [ast.Name(self._given[value], ast.Store()) for value in region.outputs]
        target = names[0] if len(names) == 1 else ast.Tuple(names, ast.Store())
        self._code.statements.append(ast.Assign([target], result) if names else ast.Expr(result))

    def _call(self, node: Node) -> None:
        call = self._calls.get(node.id)
        result = self._of_operator(node) if call is None else self._of_layer(call)
        self._names[node.id] = self._code.assign(node.op.split(".")[1], result)

    def _of_layer(self, call: LayerCall) -> ast.expr:
        operands = [
            ast.Tuple([self._argument(part) for part in operand], ast.Load())
            if isinstance(operand, tuple)
            else self._argument(operand)
            for operand in call.operands
        ]
        return ast.Call(self._reach(call.path), operands, [])

    def _of_operator(self, node: Node) -> ast.expr:
        arguments = {name: self._argument(a) for name, a in node.arguments.items()}
        mode = mode_argument(node)
        if mode is not None:
            path = node.location.module if node.location else ""
            arguments[mode] = self._reach(f"{path}.training" if path else "training")
            if node.argument(mode) is not False:
                times = ops.function("operator.mul")
                arguments[mode] = self._code.call_global(times, self._argument(node.argument(mode)), arguments[mode])
        if is_factory(node.op) and self._anchor is not None:
            arguments["device"] = ast.Attribute(self._value(self._anchor), "device", ast.Load())
        if node.op == BATCH_NORM and mode is not None:
            return self._batch_norm(node, arguments)
        schema = ops.schema(node.op)
        positional = [self._source(a) for a in ops.positional(node.op, arguments)]
        keywords = [ast.keyword(n, arguments[n]) for n in schema.names[schema.keyword_from :] if n in arguments]
        return ast.Call(self._operator(node.op), positional, keywords)

    def _operator(self, op: str) -> ast.expr:
        """Return the source of an operator: `torch.ops.aten.relu.default`, or a global name."""
        function = ops.function(op)
        if not isinstance(function, torch._ops.OpOverload):
            return self._code.global_name(function.__name__, function)
        found = self._code.global_name("torch", torch)
        for part in ("ops", *str(function).split(".")):
            found = ast.Attribute(found, part, ast.Load())
        return found

    def _batch_norm(self, node: Node, arguments: Mapping[str, ast.expr]) -> ast.expr:
        found = batch_counter(self._graph, node)
        batches = self._value(Value(found.id)) if found is not None else ast.Constant(None)
        given = [self._source(arguments.get(n, node.argument(n))) for n in ops.schema(BATCH_NORM).names]
        return self._code.call_global(batch_norm, *given[:5], batches, *given[5:])

    def _delete(self, step: Node | Region) -> None:
        """Delete what nothing uses after a step."""
        at = step.end if isinstance(step, Region) else self._regions.position[step.id]
        last = self._regions.last
        kept = self._anchor.node if self._anchor is not None else None
        gone: list[str] = []
        for value in (*self._regions.reads(step), *self._regions.makes(step)):
            if value in self._given:
                gone += [self._given.pop(value)] if last[value] <= at else []
            elif value.node in self._names and value.node != kept:
                node = self._graph.node(value.node)
                made = (value,) if len(node.results) == 1 else node.made
                gone += [self._names.pop(value.node)] if all(last[v] <= at for v in made) else []
        if gone:
            self._code.statements.append(ast.Delete([ast.Name(name, ast.Del()) for name in gone]))

    # expressions

    def _source(self, argument: Any) -> ast.expr:
        """Return the source of an argument, or of a default of the schema."""
        return argument if isinstance(argument, ast.expr) else self._argument(argument)

    def _argument(self, argument: Argument) -> ast.expr:
        if isinstance(argument, Value):
            return self._value(argument)
        if isinstance(argument, tuple):
            return ast.List([self._argument(part) for part in argument], ast.Load())
        if self._floating is not None and argument == self._anchors.dtype:
            return ast.Attribute(self._value(self._floating), "dtype", ast.Load())
        return self._code.constant(argument)

    def _reach(self, path: str) -> ast.expr:
        """Return the source of what stands at a path of the program, in this module."""
        return self._code.attribute(path.removeprefix(self._prefix))

    def _value(self, value: Value) -> ast.expr:
        if value in self._given:
            return ast.Name(self._given[value], ast.Load())
        node = self._graph.node(value.node)
        if node.parameter is not None:
            return self._reach(next(name for name in node.names if name.startswith(self._prefix)))
        name: ast.expr = ast.Name(self._names[node.id], ast.Load())
        if not (node.is_call and returns_sequence(node.op)):
            return name
        if node.id in self._calls and value.index and len(node.results) == 3:  # the states of `nn.LSTM` are a pair
            return ast.Subscript(
                ast.Subscript(name, ast.Constant(1), ast.Load()), ast.Constant(value.index - 1), ast.Load()
            )
        return ast.Subscript(name, ast.Constant(value.index), ast.Load())
