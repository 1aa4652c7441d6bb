"""FuseParallelLinear: layers of the same input become one, and its result is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from archir.ir.graph import Graph, Patch
from archir.ir.node import Location, Node, Value
from archir.rewrite.passes import Pass
from passes.layers import Layer, layer_of
from passes.sweep import Sweep, sweep

_LONGEST = 40


@dataclass(frozen=True)
class FuseParallelLinear(Pass):
    """Make one layer of the linear layers, or convolutions of the same geometry, that use one input.

    Weights are concatenated along their outputs, and the result is split. Left alone are layers whose weight or bias
    has another user, grouped convolutions, and layers of which some are trained and some are not. Training is
    the same afterwards, for optimisers that treat every element alike.

    Source: ours; the fused projections of attention are the common case.
    """

    name: ClassVar[str] = "fuse-parallel-linear"
    summary: ClassVar[str] = "one layer, then a split, for layers of the same input"
    preserves: ClassVar[str] = "the function, in training too"

    def patch(self, graph: Graph) -> Patch:
        """Return a patch with all such layers fused; an empty one if there are none."""
        modules = {n.location.module: n.location.kind for n in graph.calls if n.location}

        def fuse(walk: Sweep, node: Node) -> None:
            layers = _alike(walk, node)
            if len(layers) > 1:
                _fuse(walk, layers, modules)

        return sweep(graph, self, fuse)


def _alike(walk: Sweep, node: Node) -> list[Layer]:
    """Return the layers of the same input that can be one with a call, itself among them."""
    first = layer_of(walk, node)
    kind = None if first is None else _kind(walk, first)
    if first is None or kind is None:
        return []
    found: list[Layer] = []
    for use in walk.uses(first.input):
        user = walk.find(use.node)
        layer = layer_of(walk, user) if user is not None and use.argument == "input" else None
        if layer is not None and _kind(walk, layer) == kind:
            found.append(layer)
    return found


def _kind(walk: Sweep, layer: Layer) -> tuple[object, ...] | None:
    """Return what layers that are fused have in common, None if this one cannot be fused."""
    if layer.transposed or layer.groups != 1:
        return None
    stored = [v for v in (layer.weight, layer.bias) if v is not None]
    if any(len(walk.uses(v)) > 1 for v in stored):
        return None
    geometry = [(n, a) for n, a in layer.node.arguments.items() if n not in ("weight", "bias")]
    tensors = [walk.edit.tensor(v.node) for v in stored]
    flags = [(p.kind, p.trainable, p.persistent) for p in map(walk.parameter, stored) if p is not None]
    types = [(t.dtype, tuple(t.shape[1:])) for t in tensors]
    return (layer.node.op, *geometry, *flags, *types)


def _fuse(walk: Sweep, layers: Sequence[Layer], modules: dict[str, str]) -> None:
    edit, first = walk.edit, layers[0]
    module, path = _path(walk, layers)
    known = walk.parameter(first.weight)
    assert known is not None
    weights = [edit.tensor(layer.weight.node) for layer in layers]
    arguments = dict(first.node.arguments)
    arguments["weight"] = walk.store(f"{path}.weight", torch.cat(weights), known)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases:
        like = walk.parameter(biases[0])
        assert like is not None
        arguments["bias"] = walk.store(f"{path}.bias", torch.cat([edit.tensor(b.node) for b in biases]), like)
    place = first.node.location
    inside = replace(place, module=path) if place is not None else None
    around = Location(module, modules.get(module, ""), place.file, place.line) if place is not None else None
    fused = edit.call(first.node.op, location=inside, **arguments)
    sizes = tuple(len(w) for w in weights)
    if len(set(sizes)) == 1:
        parts = edit.call("aten.split.Tensor", fused, sizes[0], first.axis, location=around)
    else:
        parts = edit.call("aten.split_with_sizes.default", fused, sizes, first.axis, location=around)
    for i, layer in enumerate(layers):
        walk.replace(Value(layer.node.id), Value(parts.node, i))


def _path(walk: Sweep, layers: Sequence[Layer]) -> tuple[str, str]:
    """Return the innermost module that holds all layers, and a path in it for the one they become."""
    paths: list[list[str]] = []
    for layer in layers:
        known = walk.parameter(layer.weight)
        name = known.names[0] if known is not None else ""
        paths.append(name.removesuffix(".weight").split("."))
    depth = 0
    while all(len(p) > depth + 1 and p[depth] == paths[0][depth] for p in paths):
        depth += 1
    module = ".".join(paths[0][:depth])
    joined = "_".join("_".join(p[depth:]) for p in paths)
    name = joined if len(joined) <= _LONGEST and not joined[0].isdigit() else "fused"
    path, number = f"{module}.{name}" if module else name, 1
    while any(t == path or t.startswith(f"{path}.") for t in walk.taken):
        number += 1
        path = f"{module}.{name}_{number}" if module else f"{name}_{number}"
    return module, path
