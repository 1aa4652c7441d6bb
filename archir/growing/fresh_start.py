"""A fresh start: the network that a run has found, its weights drawn anew at the scale their authors chose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from archir.axes.infer import infer_widths
from archir.axes.widths import Widths
from archir.errors import GrowError
from archir.growing.birth import bias_factor, drawn_like, exponents_in
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.seeds import derived_seed
from archir.ir.tensor_map import TensorMap
from archir.rewrite.morphism import Morphism
from archir.rewrite.passes import Pass
from archir.rewrite.pipeline import rewrite_together
from archir.rewrite.spec import parse_specs
from archir.rewrite.surroundings import CONVOLUTIONS, kind_of


@dataclass(frozen=True)
class Origin:
    """Where a stored tensor comes from.

    Attributes:
        tensor: what it was in the network that training began with, or as a pass inserted it, with θ = 0.
        by: what has become of its places since.
    """

    tensor: torch.Tensor
    by: TensorMap = field(default_factory=TensorMap)

    def copied(self) -> torch.Tensor:
        """Return the tensor with every place as what it comes from: undivided, and new places like the old ones."""

        def plain(by: TensorMap) -> TensorMap:
            axes = (replace(a, divisions=(), other=None, scale=1.0) for a in by.axes)
            return TensorMap(
                tuple(replace(a, fresh=a.fresh and replace(a.fresh, present=None, shares=None)) for a in axes)
            )

        return plain(self.by).weight(self.tensor)


def drawn_afresh(found: Graph, begun: Graph, kinds: Iterable[Morphism], seed: int) -> Graph:
    """Return a network with its weights drawn anew, as if its architecture had been written by hand.

    The passes of its history are done again with θ = 0, so that it is known where each stored tensor comes from: from
    the network that training began with, whose author chose its scale, or from the pass that inserted it. A trainable
    matrix or kernel W that was W₀ there is drawn from a normal distribution with

        mean = mean(W₀) f        std = std(W₀) √f        f = fan-in of W₀ / fan-in of W

    where the fan-in counts the places that are not zero, over all axes that are summed over. Places that come from
    zeros stay zero: so a block whose pass lets it begin as the identity does so here, with its random layers at the
    scale of the pass (`archir.rewrite.insertion.Start`), and the ring of an enlarged kernel begins at zero. Biases that
    look like noise about zero are drawn like the weights that go with them. Other vectors and all buffers, those of
    norms among them, begin as they did, unit by unit. Of a network that was trained before the run only the scale that
    its weights have is known, which is taken for its author's; its other vectors begin as trained.

    Args:
        found: the network.
        begun: the network that training began with, of which `found` was made by passes.
        kinds: the kinds of these passes.
        seed: of what is drawn.

    Raises:
        GrowError: the passes of its history do not lead from one to the other.
        PassError: a pass does not apply.
        ParseError: its history is not one of these passes.

    Source: ours; variance scaling after Glorot, Bengio 2010 and He et al. 2015.
    """
    origins = _origins(found, begun, {type(kind).name: type(kind) for kind in kinds})
    widths = infer_widths(found)
    summed = _summed_axes((infer_widths(begun), widths))
    copies = {i: origin.copied() for i, origin in origins.items()}
    factors = {
        i: torch.tensor(_growth(origin.tensor, copies[i], summed.get(i, frozenset())))
        for i, origin in origins.items()
        if origin.tensor.dim() > 1
    }
    drawn: dict[int, torch.Tensor] = {}
    for node in found.parameters:
        first, copied = origins[node.id].tensor, copies[node.id]
        factor = factors[node.id] if first.dim() > 1 else bias_factor(widths, node, first, factors)
        redraw = node.is_trainable and factor is not None
        drawn[node.id] = drawn_like(first, copied, factor, derived_seed(seed, node.id)) if redraw else copied.clone()
    return found.with_stored(drawn)


def _origins(found: Graph, begun: Graph, registry: Mapping[str, type[Pass]]) -> dict[int, Origin]:
    """Return where the stored tensors of a network come from, by node.

    Raises:
        GrowError: its history does not lead to it.
        PassError: a pass does not apply.
        ParseError: its history is not one of known passes.
    """
    graph, known = begun, len(begun.history)
    origins = {node.id: Origin(begun.tensors[node.id]) for node in begun.parameters}
    for entry in found.history[known:]:
        passes = parse_specs(entry, registry)
        patch = rewrite_together(graph, [(p, None) for p in passes if isinstance(p, Morphism)])
        graph = patch.after
        before, origins = origins, {}
        for node in graph.parameters:
            by = patch.maps.get(node.id, TensorMap())
            if by is None or node.id not in before:
                origins[node.id] = Origin(graph.tensors[node.id])
            else:
                origins[node.id] = replace(before[node.id], by=before[node.id].by.then(by))
    if found.history[:known] != begun.history or _stored(graph) != _stored(found):
        raise GrowError(
            "the passes of a run do not lead to its network once more",
            why=f"its history is {'; '.join(found.history[known:])[:200] or 'empty'}",
            hint="a pass has to do the same to networks that differ in their weights alone",
        )
    return origins


def _stored(graph: Graph) -> list[tuple[int, Sequence[str], torch.Size]]:
    return [(node.id, node.names, graph.tensors[node.id].shape) for node in graph.parameters]


def _summed_axes(analyses: Iterable[Widths]) -> dict[int, frozenset[int]]:
    """Return the axes of stored tensors that are summed over: those of widths, and those of kernels in space."""
    found: dict[int, frozenset[int]] = {}
    for widths in analyses:
        for width in widths:
            for node, axis, _, exponent in exponents_in(widths, width):
                if exponent > 0:
                    found[node] = found.get(node, frozenset()) | {axis}
        for call in widths.graph.calls:
            weight = call.arguments.get("weight")
            if kind_of(call) in CONVOLUTIONS and isinstance(weight, Value) and weight.node in widths.graph.tensors:
                spatial = range(2, widths.graph.tensors[weight.node].dim())
                found[weight.node] = found.get(weight.node, frozenset()).union(spatial)
    return found


def _growth(first: torch.Tensor, copied: torch.Tensor, summed: frozenset[int]) -> float:
    """Return the fan-in of a tensor over that of what has become of it, counted by what is not zero; one if all is."""

    def fan_in(tensor: torch.Tensor) -> float:
        return int(tensor.count_nonzero()) / math.prod(n for d, n in enumerate(tensor.shape) if d not in summed)

    now = fan_in(copied)
    return fan_in(first) / now if now else 1.0
