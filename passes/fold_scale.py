"""FoldScale: a factor or summand for each channel becomes part of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from archir.ir.graph import Graph, Patch
from archir.ir.node import Argument, Node, Value
from archir.rewrite.passes import Pass
from passes.layers import Affine, Layer, channel_vector, fold_after, layer_at, tensor_rank
from passes.sweep import Sweep, sweep

_KINDS = {
    **{f"aten.{name}.{form}": name for name in ("add", "sub", "mul", "div") for form in ("Tensor", "Scalar")},
    "aten.rsub.Tensor": "rsub",
    "aten.rsub.Scalar": "rsub",
    "aten.neg.default": "neg",
}


@dataclass(frozen=True)
class FoldScale(Pass):
    """Fold `y * s`, `y / s`, `y + b`, `y - b`, `b - y` and `-y` into the linear or convolution layer that makes y.

    `s` and `b` are numbers or stored tensors with one element for each channel. Nothing else may use y, and a weight
    that another call shares is not scaled: a copy would cost more than the factor. Training is not the same
    afterwards: a learned factor is no longer learned on its own.

    Source: ours.
    """

    name: ClassVar[str] = "fold-scale"
    summary: ClassVar[str] = "fold factors and summands of channels into the layer before"
    preserves: ClassVar[str] = "the function in evaluation mode"

    def patch(self, graph: Graph) -> Patch:
        """Return a patch with every factor and summand folded that can be; an empty one if there is none."""
        return sweep(graph, self, _fold)


def _fold(walk: Sweep, node: Node) -> None:
    kind = _KINDS.get(node.op)
    if kind is None:
        return
    one, other = node.argument("self"), node.arguments.get("other")
    for source, rest, swapped in ((one, other, False), (other, one, True)):
        layer = layer_at(walk, source)
        if layer is None:
            continue
        affine = _affine(walk, node, kind, layer, rest, swapped)
        if affine is not None and fold_after(walk, node, layer, affine):
            return


def _affine(walk: Sweep, node: Node, kind: str, layer: Layer, rest: Argument, swapped: bool) -> Affine | None:
    """Return what a call does to each channel of a layer, None if that is not affine or would copy the weight."""
    one = torch.ones((), dtype=torch.float64)
    alpha = node.argument("alpha") if kind in ("add", "sub", "rsub") else 1
    vector = channel_vector(walk, rest, tensor_rank(walk, Value(layer.node.id)), layer.axis) if kind != "neg" else one
    if vector is None or not isinstance(alpha, int | float):
        return None
    scale, shift = one, None
    if kind == "neg":
        scale = -one
    elif kind == "mul":
        scale = vector
    elif kind == "div":
        if swapped:
            return None
        scale = 1 / vector
    elif kind == "add":
        scale, shift = (one * alpha, vector) if swapped else (one, vector * alpha)
    else:
        # `sub` and `rsub` are the same with their operands exchanged.
        negated = swapped == (kind == "sub")
        scale, shift = (-one * alpha, vector) if negated else (one, -vector * alpha)
    if len(walk.uses(layer.weight)) > 1 and bool((scale != 1).any()):
        return None
    return Affine(scale, shift, (node.op, rest, alpha, swapped))
