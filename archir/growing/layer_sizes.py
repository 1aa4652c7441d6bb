"""What layers say of their own sizes: attributes of those of `torch.nn`, and numbers in modules of the user's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from archir.errors import GrowError
from archir.ir.graph import Graph
from archir.ir.node import Argument, Node
from archir.ir.operators.attention import ATTENTION
from archir.ir.types import TensorType

Calls = Sequence[Node]
"""The calls that the forward of a layer makes, in order."""

Attributes = dict[str, Any]
"""Values of attributes by name."""


def layer_attributes(layer: nn.Module, calls: Calls) -> Attributes:
    """Return what a layer of `torch.nn` has to say of its sizes, by the tensors it holds and what it is to call.

    Args:
        layer: the layer, which holds its new tensors.
        calls: what its forward is to call, in the graph after.

    Returns:
        The attributes that there are to set; none for a module that is no such layer.

    Raises:
        GrowError: its tensors have changed by more than widths.
    """
    found = next((read for kinds, read in _READERS if isinstance(layer, kinds)), None)
    return {} if found is None else found(layer, calls)


def spoken_sizes(before: Graph, after: Graph, path: str) -> dict[int, set[int]]:
    """Return the whole numbers that the calls of a module's forward speak of, each with what it has become.

    These are sizes of results and whole numbers among the arguments. A number that stands for several sizes may have
    become several.

    Args:
        before: the graph before.
        after: a rewriting of it.
        path: of the module.
    """
    found: dict[int, set[int]] = defaultdict(set)
    for old in before.calls:
        if old.location is None or old.location.module != path or old.id not in after:
            continue
        new = after.node(old.id)
        pairs = list(zip(_numbers(old), _numbers(new), strict=False))
        for one, other in pairs:
            found[one].add(other)
    return found


def own_attributes(module: nn.Module, sizes: Mapping[int, set[int]], *, eagerly: bool) -> Attributes:
    """Return the whole numbers among the attributes of a module that are sizes which have changed.

    Args:
        module: a module of the user's own.
        sizes: what sizes have become.
        eagerly: whether a number that has become another in one place and stayed in another is changed as well.
    """

    def changed(value: int) -> int:
        others = sizes.get(value, {value}) - ({value} if eagerly else set())
        return next(iter(others)) if len(others) == 1 else value

    found: Attributes = {}
    for name, value in vars(module).items():
        if type(value) is int and changed(value) != value:
            found[name] = changed(value)
        elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
            new = type(value)(changed(v) for v in value)
            found |= {name: new} if new != value else {}
    return found


def _numbers(node: Node) -> Iterator[int]:
    """Yield the sizes of the results of a call that are known, and the whole numbers among its arguments, in order."""
    for type_ in node.results:
        if isinstance(type_, TensorType):
            yield from (size if isinstance(size, int) else -1 for size in type_.shape)
    for argument in node.arguments.values():
        yield from _whole(argument)


def _whole(argument: Argument) -> Iterator[int]:
    if type(argument) is int:
        yield argument
    elif isinstance(argument, tuple | list):
        for part in argument:
            yield from _whole(part)


def _argument(calls: Calls, name: str) -> Any:
    """Return an argument of the first call that is given it; None if none is."""
    return next((call.arguments[name] for call in calls if name in call.arguments), None)


def _shape(layer: nn.Module, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor of a layer; nothing where it has none of that name."""
    found = getattr(layer, name, None)
    return tuple(found.shape) if isinstance(found, torch.Tensor) else ()


def _channels(layer: nn.Module, calls: Calls) -> int | None:
    """Return the number of channels that a normalisation sees, by its tensors or else by its result."""
    shape = _shape(layer, "weight") or _shape(layer, "running_mean")
    if shape:
        return shape[0]
    known = [t.shape[1] for call in calls if isinstance(t := call.results[0], TensorType) and len(t.shape) > 1]
    return known[-1] if known and isinstance(known[-1], int) else None


