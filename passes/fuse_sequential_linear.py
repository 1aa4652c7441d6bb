"""FuseSequentialLinear: two linear maps with nothing between become one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from archir.ir.graph import Graph, Patch
from archir.ir.node import Argument, Node, Value
from archir.rewrite.passes import Pass
from passes.layers import LINEAR, add_bias
from passes.sweep import Sweep, sweep

_ORDER = {
    LINEAR: ("input", "weight", "bias"),
    "aten.matmul.default": ("self", "other", ""),
    "aten.mm.default": ("self", "mat2", ""),
    "aten.addmm.default": ("mat1", "mat2", "self"),
}
"""The arguments of a product with a stored matrix: input, matrix, bias."""


@dataclass(frozen=True)
class FuseSequentialLinear(Pass):
    """Make one linear layer of two, `W2 (W1 x + b1) + b2`, where it has no more weights than the two have.

    Products with stored matrices count as linear layers. Nothing else may use what is between them, nor either
    weight. Training is not the same afterwards: a product of two matrices is trained as one.

    Source: ours.
    """

    name: ClassVar[str] = "fuse-sequential-linear"
    summary: ClassVar[str] = "one linear layer for two in a row where it costs no more"
    preserves: ClassVar[str] = "the function in evaluation mode"

    def patch(self, graph: Graph) -> Patch:
        """Return a patch with such pairs fused; an empty one if there are none."""
        return sweep(graph, self, _fuse)


@dataclass(frozen=True)
class _Map:
    """`x -> matrix x + bias` as a call makes it; `matrix` is `[out, in]`."""

    node: Node
    input: Value
    weight: Value
    matrix: torch.Tensor
    bias: Value | None


def _map_of(walk: Sweep, node: Node) -> _Map | None:
    if node.op not in _ORDER:
        return None
    source, weight, bias = (node.argument(n) if n else None for n in _ORDER[node.op])
    tensor = walk.stored(weight)
    if tensor is None or tensor.dim() != 2 or not tensor.is_floating_point() or len(walk.uses(_value(weight))) > 1:
        return None
    if walk.stored(source) is not None or not isinstance(source, Value):
        return None
    if bias is not None and (walk.stored(bias) is None or len(walk.uses(_value(bias))) > 1):
        return None
    matrix = tensor if node.op == LINEAR else tensor.t()
    plain = all(node.argument(n) == 1 for n in ("alpha", "beta")) if node.op == "aten.addmm.default" else True
    fitting = bias is None or tuple(walk.edit.tensor(_value(bias).node).shape) == (matrix.shape[0],)
    found = _Map(node, source, _value(weight), matrix, None if bias is None else _value(bias))
    return found if plain and fitting else None


def _value(argument: Argument) -> Value:
    assert isinstance(argument, Value)
    return argument


def _fuse(walk: Sweep, node: Node) -> None:
    outer = _map_of(walk, node)
    before = None if outer is None else walk.find(outer.input.node)
    inner = None if before is None else _map_of(walk, before)
    if outer is None or inner is None or len(walk.uses(outer.input)) != 1:
        return
    first, second = inner.matrix, outer.matrix
    if second.shape[0] * first.shape[1] > first.numel() + second.numel() or first.dtype != second.dtype:
        return
    matrix = (second.double() @ first.double()).to(first.dtype)
    offset = second.new_zeros(len(second), dtype=torch.float64)
    if inner.bias is not None:
        offset = second.double() @ walk.edit.tensor(inner.bias.node).double()
    bias = outer.bias
    if outer.bias is not None:
        offset = offset + walk.edit.tensor(outer.bias.node).double()
        bias = walk.revise(outer.bias, offset.to(first.dtype))
    elif inner.bias is not None:
        bias = add_bias(walk, outer.weight, offset.to(first.dtype))
    weight = walk.revise(outer.weight, matrix)
    for new, parts in ((weight, (inner.weight, outer.weight)), (bias, (inner.weight, inner.bias, outer.bias))):
        known = walk.parameter(new)
        trained = [p.trainable for p in map(walk.parameter, parts) if p is not None]
        if new is not None and known is not None and any(trained) and not known.trainable:
            walk.edit.update(new.node, parameter=replace(known, trainable=known.kind == "parameter"))
    names = {n for n in _ORDER[node.op] if n} - {"input", "weight", "bias"}
    walk.update(
        node.id,
        {"input": inner.input, "weight": weight, "bias": bias},
        op=LINEAR,
        drop=names | {"alpha", "beta"},
    )
