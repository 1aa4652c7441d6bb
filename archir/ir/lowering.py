"""Writes the `forward` of a graph as a syntax tree: names and constants are nodes of it and never become text.

A statement a call, in the graph's order; what is not needed any more is deleted:

    def forward(self, x):
        linear = torch.ops.aten.linear.default(x, self.fc.weight, self.fc.bias)
        del x
        return torch.ops.aten.relu.default(linear)
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.arguments import fixed, parts
from archir.ir.data import GraphData
from archir.ir.execute import is_factory, mode_argument, returns_sequence
from archir.ir.input_checks import entry_check
from archir.ir.layer_forms import batch_counter
from archir.ir.node import Argument, Constant, Leaf, Node, Tree, Value, fold
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Lowered:
    """The `forward` of a graph.

    Attributes:
        tree: a module of the syntax tree with the one function `forward`.
        scope: what its global names stand for.
    """

    tree: ast.Module
    scope: dict[str, object]


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


def place(tree: ast.AST, line: int) -> None:
    """Let every part of a syntax tree stand on one line."""
    for part in ast.walk(tree):
        if isinstance(part, ast.stmt | ast.expr | ast.arg | ast.keyword):
            part.lineno = part.end_lineno = line
            part.col_offset = part.end_col_offset = 0


def lower(graph: GraphData) -> Lowered:
    """Return the `forward` of a graph, a method of a module that holds its tensors and flags under their names."""
    return _Lowering(graph).lowered()


class _Lowering:
    """What has been written so far."""

    def __init__(self, graph: GraphData) -> None:
        self._graph = graph
        self._scope: dict[str, object] = {}
        self._statements: list[ast.stmt] = []
        self._names: dict[int, str] = {}
        self._numbers: Counter[str] = Counter()
        self._last = _last_uses(graph)
        parameters = [n for n in graph.parameters if n.parameter and n.parameter.kind == "parameter"]
        self._floating = next((n for n in parameters if n.tensor_type().dtype.is_floating_point), None)
        tensors = [n for n in (*parameters, *graph.inputs, *graph.parameters) if isinstance(n.results[0], TensorType)]
        self._anchor = Value(tensors[0].id) if tensors else None
        self._taken: set[str] = set()
        slots = self._slots()
        self._self = self._fresh("self")
        self._arguments = self._declare(slots)

    def lowered(self) -> Lowered:
        inputs = [self._value(Value(n.id)) for n in self._graph.inputs]
        self._statements.append(ast.Expr(self._call_global(entry_check(self._graph), *inputs)))
        for node in self._graph.calls:
            self._call(node)
            self._delete(node.id)
        outputs = [self._argument(a) for a in self._graph.output.arguments.values()]
        self._statements.append(ast.Return(self._structure(self._graph.signature.result, outputs)))
        function = ast.FunctionDef(
            "forward", self._arguments, self._statements, decorator_list=[], lineno=1, col_offset=0
        )
        place(self._arguments, 1)
        for line, statement in enumerate(self._statements, start=2):
            # Each stands on a line of its own when the tree is shown as text, to which tracebacks refer.
            place(statement, line)
        return Lowered(ast.Module([function], type_ignores=[]), self._scope)

    # arguments and results

    def _slots(self) -> list[tuple[str, Leaf]]:
        """Return the arguments by name; constants that are given by keyword come last, since they have defaults."""
        signature = self._graph.signature
        named = list(zip(signature.kwargs.keys, signature.kwargs.children, strict=True))
        self._taken = {*signature.kwargs.keys, *(n.name for n in self._graph.inputs)}
        slots: list[tuple[str, Leaf]] = []
        for i, leaf in enumerate(signature.args.children):
            slots.append((self._graph.inputs[leaf].name if isinstance(leaf, int) else self._fresh(f"arg{i}"), leaf))
        slots += sorted(named, key=lambda slot: isinstance(slot[1], Constant))
        for name, count in Counter(name for name, _ in slots).items():
            if count > 1:
                raise GraphError(f"{count} arguments of graph {self._graph.name} are called {name!r}")
        return slots

    def _declare(self, slots: Sequence[tuple[str, Leaf]]) -> ast.arguments:
        optional = len(slots)
        while optional and isinstance(slots[optional - 1][1], Constant):
            optional -= 1
        defaults = [self._constant(leaf.value) for _, leaf in slots[optional:] if isinstance(leaf, Constant)]
        for name, leaf in slots:
            self._unpack(leaf, name, ast.Name(name, ast.Load()))
        names = [ast.arg(name) for name in (self._self, *(name for name, _ in slots))]
        return ast.arguments(posonlyargs=[], args=names, kwonlyargs=[], kw_defaults=[], defaults=defaults)

    def _unpack(self, leaf: Leaf, name: str, source: ast.expr, path: tuple[str | int, ...] = ()) -> None:
        """Check the constants and containers of an argument, and give names to the inputs that are nested in it."""
        shown = ast.Constant(name + "".join(f"[{key!r}]" for key in path))
        if isinstance(leaf, Constant):
            self._statements.append(ast.Expr(self._call_global(fixed, source, self._constant(leaf.value), shown)))
        elif isinstance(leaf, Tree):
            keys: ast.expr = ast.Constant(len(leaf.children))
            if leaf.kind == "dict":
                keys = ast.Tuple([ast.Constant(key) for key in leaf.keys], ast.Load())
            opened = self._assign(self._fresh("parts"), self._call_global(parts, source, keys, shown))
            for key, child in leaf.items():
                part = ast.Subscript(ast.Name(opened, ast.Load()), ast.Constant(key), ast.Load())
                self._unpack(child, name, part, (*path, key))
        else:
            node = self._graph.inputs[leaf]
            self._names[node.id] = self._assign(node.name, source) if path else name

    def _structure(self, leaf: Leaf, outputs: Sequence[ast.expr]) -> ast.expr:
        def join(tree: Tree, children: list[ast.expr]) -> ast.expr:
            if tree.kind == "dict":
                return ast.Dict([ast.Constant(key) for key in tree.keys], children)
            return (ast.Tuple if tree.kind == "tuple" else ast.List)(children, ast.Load())

        return fold(leaf, lambda end: self._constant(end.value) if isinstance(end, Constant) else outputs[end], join)

    # calls

    def _call(self, node: Node) -> None:
        arguments = {name: self._argument(a) for name, a in node.arguments.items()}
        mode = mode_argument(node)
        if mode is not None:
            path = node.location.module if node.location else ""
            arguments[mode] = self._attribute(f"{path}.training" if path else "training")
            if node.argument(mode) is not False:
                times = ops.function("operator.mul")
                arguments[mode] = self._call_global(times, self._argument(node.argument(mode)), arguments[mode])
        if is_factory(node.op) and self._anchor is not None:
            arguments["device"] = ast.Attribute(self._value(self._anchor), "device", ast.Load())
        if node.op == BATCH_NORM and mode is not None:
            result = self._batch_norm(node, arguments)
        else:
            schema = ops.schema(node.op)
            positional = [self._source(a) for a in ops.positional(node.op, arguments)]
            keywords = [ast.keyword(n, arguments[n]) for n in schema.names[schema.keyword_from :] if n in arguments]
            result = ast.Call(self._function(node.op), positional, keywords)
        self._names[node.id] = self._assign(node.op.split(".")[1], result)

    def _function(self, op: str) -> ast.expr:
        """Return the source of an operator: `torch.ops.aten.relu.default`, or a global name."""
        function = ops.function(op)
        if not isinstance(function, torch._ops.OpOverload):
            return self._global(function.__name__, function)
        found = self._global("torch", torch)
        for part in ("ops", *str(function).split(".")):
            found = ast.Attribute(found, part, ast.Load())
        return found

    def _batch_norm(self, node: Node, arguments: Mapping[str, ast.expr]) -> ast.expr:
        found = batch_counter(self._graph, node)
        batches = self._value(Value(found.id)) if found is not None else ast.Constant(None)
        given = [self._source(arguments.get(n, node.argument(n))) for n in ops.schema(BATCH_NORM).names]
        return self._call_global(batch_norm, *given[:5], batches, *given[5:])

    def _delete(self, node: int) -> None:
        """Delete what nothing uses after a call."""
        kept = self._anchor.node if self._anchor is not None else None
        gone = [self._names.pop(id_) for id_ in self._last.get(node, ()) if id_ in self._names and id_ != kept]
        if gone:
            self._statements.append(ast.Delete([ast.Name(name, ast.Del()) for name in gone]))

    # expressions

    def _source(self, argument: Any) -> ast.expr:
        """Return the source of an argument, or of a default of the schema."""
        return argument if isinstance(argument, ast.expr) else self._argument(argument)

    def _argument(self, argument: Argument) -> ast.expr:
        if isinstance(argument, Value):
            return self._value(argument)
        if isinstance(argument, tuple):
            return ast.List([self._argument(part) for part in argument], ast.Load())
        if self._floating is not None and argument == self._floating.tensor_type().dtype:
            return ast.Attribute(self._value(Value(self._floating.id)), "dtype", ast.Load())
        return self._constant(argument)

    def _value(self, value: Value) -> ast.expr:
        node = self._graph.node(value.node)
        if node.parameter is not None:
            return self._attribute(node.parameter.names[0])
        name = ast.Name(self._names[node.id], ast.Load())
        several = node.is_call and returns_sequence(node.op)
        return ast.Subscript(name, ast.Constant(value.index), ast.Load()) if several else name

    def _attribute(self, path: str) -> ast.expr:
        """Read a tensor or a flag of a submodule; a part that is no Python name is looked up by its text."""
        found: ast.expr = ast.Name(self._self, ast.Load())
        for part in path.split("."):
            if part.isidentifier() and not keyword.iskeyword(part):
                found = ast.Attribute(found, part, ast.Load())
            else:
                found = self._call_global(getattr, found, ast.Constant(part))
        return found

    def _constant(self, value: object) -> ast.expr:
        """Return the source of a constant; one that has no literal is a global name."""
        if value is None or isinstance(value, bool | int | str | complex):
            return ast.Constant(value)
        if isinstance(value, float):
            return (
                ast.Constant(value) if math.isfinite(value) else self._global(str(value).replace("-", "minus_"), value)
            )
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return ast.Attribute(self._global("torch", torch), str(value).removeprefix("torch."), ast.Load())
        return self._global(re.sub(r"\W", "_", str(value)), value)

    def _call_global(self, function: Callable[..., Any], *arguments: ast.expr) -> ast.expr:
        return ast.Call(self._global(function.__name__, function), list(arguments), [])

    def _global(self, hint: str, value: object) -> ast.expr:
        """Return a global name that stands for an object and is no name of an argument or variable."""
        name = next((n for n, found in self._scope.items() if found is value), None)
        if name is None:
            name = self._fresh(hint)
            self._scope[name] = value
        return ast.Name(name, ast.Load())

    def _assign(self, hint: str, source: ast.expr) -> str:
        name = self._fresh(hint)
        self._statements.append(ast.Assign([ast.Name(name, ast.Store())], source))
        return name

    def _fresh(self, hint: str) -> str:
        """Return a name that was never used: one name is either a variable or global in the whole of a function."""
        name = hint
        while name in self._taken or keyword.iskeyword(name):
            self._numbers[hint] += 1
            name = f"{hint}_{self._numbers[hint]}"
        self._taken.add(name)
        return name


def _last_uses(graph: GraphData) -> dict[int, list[int]]:
    """Return by call which inputs and calls are not used after it, itself if nothing uses it."""
    last = {node.id: node.id for node in (*graph.inputs, *graph.calls)}
    for node in (*graph.calls, graph.output):
        last.update((value.node, node.id) for value in node.values if value.node in last)
    found: dict[int, list[int]] = {}
    for id_, user in last.items():
        found.setdefault(user, []).append(id_)
    return found