def _linear(layer: nn.Module, calls: Calls) -> Attributes:
    return {"out_features": _shape(layer, "weight")[0], "in_features": _shape(layer, "weight")[1]}


def _bilinear(layer: nn.Module, calls: Calls) -> Attributes:
    names = ("out_features", "in1_features", "in2_features")
    return dict(zip(names, _shape(layer, "weight"), strict=True))


def _embedding(layer: nn.Module, calls: Calls) -> Attributes:
    return {"num_embeddings": _shape(layer, "weight")[0], "embedding_dim": _shape(layer, "weight")[1]}


def _convolution(layer: nn.Module, calls: Calls) -> Attributes:
    assert isinstance(layer, nn.modules.conv._ConvNd)
    weight, given = _shape(layer, "weight"), _argument(calls, "groups")
    groups = int(given or 1) if calls else layer.groups
    if tuple(weight[2:]) != layer.kernel_size:
        raise GrowError(f"its kernel becomes {list(weight[2:])}, which is no change of a width")
    first, second = weight[0], weight[1] * groups
    outer, inner = (second, first) if layer.transposed else (first, second)
    return {"out_channels": outer, "in_channels": inner, "groups": groups}


def _batch_norm(layer: nn.Module, calls: Calls) -> Attributes:
    count = _channels(layer, calls)
    return {} if count is None else {"num_features": count}


def _group_norm(layer: nn.Module, calls: Calls) -> Attributes:
    count, groups = _channels(layer, calls), _argument(calls, "num_groups")
    found = {} if count is None else {"num_channels": count}
    return found if groups is None else found | {"num_groups": int(groups)}


def _normalised_shape(layer: nn.Module, calls: Calls) -> Attributes:
    found = _argument(calls, "normalized_shape") or _shape(layer, "weight")
    eps = _argument(calls, "eps")  # it follows the number of units where fresh ones have come
    return ({"normalized_shape": tuple(map(int, found))} if found else {}) | ({} if eps is None else {"eps": eps})


def _prelu(layer: nn.Module, calls: Calls) -> Attributes:
    return {"num_parameters": _shape(layer, "weight")[0]}


def _recurrent(layer: nn.Module, calls: Calls) -> Attributes:
    gates = {"LSTM": 4, "GRU": 3}.get(str(getattr(layer, "mode", "")), 1)
    found = {"input_size": _shape(layer, "weight_ih_l0")[1], "hidden_size": _shape(layer, "weight_ih_l0")[0] // gates}
    return found | {"proj_size": (_shape(layer, "weight_hr_l0") or (0,))[0]}


def _recurrent_cell(layer: nn.Module, calls: Calls) -> Attributes:
    return {"input_size": _shape(layer, "weight_ih")[1], "hidden_size": _shape(layer, "weight_hh")[1]}


def _attention(layer: nn.Module, calls: Calls) -> Attributes:
    assert isinstance(layer, nn.MultiheadAttention)
    width = len(layer.out_proj.weight)
    queries = (call.results[0] for call in calls if call.op == ATTENTION)
    heads = [t.shape[1] for t in queries if isinstance(t, TensorType) and len(t.shape) == 4]
    count = heads[0] if heads and isinstance(heads[0], int) else layer.num_heads
    keys, values = ((_shape(layer, name) or (width, width))[1] for name in ("k_proj_weight", "v_proj_weight"))
    return {"embed_dim": width, "kdim": keys, "vdim": values, "num_heads": count, "head_dim": width // count}


_Reader = Callable[[nn.Module, Calls], Attributes]

_READERS: tuple[tuple[tuple[type[nn.Module], ...], _Reader], ...] = (
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.modules.conv._ConvNd,), _convolution),
    ((nn.modules.batchnorm._NormBase,), _batch_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _normalised_shape),
    ((nn.PReLU,), _prelu),
    ((nn.RNNBase,), _recurrent),
    ((nn.RNNCellBase,), _recurrent_cell),
    ((nn.MultiheadAttention,), _attention),
)
