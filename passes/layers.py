"""Linear and convolution layers with stored weights, and affine maps folded into them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from archir.ir.node import Argument, Node, Value
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.types import TensorType
from archir.rewrite.surroundings import LAYERS, kind_of
from passes.sweep import Sweep

LINEAR = "aten.linear.default"


@dataclass(frozen=True)
class Layer:
    """A call that is linear in its input, with stored weights.

    Attributes:
        node: the call.
        input: what it is called with.
        weight: the weight, `[out, in / groups, ...]`; transposed ones `[in, out / groups, ...]`.
        bias: the bias, `[out]`.
        axis: the axis of the channels in its result.
        groups: number of groups.
    """

    node: Node
    input: Value
    weight: Value
    bias: Value | None
    axis: int
    groups: int

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return kind_of(self.node) is Kind.TRANSPOSED


@dataclass(frozen=True)
class Affine:
    """`y = scale * x + shift` for each channel, in float64.

    Attributes:
        scale: `[channels]`, or `[]` for all of them.
        shift: `[channels]` or `[]`; None for no shift.
        key: what it was made of; equal keys mean equal maps.
    """

    scale: torch.Tensor
    shift: torch.Tensor | None
    key: Hashable

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        shift = self.scale.new_zeros(()) if self.shift is None else self.shift
        return bool(torch.isfinite(self.scale).all()) and bool(torch.isfinite(shift).all())


def layer_at(walk: Sweep, value: Argument) -> Layer | None:
    """Return the layer that makes a value, None if something else does."""
    node = walk.find(value.node) if isinstance(value, Value) else None
    return None if node is None or value != Value(node.id) else layer_of(walk, node)


def layer_of(walk: Sweep, node: Node) -> Layer | None:
    """Return a call as a layer, None if it is none."""
    if kind_of(node) not in LAYERS:
        return None
    source, weight, bias = node.argument("input"), node.argument("weight"), node.argument("bias")
    tensor = walk.stored(weight)
    if not isinstance(source, Value) or not isinstance(weight, Value) or tensor is None:
        return None
    if not tensor.is_floating_point() or (node.op == LINEAR and tensor.dim() != 2):
        return None
    if not (bias is None or isinstance(bias, Value)) or (bias is not None and walk.stored(bias) is None):
        return None
    rank = len(node.tensor_type().shape)
    groups = 1 if node.op == LINEAR else node.argument("groups")
    features = operator_of(node.op).features
    if features is None or not isinstance(groups, int):
        return None
    return Layer(node, source, weight, bias, rank + features, groups)


def is_unpadded(layer: Layer) -> bool:
    """Say whether every element a layer reads is one of its input: no zeros are put around it."""
    if layer.node.op == LINEAR:
        return True
    if layer.transposed:
        return False
    padding = layer.node.argument("padding")
    return padding == "valid" or (isinstance(padding, tuple) and not any(padding))


def fold_after(walk: Sweep, node: Node, layer: Layer, affine: Affine) -> bool:
    """Fold a call that maps the channels of a layer's result affinely into the layer; say whether it was.

    It is not if the result of the layer has another user, or the call changes its type.
    """
    made = Value(layer.node.id)
    if len(walk.uses(made)) != 1 or walk.type_of(made) != node.results[0] or not affine.is_finite:
        return False
    _refit(walk, layer, affine, after=True)
    walk.replace(Value(node.id), made)
    return True


def fold_before(walk: Sweep, node: Node, source: Value, layers: list[Layer], affine: Affine) -> bool:
    """Fold a call that maps the channels of `source` affinely into the layers that use it; say whether it was.

    It is not if a layer pads its input, or the call changes the type of `source`.
    """
    exact = all(is_unpadded(layer) for layer in layers) and walk.type_of(source) == node.results[0]
    if not layers or not exact or not affine.is_finite:
        return False
    for layer in layers:
        _refit(walk, layer, affine, after=False)
        walk.update(layer.node.id, {"input": source})
    return True


def _refit(walk: Sweep, layer: Layer, affine: Affine, *, after: bool) -> None:
    """Let a layer compute what it does with the affine map after (or before) it.

    Calls that share a weight and go with the same map go on sharing.
    """
    key = (layer.weight, layer.bias, affine.key, after)
    if key in walk.copies:
        weight, bias = walk.copies[key]
    else:
        shared = len(walk.uses(layer.weight)) > 1
        weight, bias = _folded(walk, layer, affine, after)
        if shared:
            walk.copies[key] = weight, bias
    walk.update(layer.node.id, {"weight": weight, "bias": bias})


def _folded(walk: Sweep, layer: Layer, affine: Affine, after: bool) -> tuple[Value, Value | None]:
    old, old_bias = walk.edit.tensor(layer.weight.node), walk.stored(layer.bias)
    wide = old.double()
    offset = None if old_bias is None else old_bias.double()
    if after:
        weight = _times(wide, affine.scale, layer.groups, axis=1 if layer.transposed else 0)
        if offset is not None:
            offset = offset * affine.scale
        added = affine.shift
    else:
        weight = _times(wide, affine.scale, layer.groups, axis=1)
        added = None if affine.shift is None else _times(wide, affine.shift, layer.groups, axis=1).flatten(1).sum(1)
    if added is not None:
        offset = added if offset is None else offset + added
    channels = old.shape[1] * layer.groups if layer.transposed else old.shape[0]
    new_bias = layer.bias
    if offset is not None:
        fitted = offset.expand(channels).to(old.dtype, copy=True)
        new_bias = add_bias(walk, layer.weight, fitted) if layer.bias is None else walk.revise(layer.bias, fitted)
    if bool((affine.scale == 1).all()):
        return layer.weight, new_bias
    return walk.revise(layer.weight, weight.to(old.dtype)), new_bias


def add_bias(walk: Sweep, weight: Value, tensor: torch.Tensor) -> Value:
    """Store a bias beside a weight, `conv.bias` beside `conv.weight`."""
    known = walk.parameter(weight)
    assert known is not None
    path, dot, field = known.names[0].rpartition(".")
    return walk.store(f"{path}{dot}{'bias' if field == 'weight' else f'{field}_bias'}", tensor, known)


def _times(weight: torch.Tensor, factor: torch.Tensor, groups: int, axis: int) -> torch.Tensor:
    """Return the weight times a factor for each channel, where axis 0 holds all groups and axis 1 those of one.

    Args:
        weight: `[groups * a, b, ...]`.
        factor: `[]`, `[groups * a]` for axis 0, or `[groups * b]` for axis 1.
        groups: number of groups.
        axis: which of the two axes the channels are.
    """
    if factor.dim() == 0:
        return weight * factor
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    shape = [groups, *(-1 if at == axis else 1 for at in range(2)), *[1] * (weight.dim() - 2)]
    return (grouped * factor.reshape(shape)).reshape(weight.shape)


def channel_vector(walk: Sweep, argument: Argument, rank: int, axis: int) -> torch.Tensor | None:
    """Return a number, or a stored tensor with one element for each channel, in float64.

    Args:
        walk: the graph.
        argument: the number or tensor.
        rank: number of axes of the value it is broadcast against.
        axis: the axis of the channels in it.

    Returns:
        `[channels]` or `[]`; None if it is something else.
    """
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return torch.tensor(argument, dtype=torch.float64)
    tensor = walk.stored(argument)
    if tensor is None or tensor.is_complex() or tensor.dim() > rank:
        return None
    shape = (*[1] * (rank - tensor.dim()), *tensor.shape)
    if any(size != 1 for at, size in enumerate(shape) if at != axis):
        return None
    flat = tensor.double().reshape(-1)
    return flat if len(flat) > 1 else flat.reshape(())


def tensor_rank(walk: Sweep, value: Value) -> int:
    """Return the number of axes of a value, 0 for a number."""
    found = walk.type_of(value)
    return len(found.shape) if isinstance(found, TensorType) else 0
