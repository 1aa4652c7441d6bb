"""Finds the calls that a stock module of `torch.nn` makes: same parameters, same names, same arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from archir.emit.code import literal, size
from archir.ir.execute import mode_argument
from archir.ir.graph import Graph
from archir.ir.lowering import batch_counter
from archir.ir.node import PARAMETER, Argument, Node, Value
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.types import TensorType


@dataclass(frozen=True)
class Stock:
    """A stock module and the calls it makes.

    Attributes:
        path: its path in the model.
        constructor: source that makes it.
        fields: names of its tensors in the state dict that the graph knows.
        extra: names of those the graph does not know.
        frozen: names of the parameters without gradients, where others have them.
    """

    path: str
    constructor: str
    fields: frozenset[str]
    extra: frozenset[str] = frozenset()
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class StockCall:
    """A node that is a call of a stock module.

    Attributes:
        path: path of the module.
        operands: what it is called with.
        absorbed: nodes that the call makes unnecessary.
    """

    path: str
    operands: tuple[Argument, ...]
    absorbed: tuple[int, ...] = ()


@dataclass(frozen=True)
class StockModules:
    """The stock modules of a program, by path, and their calls, by node."""

    modules: Mapping[str, Stock]
    calls: Mapping[int, StockCall]


@dataclass
class _Fit:
    """One way to see a node as a call of a stock module."""

    kind: str
    arguments: list[str]
    fields: dict[str, Argument]
    operands: tuple[Argument, ...]
    optional: tuple[str, ...] = ()
    absorbed: tuple[int, ...] = ()
    path: str = ""
    extra: frozenset[str] = field(default_factory=frozenset)


def find_stock(graph: Graph) -> StockModules:
    """Return the stock modules a graph can be written with."""
    owned: dict[str, dict[str, Node]] = {}
    for node in graph.parameters:
        for name in node.names:
            path, _, leaf = name.rpartition(".")
            owned.setdefault(path, {})[leaf] = node
    parents = {name[:i] for name in owned for i, sign in enumerate(name) if sign == "."}
    fits: dict[str, list[tuple[Node, _Fit]]] = {}
    for node in graph.calls:
        layer = operator_of(node.op).layer
        match = _MATCHERS.get(layer.module) if layer else None
        fit = match(graph, node) if match else None
        if fit is not None and _place(graph, node, fit, owned, parents):
            fits.setdefault(fit.path, []).append((node, fit))
    modules: dict[str, Stock] = {}
    calls: dict[int, StockCall] = {}
    for path, found in fits.items():
        found.sort(key=lambda f: f[0].location is None or f[0].location.module != path)
        constructor = _constructor(graph, found[0][1])
        frozen = _frozen(owned[path]) if len(_frozen(owned[path])) < len(_parameters(owned[path])) else ()
        modules[path] = Stock(path, constructor, frozenset(owned[path]), found[0][1].extra, frozen)
        for node, fit in found:
            if _constructor(graph, fit) == constructor:
                calls[node.id] = StockCall(path, fit.operands, fit.absorbed)
    return StockModules(modules, calls)


def _place(graph: Graph, node: Node, fit: _Fit, owned: Mapping[str, Mapping[str, Node]], parents: set[str]) -> bool:
    """Find the path under which the tensors of a fit have the names of the stock module."""
    wanted = {name: value for name, value in fit.fields.items() if value is not None}
    first = next(iter(wanted.values()))
    if not isinstance(first, Value) or graph.node(first.node).op != PARAMETER:
        return False
    source = graph.node(first.node).parameter
    assert source is not None
    here = node.location.module if node.location else ""
    paths = [n.rpartition(".")[0] for n in source.names]
    for path in sorted(paths, key=lambda p: p != here):
        fields = owned[path]
        known = set(fields) - set(fit.optional)
        if not path or path in parents or known != set(wanted):
            continue
        if all(isinstance(v, Value) and fields[n].id == v.node for n, v in wanted.items()) and _kinds(fit, fields):
            fit.path = path
            fit.extra = frozenset(n for n in fit.optional if n not in fields)
            return True
    return False


def _kinds(fit: _Fit, fields: Mapping[str, Node]) -> bool:
    buffers = {"running_mean", "running_var", *fit.optional}
    for name, node in fields.items():
        assert node.parameter is not None
        kind = node.parameter.kind
        if kind != ("buffer" if name in buffers else "parameter") or not node.parameter.persistent:
            return False
    return True


def _constructor(graph: Graph, fit: _Fit) -> str:
    nodes = [graph.node(v.node) for v in fit.fields.values() if isinstance(v, Value)]
    kinds = {n.tensor_type().dtype for n in nodes}
    arguments = list(fit.arguments)
    if kinds != {torch.float32}:
        arguments.append(f"dtype={literal(nodes[0].tensor_type().dtype)}")
    fields = {name: graph.node(v.node) for name, v in fit.fields.items() if isinstance(v, Value)}
    frozen = _parameters(fields) and _frozen(fields) == _parameters(fields)
    return f"nn.{fit.kind}({', '.join(arguments)}){'.requires_grad_(False)' if frozen else ''}"


def _parameters(fields: Mapping[str, Node]) -> tuple[str, ...]:
    return tuple(name for name, n in fields.items() if n.parameter and n.parameter.kind == "parameter")


def _frozen(fields: Mapping[str, Node]) -> tuple[str, ...]:
    """Return the names of the parameters of a module that have no gradients."""
    return tuple(name for name in _parameters(fields) if (p := fields[name].parameter) and not p.trainable)


def _shape(graph: Graph, value: Argument) -> tuple[int, ...]:
    assert isinstance(value, Value)
    found = graph.type_of(value)
    assert isinstance(found, TensorType)
    return tuple(s for s in found.shape if isinstance(s, int))


def _tensors(node: Node, *names: str) -> dict[str, Argument]:
    return {name: node.argument(name) for name in names}


def _spread(value: Argument, rank: int) -> tuple[int, ...]:
    """Return one number an axis."""
    items = value if isinstance(value, tuple) else (value,)
    found = tuple(i for i in items if isinstance(i, int))
    return found * rank if len(found) == 1 else found


def _each(value: tuple[int, ...]) -> str:
    """Return the source of numbers, one if all axes have the same."""
    return literal(value[0]) if len(set(value)) == 1 else f"({', '.join(map(literal, value))})"


def _linear(graph: Graph, node: Node) -> _Fit | None:
    shape = _shape(graph, node.argument("weight"))
    if len(shape) != 2:
        return None
    arguments = [size("in_features", shape[1]), size("out_features", shape[0])]
    arguments += [] if node.argument("bias") is not None else ["bias=False"]
    return _Fit("Linear", arguments, _tensors(node, "weight", "bias"), (node.argument("input"),))


def _convolution(graph: Graph, node: Node) -> _Fit | None:
    transposed = operator_of(node.op).kind is Kind.TRANSPOSED
    shape = _shape(graph, node.argument("weight"))
    rank, groups = len(shape) - 2, node.argument("groups")
    if not isinstance(groups, int):
        return None
    channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    arguments = [size("in_channels", channels[0]), size("out_channels", channels[1]), _each(shape[2:])]
    for name, usual in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)):
        if name == "output_padding" and not transposed:
            continue
        value = node.argument(name)
        if isinstance(value, str):
            arguments.append(f"{name}={literal(value)}")
        elif set(_spread(value, rank)) != {usual}:
            arguments.append(f"{name}={_each(_spread(value, rank))}")
    if groups > 1:
        arguments.append(f"groups={size('groups', groups)}")
    arguments += [] if node.argument("bias") is not None else ["bias=False"]
    kind = f"Conv{'Transpose' if transposed else ''}{rank}d"
    return _Fit(kind, arguments, _tensors(node, "weight", "bias"), (node.argument("input"),))


def _batch_norm(graph: Graph, node: Node) -> _Fit | None:
    mean, weight = node.argument("running_mean"), node.argument("weight")
    if mean is None or mode_argument(node) is None or (weight is None) != (node.argument("bias") is None):
        return None
    source = node.argument("input")
    found = graph.type_of(source) if isinstance(source, Value) else None
    rank = {2: 1, 3: 1, 4: 2, 5: 3}.get(len(found.shape)) if isinstance(found, TensorType) else None
    if rank is None:
        return None
    arguments = [size("num_features", _shape(graph, mean)[0])]
    eps, momentum = node.argument("eps"), node.argument("momentum")
    arguments += [f"eps={literal(eps)}"] if eps != 1e-5 else []
    if momentum != 0.1:
        cumulative = momentum == 0.0 and batch_counter(graph, node) is not None
        arguments.append(f"momentum={literal(None if cumulative else momentum)}")
    arguments += ["affine=False"] if weight is None else []
    fields = _tensors(node, "running_mean", "running_var", "weight", "bias")
    return _Fit(f"BatchNorm{rank}d", arguments, fields, (source,), optional=("num_batches_tracked",))


def _layer_norm(graph: Graph, node: Node) -> _Fit | None:
    if node.argument("weight") is None:
        return None
    shape = node.argument("normalized_shape")
    if not isinstance(shape, tuple):
        return None
    parts = [size("features", s) for s in shape if isinstance(s, int)]
    arguments = [parts[0] if len(parts) == 1 else f"({', '.join(parts)})"]
    eps = node.argument("eps")
    arguments += [f"eps={literal(eps)}"] if eps != 1e-5 else []
    arguments += [] if node.argument("bias") is not None else ["bias=False"]
    return _Fit("LayerNorm", arguments, _tensors(node, "weight", "bias"), (node.argument("input"),))


def _group_norm(graph: Graph, node: Node) -> _Fit | None:
    weight, groups, eps = node.argument("weight"), node.argument("num_groups"), node.argument("eps")
    if weight is None or node.argument("bias") is None or not isinstance(groups, int):
        return None
    arguments = [size("num_groups", groups), size("num_channels", _shape(graph, weight)[0])]
    arguments += [f"eps={literal(eps)}"] if eps != 1e-5 else []
    return _Fit("GroupNorm", arguments, _tensors(node, "weight", "bias"), (node.argument("input"),))


def _embedding(graph: Graph, node: Node) -> _Fit | None:
    if {"scale_grad_by_freq", "sparse"} & set(node.arguments):
        return None
    rows, columns = _shape(graph, node.argument("weight"))
    arguments = [size("num_embeddings", rows), size("embedding_dim", columns)]
    padding = node.argument("padding_idx")
    arguments += [f"padding_idx={literal(padding)}"] if padding != -1 else []
    return _Fit("Embedding", arguments, _tensors(node, "weight"), (node.argument("indices"),))


def _prelu(graph: Graph, node: Node) -> _Fit | None:
    count = _shape(graph, node.argument("weight"))[0]
    arguments = [size("num_parameters", count)] if count > 1 else []
    return _Fit("PReLU", arguments, _tensors(node, "weight"), (node.argument("self"),))


def _recurrent(graph: Graph, node: Node) -> _Fit | None:
    kind = node.op.split(".")[1].upper()
    weights, layers = node.argument("params"), node.argument("num_layers")
    biases, both = node.argument("has_biases"), node.argument("bidirectional")
    if not isinstance(weights, tuple) or not isinstance(layers, int) or mode_argument(node) is None:
        return None
    stems = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if biases else [])]
    names = [f"{s}_l{i}{d}" for i in range(layers) for d in (("", "_reverse") if both else ("",)) for s in stems]
    if len(names) != len(weights):
        return None
    hidden = _shape(graph, weights[1])[1]
    arguments = [size("input_size", _shape(graph, weights[0])[1]), size("hidden_size", hidden)]
    arguments += [f"num_layers={literal(layers)}"] if layers > 1 else []
    arguments += [] if biases else ["bias=False"]
    arguments += ["batch_first=True"] if node.argument("batch_first") else []
    arguments += [f"dropout={literal(node.argument('dropout'))}"] if node.argument("dropout") else []
    arguments += ["bidirectional=True"] if both else []
    states = node.argument("hx")
    flat = states if isinstance(states, tuple) else (states,)
    absorbed = [s.node for s in flat if isinstance(s, Value) and _is_zeros(graph, s, node)]
    operands: tuple[Argument, ...] = (node.argument("input"),)
    if len(absorbed) != len(flat):
        operands, absorbed = (*operands, states), []
    return _Fit(kind, arguments, dict(zip(names, weights, strict=True)), operands, absorbed=tuple(absorbed))


def _is_zeros(graph: Graph, value: Value, user: Node) -> bool:
    made = graph.node(value.node)
    return made.op == "aten.zeros.default" and {u.node for u in graph.uses(value)} == {user.id}


_MATCHERS: dict[str, Callable[[Graph, Node], _Fit | None]] = {
    "Linear": _linear,
    "BatchNorm": _batch_norm,
    "LayerNorm": _layer_norm,
    "GroupNorm": _group_norm,
    "Embedding": _embedding,
    "PReLU": _prelu,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    **{f"{kind}{d}d": _convolution for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
}
"""What fits a call to the module its operator belongs to."""

KINDS = frozenset({*_MATCHERS, *(f"BatchNorm{d}d" for d in (1, 2, 3))}) - {"BatchNorm"}
"""The stock modules that are found."""
