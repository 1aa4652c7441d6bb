"""How the core's costs grow: of sets of candidates, of perturbations of large graphs, and of choosing a set.

Times are of the processor, in one thread. What is compared takes its turn in one run, so that a busy machine disturbs
all alike.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from archir.api import score
from archir.axes.infer import infer_widths
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.parse import parse_graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.reference import refer
from archir.rewrite.set_cost import cost_of_set
from frontends.pytorch import trace
from passes.deepen import Deepen
from passes.residual_branch import ResidualBranch
from passes.split import Split
from tools.benchmarks import selection
from tools.residual import residual_network

CHANNELS, HIDDEN, CLASSES, SPLITS = (3, 128, 256, 512, 512, 512), 2048, 1000, 128
LAYERS, PLACES = {"small": 250, "large": 5000}, 60
SIZES = (25_000, 50_000, 100_000)
QUIET = 0.02
"""What the weights of a network of thousands of residual blocks are multiplied by, so that its outputs are finite."""


def run() -> Mapping[str, float]:
    """Return the figures."""
    torch.set_num_threads(1)
    return {**_sets(), **_perturbations(), **_large(), **selection.run()}


def seconds(act: Callable[[], object]) -> float:
    """Return the processor time that something takes."""
    start = time.process_time()
    act()
    return time.process_time() - start


def _sets() -> dict[str, float]:
    """Return the time of the exact cost of a set of 128 splits, and of all sets on the way to it."""
    torch.manual_seed(0)
    graph = trace(_network(), (torch.randn(2, 3, 16, 16),))
    widths = infer_widths(graph).free
    splits = [Split(widths[i % len(widths)].name, (i // len(widths),)) for i in range(SPLITS)]
    first = seconds(lambda: cost_of_set(graph, splits))
    again = statistics.median(seconds(lambda: cost_of_set(graph, splits)) for _ in range(9))
    path = seconds(lambda: [cost_of_set(graph, splits[:count]) for count in range(1, SPLITS + 1)])
    return {
        "set_parameters": graph.parameter_count,
        "set_splits": SPLITS,
        "set_cost_first_seconds": first,
        "set_cost_seconds": again,
        "selection_cost_seconds": path,
    }


def _network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(CHANNELS):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], HIDDEN), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES))


def _perturbations() -> dict[str, float]:
    """Return the time of a derived perturbation in a small and a large graph, candidates of both in turn."""
    graphs = {name: residual_network(layers) for name, layers in LAYERS.items()}
    tasks: dict[str, list[Callable[[], object]]] = {}
    for name, graph in graphs.items():
        adds = [node for node in graph.calls if node.op == "aten.add.Tensor"]
        places = [refer(graph, Value(adds[len(adds) * i // (PLACES + 1)].id)) for i in range(1, PLACES)]
        every: list[Morphism] = [kind(place) for place in places for kind in (ResidualBranch, Deepen)]
        tasks[name] = [partial(_perturb, graph, morphism, morphism.match(graph)) for morphism in every]
        tasks[name][0]()
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for pair in zip(*tasks.values(), strict=True):
        for name, task in zip(graphs, pair, strict=True):
            times[name].append(seconds(task))
    small, large = (statistics.median(times[name]) for name in ("small", "large"))
    return {
        "perturbation_nodes": len(graphs["small"]),
        "perturbation_nodes_large": len(graphs["large"]),
        "perturbation_seconds": small,
        "perturbation_seconds_large": large,
        "perturbation_large_over_small": large / small,
    }


def _perturb(graph: Graph, morphism: Morphism, found: object) -> None:
    assert not isinstance(morphism.perturbation(graph, Site("", (morphism,), found)), Miss)


def _large() -> dict[str, float]:
    """Return what is done with large graphs, from their text to a rewritten graph, and the memory the process took."""
    figures: dict[str, float] = {}
    for nodes in SIZES:
        taken = _pipeline(str(residual_network(nodes // 4)))
        figures |= {f"{what}_seconds_{nodes}": found for what, found in taken.items()}
        figures[f"peak_mib_{nodes}"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    small, middle, large = (figures[f"peak_mib_{nodes}"] for nodes in SIZES)
    figures["memory_growth"] = (large - middle) / (middle - small)  # 2 where memory is linear
    return figures


def _pipeline(text: str) -> dict[str, float]:
    """Return how long it takes to parse, analyse, score (by splits of all widths), choose from and rewrite a graph."""
    torch.manual_seed(0)
    batch = torch.randn(8, 8), torch.randint(0, 4, (8,))
    found: list[Any] = []
    taken = {"parse": seconds(lambda: found.append(parse_graph(text)))}
    (graph,) = found
    graph = graph.with_stored({i: QUIET * tensor for i, tensor in graph.tensors.items()})
    taken["analyse"] = seconds(lambda: infer_widths(graph))
    taken["score"] = seconds(lambda: found.append(score(graph, [batch], morphisms=[Split()], steps=2, refine=16)))
    scores = found[-1]
    taken["choose"] = seconds(lambda: found.append(scores.choose(4)))
    taken["apply"] = seconds(lambda: scores.apply(found[-1]))
    return taken
