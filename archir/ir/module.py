"""Lowers a graph to a live nn.Module: the one place where graphs become modules.

The module is a tree of plain modules under the original names that holds the tensors; its `forward`
is Python source generated through an fx graph. Operators that behave differently in training read the
`training` flag of the module they came from when they run.
"""

from __future__ import annotations

import keyword
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.execute import is_factory, mode_argument, returns_sequence
from archir.ir.node import Argument, Constant, Leaf, Node, Signature, Tree, Value
from archir.ir.types import TensorType

if TYPE_CHECKING:
    from archir.ir.graph import Graph

BATCH_NORM = "aten.batch_norm.default"


def to_module(graph: Graph) -> nn.Module:
    """Return a live module that computes what the graph says.

    State-dict keys are the original ones; tied tensors are one `nn.Parameter` under all their names.
    The module owns copies of the graph's tensors, starts in training mode as every nn.Module does, and may be
    moved, cast, trained, compiled, copied and captured again. Tensors made from nothing (`zeros`, `arange`)
    follow the device of the first parameter, and element types equal to that of the first floating-point
    parameter follow its element type. Submodules hold tensors and flags only: forward hooks belong on the root.

    Raises:
        GraphError: an operator is not there in this process.
    """
    program = _Lowering(graph).program()
    code = program.python_code("self")
    scope: dict[str, Any] = {
        **code.globals,
        "__name__": f"archir.lowered.{graph.name}",
        "__loader__": _Source(code.src),
    }
    exec(compile(code.src, f"archir lowering of {graph.name}", "exec"), scope)
    root: nn.Module = type(graph.name, (nn.Module,), {"forward": scope["forward"], "__module__": __name__})()
    _fill(root, graph)
    return root


@dataclass(frozen=True, slots=True)
class _Source:
    """The generated source, where tracebacks and `inspect` look for it."""

    text: str

    def get_source(self, name: str) -> str:
        return self.text


def _fill(root: nn.Module, graph: Graph) -> None:
    for node in graph.parameters:
        assert node.parameter is not None
        tensor = graph.tensors[node.id].detach().clone()
        trainable = node.parameter.kind == "parameter"
        stored = nn.Parameter(tensor, requires_grad=node.parameter.trainable) if trainable else tensor
        for name in node.parameter.names:
            path, _, field = name.rpartition(".")
            owner = _container(root, path)
            if isinstance(stored, nn.Parameter):
                owner.register_parameter(field, stored)
            else:
                owner.register_buffer(field, stored, persistent=node.parameter.persistent)
    for node in graph.calls:
        if mode_argument(node) is not None:
            _container(root, _module_path(node))


def _container(root: nn.Module, path: str) -> nn.Module:
    for field in filter(None, path.split(".")):
        if field not in root._modules:
            root.add_module(field, nn.Module())
        root = root.get_submodule(field)
    return root


def _module_path(node: Node) -> str:
    return node.location.module if node.location else ""


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


def fixed(value: object, captured: object, name: str) -> None:
    """Check that an argument has the value the program was captured for.

    Raises:
        GraphError: it has another.
    """
    if value != captured:
        raise GraphError(
            f"argument {name} is {value!r}, and the program was captured for {captured!r}",
            mend="capture the model once more with that value",
        )


