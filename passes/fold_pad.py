"""FoldPad: zeros put around the input of a convolution become its padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.ir.operators.operator import Kind
from archir.rewrite.passes import Pass
from archir.rewrite.surroundings import kind_of
from passes.layers import layer_of, tensor_rank
from passes.sweep import Sweep, sweep

_PADS = frozenset({"aten.pad.default", "aten.constant_pad_nd.default"})


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold a constant pad by zeros into the padding of the convolutions after it.

    The pad has to be the same at both ends of each axis, and all its users have to be convolutions. Training is the
    same afterwards.

    Source: ours.
    """

    name: ClassVar[str] = "fold-pad"
    summary: ClassVar[str] = "fold zero pads into the padding of convolutions"
    preserves: ClassVar[str] = "the function, in training too"

    def patch(self, graph: Graph) -> Patch:
        """Return a patch with every pad folded that can be; an empty one if there is none."""
        return sweep(graph, self, _fold)


def _fold(walk: Sweep, node: Node) -> None:
    source = node.arguments.get("self")
    pad = _zero_pad(node)
    if pad is None or not isinstance(source, Value):
        return
    users = [(walk.find(use.node), use) for use in walk.uses(Value(node.id))]
    paddings: dict[int, tuple[int, ...]] = {}
    for user, use in users:
        padding = _padding(walk, user, pad) if user is not None and use.argument == "input" else None
        if user is None or padding is None:
            return
        paddings[user.id] = padding
    for user_id, padding in paddings.items():
        op = walk.edit.node(user_id).op.replace(".padding", ".default")
        walk.update(user_id, {"input": source, "padding": padding}, op=op)


def _zero_pad(node: Node) -> tuple[int, ...] | None:
    """Return how many zeros a call puts at both ends of each axis, last axis first; None if it does more."""
    if node.op not in _PADS:
        return None
    if node.op == "aten.pad.default" and node.argument("mode") != "constant":
        return None
    value, pad = node.argument("value"), node.argument("pad")
    if value not in (None, 0) or not isinstance(pad, tuple):
        return None
    sizes = [size for size in pad if isinstance(size, int) and size >= 0]
    even = len(sizes) == len(pad) and sizes[::2] == sizes[1::2]
    return tuple(sizes[::2]) if even else None


def _padding(walk: Sweep, user: Node, pad: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the padding of a convolution with a pad before it taken in, None if it cannot be."""
    layer = layer_of(walk, user) if kind_of(user) is Kind.CONVOLUTION else None
    if layer is None:
        return None
    spatial = walk.edit.tensor(layer.weight.node).dim() - 2
    if any(pad[spatial:]) or tensor_rank(walk, layer.input) < spatial + 1:
        return None
    padding = user.argument("padding")
    if isinstance(padding, str):
        own: tuple[int, ...] = (0,) * spatial if padding == "valid" else ()
    else:
        own = tuple(p for p in padding if isinstance(p, int)) if isinstance(padding, tuple) else ()
        own = own * spatial if len(own) == 1 else own
    if len(own) != spatial:
        return None
    around = (*reversed(pad[:spatial]),)
    around = (*[0] * (spatial - len(around)), *around)
    return tuple(a + b for a, b in zip(own, around, strict=True))
