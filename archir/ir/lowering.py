"""Lowers a graph: says what its module is made of.

Layers of `torch.nn` are found by `archir.ir.layers`, modules with a forward of their own by `archir.ir.regions`, and
their forwards are written by `archir.ir.forwards`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import takewhile

from archir.ir.data import GraphData
from archir.ir.execute import mode_argument
from archir.ir.forwards import Anchors, Forward, write_forward
from archir.ir.layer_forms import batch_counter
from archir.ir.layers import Layer, Make, find_bare_layers, find_layers
from archir.ir.module_tree import ModuleTree, module_tree
from archir.ir.node import Node
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.regions import Region, Regions


@dataclass(frozen=True, slots=True)
class Lowered:
    """What the module of a graph is made of.

    Attributes:
        forwards: the forwards of modules by their paths, that of the outermost one at the empty path.
        sequences: the paths of modules that call those in them one after the other, as `nn.Sequential` does.
        tree: all modules.
        layers: what layers of `torch.nn` are made with, by their paths.
        shared: the path of the layer that stands at each other path, too.
    """

    forwards: Mapping[str, Forward]
    sequences: frozenset[str]
    tree: ModuleTree
    layers: Mapping[str, Make]
    shared: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Divided:
    """A program divided into modules: its layers, the modules it has, and which of them makes which call."""

    layers: Mapping[str, Make]
    tree: ModuleTree
    anchors: Anchors
    regions: Regions


def _divided(graph: GraphData) -> _Divided:
    found = find_layers(graph)
    layers = {path: layer for path, layer in found.layers.items() if not layer.extra}
    calls = {
        id_: call
        for id_, call in found.calls.items()
        if call.path in layers and _follows(graph, graph.node(id_), layers[call.path])
    }
    tree = module_tree(graph)
    bare, bare_calls = find_bare_layers(graph, tree.children.keys())
    made = {**{path: layer.make for path, layer in layers.items()}, **bare}
    anchors = Anchors(graph, {**calls, **bare_calls})
    regions = Regions(graph, anchors.calls, tree.children.keys() - made.keys(), anchors.wanting())
    return _Divided(made, tree, anchors, regions)


def lower(graph: GraphData) -> Lowered:
    """Return the forwards of modules that hold the tensors and flags of a graph under their names, and their layers."""
    divided = _divided(graph)
    tree, regions = divided.tree, divided.regions
    forwards: dict[str, Forward] = {}
    sequences: set[str] = set()
    waiting = [regions.root]
    while waiting:
        region = waiting.pop()
        waiting += [step for step in region.steps if isinstance(step, Region)]
        if region.path and region.path in tree.lists and regions.is_sequence(region, len(tree.children[region.path])):
            sequences.add(region.path)
        else:
            forwards[region.path] = write_forward(divided.anchors, regions, region)
    shared = _shared(graph, divided.layers, tree)
    return Lowered(forwards, frozenset(sequences), tree, divided.layers, shared)


def self_contained(graph: GraphData) -> frozenset[str]:
    """Return the paths of modules that are called, and whose parameters are theirs alone and read by no other module.

    What such a module needs of its parameters it needs while it runs. The outermost module is one, at the empty path.
    """
    divided, called, readers = _divided(graph), set[str](), defaultdict[int, set[str]](set)
    waiting = [divided.regions.root]
    while waiting:
        region = waiting.pop()
        called.add(region.path)
        for step in region.steps:
            if isinstance(step, Region):
                waiting.append(step)
            elif call := divided.anchors.calls.get(step.id):
                called.add(call.path)
            for value in divided.regions.reads(step):
                readers[value.node].add(region.path)
    for value in graph.output.values:
        readers[value.node].add("")
    for node in graph.parameters:
        if node.parameter is not None and node.parameter.kind == "parameter":
            owners = {name.rpartition(".")[0] for name in node.names}
            inside = _innermost({*owners, *readers[node.id]})
            for path in owners:
                # Those between where it stands and what holds all that share and read it.
                while path and len(path) > len(inside):
                    called.discard(path)
                    path = path.rpartition(".")[0]
    return frozenset(called)


def _innermost(paths: Set[str]) -> str:
    """Return the path of the innermost module that holds some modules."""
    parts = zip(*(path.split(".") if path else () for path in paths), strict=False)
    return ".".join(part for part, *_ in takewhile(lambda each: len(set(each)) == 1, parts))


def _shared(graph: GraphData, layers: Mapping[str, Make], tree: ModuleTree) -> dict[str, str]:
    """Return the paths of layers that stand at another path, too: all their tensors do, and they are made alike."""
    owned: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for path in {name.rpartition(".")[0] for n in graph.parameters if len(n.names) > 1 for name in n.names}:
        owned[path] = []
    for name, node in graph.by_name.items():
        path, _, field = name.rpartition(".")
        if path in owned:
            owned[path].append((field, node.id))
    alike: defaultdict[tuple[tuple[str, int], ...], dict[Make | None, str]] = defaultdict(dict)
    found: dict[str, str] = {}
    for path, tensors in sorted(owned.items(), key=lambda item: (item[0] not in layers, item[1])):
        known, make = alike[tuple(sorted(tensors))], layers.get(path)
        if make is None and len(known) == 1 and not tree.children[path]:
            found[path] = next(iter(known.values()))  # nothing calls it there
        elif make is not None and known.setdefault(make, path) != path:
            found[path] = known[make]
    return found


def _follows(graph: GraphData, node: Node, layer: Layer) -> bool:
    """Say whether a layer does in both modes what its call does, which follows the mode of where it comes from."""
    if mode_argument(node) is None:
        return True
    if node.op == BATCH_NORM and batch_counter(graph, node) is not layer.tensors.get("num_batches_tracked"):
        return False
    return node.location is None or node.location.module == layer.path