class _Lowering:
    """Writes the fx graph of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._fx = fx.Graph()
        self._values: dict[Value, Any] = {}
        self._sequences: dict[int, fx.Node] = {}
        self._flags: dict[str, fx.Node] = {}
        parameters = [n for n in graph.parameters if n.parameter and n.parameter.kind == "parameter"]
        self._floating = next((n for n in parameters if n.tensor_type().dtype.is_floating_point), None)
        tensors = [n for n in (*parameters, *graph.inputs, *graph.parameters) if isinstance(n.results[0], TensorType)]
        self._anchor = Value(tensors[0].id) if tensors else None

    def program(self) -> fx.Graph:
        self._inputs(self._graph.signature)
        for node in self._graph.calls:
            self._call(node)
        outputs = [self._argument(a) for a in self._graph.output.arguments.values()]
        self._fx.output(_structure(self._graph.signature.result, outputs))
        return self._fx

    def _inputs(self, signature: Signature) -> None:
        slots = [(self._slot_name(leaf, f"arg{i}"), leaf) for i, leaf in enumerate(signature.args.children)]
        named = list(zip(signature.kwargs.keys, signature.kwargs.children, strict=True))
        slots += sorted(named, key=lambda slot: isinstance(slot[1], Constant))
        optional = len(slots)
        while optional and isinstance(slots[optional - 1][1], Constant):
            optional -= 1
        made = []
        for i, (name, leaf) in enumerate(slots):
            default = (leaf.value,) if isinstance(leaf, Constant) and i >= optional else ()
            made.append(self._fx.placeholder(name, None, *default))
        for (name, leaf), node in zip(slots, made, strict=True):
            self._unpack(leaf, node, name)

    def _slot_name(self, leaf: Leaf, otherwise: str) -> str:
        return self._graph.inputs[leaf].name if isinstance(leaf, int) else otherwise

    def _unpack(self, leaf: Leaf, node: fx.Node, name: str) -> None:
        if isinstance(leaf, Constant):
            self._fx.call_function(fixed, (node, leaf.value, name))
        elif isinstance(leaf, Tree):
            for key, child in _items(leaf):
                self._unpack(child, self._fx.call_function(operator.getitem, (node, key)), f"{name}[{key!r}]")
        else:
            self._values[Value(self._graph.inputs[leaf].id)] = node

    def _value(self, value: Value) -> Any:
        if value not in self._values:
            source = self._graph.node(value.node)
            if source.parameter is not None:
                self._values[value] = self._attribute(source.parameter.names[0])
            else:
                sequence = self._sequences[value.node]
                self._values[value] = self._fx.call_function(operator.getitem, (sequence, value.index))
        return self._values[value]

    def _attribute(self, path: str) -> fx.Node:
        """Read a tensor or a flag of a submodule; one named like a Python keyword is not an attribute in the source."""
        parts = path.split(".")
        odd = next((i for i, part in enumerate(parts) if keyword.iskeyword(part)), None)
        if odd is None:
            return self._fx.create_node("get_attr", path)
        last = odd == len(parts) - 1
        kept_in = ("_parameters" if self._is_parameter(path) else "_buffers") if last else "_modules"
        holder = self._fx.create_node("get_attr", ".".join([*parts[:odd], kept_in]))
        found = self._fx.call_function(operator.getitem, (holder, parts[odd]))
        for part in parts[odd + 1 :]:
            found = self._fx.call_function(getattr, (found, part))
        return found

    def _is_parameter(self, name: str) -> bool:
        parameter = self._graph.by_name[name].parameter
        return parameter is not None and parameter.kind == "parameter"

    def _argument(self, argument: Argument) -> Any:
        if isinstance(argument, Value):
            return self._value(argument)
        if isinstance(argument, tuple):
            return [self._argument(part) for part in argument]
        if self._floating is not None and argument == self._floating.tensor_type().dtype:
            return self._fx.call_function(getattr, (self._value(Value(self._floating.id)), "dtype"))
        return argument

    def _call(self, node: Node) -> None:
        arguments = {name: self._argument(a) for name, a in node.arguments.items()}
        mode = mode_argument(node)
        if mode is not None:
            flag = self._flag(_module_path(node))
            value: Any = node.argument(mode)
            arguments[mode] = flag if value is False else self._fx.call_function(operator.mul, (value, flag))
        if is_factory(node.op) and self._anchor is not None:
            arguments["device"] = self._fx.call_function(getattr, (self._value(self._anchor), "device"))
        if node.op == BATCH_NORM and mode is not None:
            result = self._batch_norm(node, arguments)
        else:
            schema = ops.schema(node.op)
            keywords = {n: arguments[n] for n in schema.names[schema.keyword_from :] if n in arguments}
            positional: tuple[Any, ...] = tuple(ops.positional(node.op, arguments))
            result = self._fx.call_function(ops.function(node.op), positional, keywords)
        if returns_sequence(node.op):
            self._sequences[node.id] = result
        else:
            self._values[Value(node.id)] = result

    def _flag(self, path: str) -> fx.Node:
        if path not in self._flags:
            self._flags[path] = self._attribute(f"{path}.training" if path else "training")
        return self._flags[path]

    def _batch_norm(self, node: Node, arguments: dict[str, Any]) -> fx.Node:
        mean = node.argument("running_mean")
        source = self._graph.node(mean.node).parameter if isinstance(mean, Value) else None
        counters = [f"{n.rpartition('.')[0]}.num_batches_tracked".lstrip(".") for n in source.names] if source else []
        found = next((self._graph.by_name[c] for c in counters if c in self._graph.by_name), None)
        batches = self._value(Value(found.id)) if found is not None else None
        given = [arguments.get(n, node.argument(n)) for n in ops.schema(BATCH_NORM).names]
        return self._fx.call_function(batch_norm, (*given[:5], batches, *given[5:]))


def _items(tree: Tree) -> Iterator[tuple[str | int, Leaf]]:
    return zip(tree.keys if tree.kind == "dict" else range(len(tree.children)), tree.children, strict=True)


def _structure(leaf: Leaf, outputs: Sequence[Any]) -> Any:
    if isinstance(leaf, Constant):
        return leaf.value
    if isinstance(leaf, int):
        return outputs[leaf]
    children = {key: _structure(child, outputs) for key, child in _items(leaf)}
    return (
        children if leaf.kind == "dict" else tuple(children.values()) if leaf.kind == "tuple" else [*children.values()]
    )
