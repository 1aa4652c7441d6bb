"""Batch normalisation by stored statistics: a product and a sum, which the convolution before it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from archir.axes.rules.norm import uses_batch_statistics
from archir.ir.node import Node, Value
from archir.ir.operators.normalisation import BATCH_NORM, scale_of, shift_of
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.tensor_map import along


@dataclass(frozen=True, slots=True)
class Affine:
    """The call `x·scale + shift`, whose backward pass is one product; `x` itself where the layer before it does both.

    Attributes:
        x: the operand.
        scale: `γ / √(variance + ε)`, `[channels]`.
        shift: `β − mean · scale`, `[channels]`.
        done: whether x has them already.
    """

    x: Value
    scale: torch.Tensor
    shift: torch.Tensor
    done: bool = False

    def __call__(self, argument_values: Callable[[Value], Any]) -> tuple[torch.Tensor]:
        """Return the result."""
        x: torch.Tensor = argument_values(self.x)
        shift, scale = (along(1, t, x.dim()) for t in (self.shift, self.scale))
        return (x if self.done else torch.addcmul(shift, x, scale),)


def affine_of(node: Node, stored: Mapping[Value, torch.Tensor]) -> Affine | None:
    """Return a batch normalisation as an affine map; None for any other call, or if not all it needs is stored."""
    if node.op != BATCH_NORM or uses_batch_statistics(node):
        return None
    x, epsilon = node.argument("input"), node.argument("eps")
    given = {n: node.argument(n) for n in ("weight", "bias", "running_mean", "running_var")}
    tensors = {n: stored[a] for n, a in given.items() if isinstance(a, Value) and a in stored}
    missing = any(a is not None and n not in tensors for n, a in given.items())
    if missing or "running_var" not in tensors or not isinstance(x, Value) or not isinstance(epsilon, float):
        return None
    scale = scale_of(tensors["running_var"], epsilon, tensors.get("weight"))
    return Affine(x, scale, shift_of(scale, tensors["running_mean"], tensors.get("bias")))


Absorbed = tuple[Node, Mapping[Value, torch.Tensor]]
"""A layer that does what another one does with an affine map after it, and the tensors it reads for this."""


def absorb(layer: Node, affine: Affine, stored: Mapping[Value, torch.Tensor]) -> Absorbed | None:
    """Return a convolution that applies an affine map to its results, and the tensors it reads for this.

    That is `W·scale` and `b·scale + shift`; None if the layer is no convolution, or its weight and bias are not stored.
    """
    weight, bias = layer.arguments.get("weight"), layer.arguments.get("bias")
    known = weight in stored and (bias is None or bias in stored)
    if operator_of(layer.op).kind is not Kind.CONVOLUTION or not isinstance(weight, Value) or not known:
        return None
    old, w, b = stored[weight], Value(layer.id, -1), Value(layer.id, -2)
    scaled = old * along(0, affine.scale, old.dim())
    shift = affine.shift + affine.scale * stored[bias] if isinstance(bias, Value) else affine.shift
    if not old.dtype == scaled.dtype == shift.dtype:
        return None
    return replace(layer, arguments={**layer.arguments, "weight": w, "bias": b}), {w: scaled, b: shift}
