"""How each call is read as the call of a layer of `torch.nn` with tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from archir.ir.data import GraphData
from archir.ir.execute import mode_argument
from archir.ir.node import Argument, Node, Value
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.types import TensorType

Options = tuple[tuple[str, Argument], ...]
"""The arguments of a class of `torch.nn` by name, in order."""


@dataclass(frozen=True, slots=True)
class Form:
    """A call, read as that of a layer.

    Attributes:
        kind: the class of the layer.
        options: what it is made with.
        tensors: its tensors by the names it has for them; None where it has none.
        operands: what it is called with.
        optional: names of tensors that such a layer has, too, and that the call does not take.
        absorbed: nodes that the layer makes unnecessary.
    """

    kind: str
    options: Options
    tensors: Mapping[str, Argument]
    operands: tuple[Argument, ...]
    optional: tuple[str, ...] = ()
    absorbed: tuple[int, ...] = ()


def batch_counter(graph: GraphData, node: Node) -> Node | None:
    """Return what counts the batches a batch normalisation has seen, None if that is not stored.

    Args:
        graph: the program.
        node: the normalisation.
    """
    mean = node.argument("running_mean")
    stored = graph.node(mean.node).parameter if isinstance(mean, Value) else None
    names = [f"{n.rpartition('.')[0]}.num_batches_tracked".lstrip(".") for n in stored.names] if stored else []
    return next((graph.by_name[n] for n in names if n in graph.by_name), None)


def _shape(graph: GraphData, value: Argument) -> tuple[int, ...]:
    """Return the sizes of a stored tensor; none of another value."""
    found = graph.type_of(value) if isinstance(value, Value) else None
    sizes = found.shape if isinstance(found, TensorType) else ()
    return tuple(s for s in sizes if isinstance(s, int)) if all(isinstance(s, int) for s in sizes) else ()


def _tensors(node: Node, *names: str) -> dict[str, Argument]:
    return {name: node.argument(name) for name in names}


def _each(value: Argument, rank: int) -> int | tuple[int, ...] | None:
    """Return a number for each axis, one if all have the same; None for what is no number."""
    items = value if isinstance(value, tuple) else (value,)
    found = tuple(i for i in items if isinstance(i, int))
    if len(found) != len(items) or len(found) not in (1, rank):
        return None
    return found[0] if len(set(found)) == 1 else found


def _linear(graph: GraphData, node: Node) -> Form | None:
    shape = _shape(graph, node.argument("weight"))
    if len(shape) != 2:
        return None
    options: Options = (("in_features", shape[1]), ("out_features", shape[0]), *_bias(node))
    return Form("Linear", options, _tensors(node, "weight", "bias"), (node.argument("input"),))


def _bias(node: Node) -> Options:
    return () if node.argument("bias") is not None else (("bias", False),)


def _convolution(graph: GraphData, node: Node) -> Form | None:
    transposed = operator_of(node.op).kind is Kind.TRANSPOSED
    shape = _shape(graph, node.argument("weight"))
    rank, groups = len(shape) - 2, node.argument("groups")
    if rank < 1 or not isinstance(groups, int):
        return None
    channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    kernel = _each(shape[2:], rank)
    assert kernel is not None
    options: Options = (("in_channels", channels[0]), ("out_channels", channels[1]), ("kernel_size", kernel))
    for name, usual in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)):
        if name == "output_padding" and not transposed:
            continue
        value = node.argument(name)
        found = value if isinstance(value, str) else _each(value, rank)
        if found is None:
            return None
        options += ((name, found),) if found != usual else ()
    options += (("groups", groups),) if groups > 1 else ()
    kind = f"Conv{'Transpose' if transposed else ''}{rank}d"
    return Form(kind, (*options, *_bias(node)), _tensors(node, "weight", "bias"), (node.argument("input"),))


def _batch_norm(graph: GraphData, node: Node) -> Form | None:
    mean, variance, weight = (node.argument(n) for n in ("running_mean", "running_var", "weight"))
    one_of_two = (weight is None) != (node.argument("bias") is None)
    if node.op != BATCH_NORM or mode_argument(node) is None or mean is None or variance is None or one_of_two:
        return None
    source = node.argument("input")
    found = graph.type_of(source) if isinstance(source, Value) else None
    rank = {2: 1, 3: 1, 4: 2, 5: 3}.get(len(found.shape)) if isinstance(found, TensorType) else None
    features = _shape(graph, mean)
    if rank is None or len(features) != 1:
        return None
    eps, momentum = node.argument("eps"), node.argument("momentum")
    options: Options = (("num_features", features[0]), *_epsilon(eps))
    if momentum != 0.1:
        cumulative = momentum == 0.0 and batch_counter(graph, node) is not None
        options += (("momentum", None if cumulative else momentum),)
    options += (("affine", False),) if weight is None else ()
    fields = _tensors(node, "running_mean", "running_var", "weight", "bias")
    return Form(f"BatchNorm{rank}d", options, fields, (source,), optional=("num_batches_tracked",))


def _epsilon(eps: Argument) -> Options:
    return (("eps", eps),) if eps != 1e-5 else ()


def _layer_norm(graph: GraphData, node: Node) -> Form | None:
    shape = node.argument("normalized_shape")
    if (
        node.argument("weight") is None
        or not isinstance(shape, tuple)
        or _shape(graph, node.argument("weight")) != shape
    ):
        return None
    sizes = tuple(s for s in shape if isinstance(s, int))
    normalised = sizes[0] if len(sizes) == 1 else sizes
    options: Options = (("normalized_shape", normalised), *_epsilon(node.argument("eps")), *_bias(node))
    return Form("LayerNorm", options, _tensors(node, "weight", "bias"), (node.argument("input"),))


def _group_norm(graph: GraphData, node: Node) -> Form | None:
    weight, groups = node.argument("weight"), node.argument("num_groups")
    channels = _shape(graph, weight)
    if len(channels) != 1 or node.argument("bias") is None or not isinstance(groups, int):
        return None
    options: Options = (("num_groups", groups), ("num_channels", channels[0]), *_epsilon(node.argument("eps")))
    return Form("GroupNorm", options, _tensors(node, "weight", "bias"), (node.argument("input"),))


def _embedding(graph: GraphData, node: Node) -> Form | None:
    shape, padding = _shape(graph, node.argument("weight")), node.argument("padding_idx")
    if {"scale_grad_by_freq", "sparse"} & set(node.arguments) or len(shape) != 2 or not isinstance(padding, int):
        return None
    options: Options = (("num_embeddings", shape[0]), ("embedding_dim", shape[1]))
    options += (("padding_idx", padding),) if padding != -1 else ()
    # The layer counts negative numbers from the end, the operator does not.
    return None if padding < -1 else Form("Embedding", options, _tensors(node, "weight"), (node.argument("indices"),))


def _prelu(graph: GraphData, node: Node) -> Form | None:
    shape = _shape(graph, node.argument("weight"))
    if node.op != "aten.prelu.default" or len(shape) != 1:
        return None
    options: Options = (("num_parameters", shape[0]),) if shape[0] > 1 else ()
    return Form("PReLU", options, _tensors(node, "weight"), (node.argument("self"),))


def _recurrent(graph: GraphData, node: Node) -> Form | None:
    kind = node.op.split(".")[1].upper()
    weights, layers = node.argument("params"), node.argument("num_layers")
    biases, both = node.argument("has_biases"), node.argument("bidirectional")
    if not isinstance(weights, tuple) or not isinstance(layers, int) or layers < 1 or mode_argument(node) is None:
        return None
    stems = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if biases else [])]
    if layers * len(stems) * (2 if both else 1) != len(weights):
        return None
    names = [f"{s}_l{i}{d}" for i in range(layers) for d in (("", "_reverse") if both else ("",)) for s in stems]
    inner, outer = _shape(graph, weights[1]), _shape(graph, weights[0])
    if len(inner) != 2 or len(outer) != 2:
        return None
    options: Options = (("input_size", outer[1]), ("hidden_size", inner[1]))
    options += (("num_layers", layers),) if layers > 1 else ()
    options += () if biases else (("bias", False),)
    options += (("batch_first", True),) if node.argument("batch_first") else ()
    options += (("dropout", node.argument("dropout")),) if node.argument("dropout") else ()
    options += (("bidirectional", True),) if both else ()
    states = node.argument("hx")
    flat = states if isinstance(states, tuple) else (states,)
    absorbed = [s.node for s in flat if isinstance(s, Value) and _is_zeros(graph, s, node)]
    operands: tuple[Argument, ...] = (node.argument("input"),)
    if len(absorbed) != len(flat):
        operands, absorbed = (*operands, states), []
    return Form(kind, options, dict(zip(names, weights, strict=True)), operands, absorbed=tuple(absorbed))


def _is_zeros(graph: GraphData, value: Value, user: Node) -> bool:
    made = graph.node(value.node)
    return made.op == "aten.zeros.default" and {u.node for u in graph.uses(value)} == {user.id}


MATCHERS: Mapping[str, Callable[[GraphData, Node], Form | None]] = MappingProxyType(
    {
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
)
"""What reads a call as that of the layer its operator belongs to."""
