"""FoldBatchNorm: batch normalisation becomes part of the layer before or after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from archir.ir.execute import mode_argument
from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.ir.operators.normalisation import BATCH_NORM, scale_of, shift_of
from archir.rewrite.passes import Pass
from passes.layers import Affine, Layer, channel_vector, fold_after, fold_before, layer_at, layer_of, tensor_rank
from passes.sweep import Sweep, sweep


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch normalisation into the linear or convolution layer before it, or the layers after it.

    `y = (x - mean) / sqrt(var + eps) * weight + bias` is an affine map of each channel in evaluation mode. It goes
    into the layer before it if nothing else uses the result of that; else into the layers after it, if
    these are all that use it and none pads its input. Training is not the same afterwards.

    Source: Jacob et al. 2018 (folding before); folding after is its mirror image.
    """

    name: ClassVar[str] = "fold-batch-norm"
    summary: ClassVar[str] = "fold batch normalisation into its neighbours"
    preserves: ClassVar[str] = "the function in evaluation mode"

    def patch(self, graph: Graph) -> Patch:
        """Return a patch with every batch normalisation folded that can be; an empty one if there is none."""
        return sweep(graph, self, _fold)


def _fold(walk: Sweep, node: Node) -> None:
    affine = _affine(walk, node)
    source = node.arguments.get("input")
    if affine is None or not isinstance(source, Value):
        return
    before = layer_at(walk, source)
    # Batch normalisation takes axis 1 for the channels; a linear layer makes them on the last.
    if before is not None and before.axis == 1 and fold_after(walk, node, before, affine):
        return
    after = _users(walk, node)
    if after is not None:
        fold_before(walk, node, source, after, affine)


def _affine(walk: Sweep, node: Node) -> Affine | None:
    """Return what a batch normalisation does in evaluation mode, None if it is none or uses the batch's statistics."""
    if node.op != BATCH_NORM or mode_argument(node) is None:
        return None
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (channel_vector(walk, node.argument(n), 1, 0) for n in names)
    eps = node.argument("eps")
    stored = all(node.argument(n) is None or walk.stored(node.argument(n)) is not None for n in names)
    if mean is None or variance is None or not stored or not isinstance(eps, float):
        return None
    scale = scale_of(variance, eps, weight)
    return Affine(scale, shift_of(scale, mean, bias), (node.op, *((n, node.argument(n)) for n in (*names, "eps"))))


def _users(walk: Sweep, node: Node) -> list[Layer] | None:
    """Return the layers that use a batch normalisation over their input channels, None if something else does."""
    found: list[Layer] = []
    rank = tensor_rank(walk, Value(node.id))
    for use in walk.uses(Value(node.id)):
        user = walk.find(use.node)
        layer = layer_of(walk, user) if user is not None and user.is_call else None
        if layer is None or use.argument != "input":
            return None
        dims = walk.edit.tensor(layer.weight.node).dim()
        if rank != dims:
            return None
        found.append(layer)
    return found
