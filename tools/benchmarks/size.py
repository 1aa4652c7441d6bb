"""How the cost of each task grows with the size of a network: in nodes, and in parameters at one number of nodes.

Networks are residual ones of linear layers. Times are of the processor, in one thread, medians of rounds in which all
sizes and all tasks take their turns, so that a busy machine disturbs all alike. Exponents are slopes of least squares
of the logarithm of the time over that of the size, for the sizes from `FROM` on: below them constants govern.

The figures are kept in docs/scale.json, where those of parts that are left out stay, and docs/scale.md and
docs/scale.png are written anew.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from archir.ir.graph import Graph
from tools.residual import residual_network
from tools.size.figures import Times, figures_of
from tools.size.page import keep
from tools.size.tasks import tasks
from tools.size.timing import seconds
from tools.size.tracing import trace_times

NODES = (1_000, 3_000, 10_000, 30_000, 100_000)
PARAMETERS = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
TRACED = (300, 1_000, 3_000)
LAYERS = 50
"""The linear layers of the networks that grow in parameters."""

MOST: Mapping[tuple[str, str], int] = {("nodes", "grow"): 10_000}
"""The largest sizes of tasks that would take too long beyond them."""

QUIET = 0.02
"""What weights are multiplied by, so that the outputs of thousands of residual blocks are finite."""

PATIENCE = 10.0
"""A task that takes so many seconds is done once for its size."""


def run(trials: int = 3, only: str = "") -> Mapping[str, Any]:
    """Return the figures.

    Args:
        trials: rounds.
        only: parts, of `nodes`, `parameters` and `trace`, with commas between; all of them if empty.
    """
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], Times]] = {
        "nodes": lambda: _times("nodes", {n: residual_network(n // 4) for n in NODES}, trials),
        "parameters": lambda: _times("parameters", {n: _of_parameters(n) for n in PARAMETERS}, trials),
        "trace": lambda: trace_times(TRACED, trials),
    }
    return keep(figures_of({part: parts[part]() for part in (only.split(",") if only else parts)}, trials))


def _of_parameters(count: int) -> Graph:
    """Return a network of about so many parameters, at a fixed number of nodes."""
    width = round((count / (3 * (LAYERS // 2 - 1))) ** 0.5)
    return residual_network(LAYERS, width, 3 * width // 2)


def _times(axis: str, networks: Mapping[int, Graph], trials: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of each task at each size."""
    found: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        every = {size: tasks(_quiet(graph), Path(folder, str(size))) for size, graph in networks.items()}
        gc.collect()
        gc.freeze()  # so that the collector does not go through all networks whichever is looked at
        for trial in range(trials):
            for size, prepared in every.items():
                for name, prepare in prepared.items():
                    known = found.setdefault(name, {}).setdefault(size, [])
                    if size <= MOST.get((axis, name), size) and not (known and known[-1] > PATIENCE):
                        known.append(seconds(prepare()))
                        print(axis, size, name, trial, known[-1], file=sys.stderr, flush=True)
    gc.unfreeze()
    return {
        name: {str(size): statistics.median(taken) for size, taken in by_size.items() if taken}
        for name, by_size in found.items()
    }


def _quiet(graph: Graph) -> Graph:
    return graph.with_stored({i: QUIET * tensor for i, tensor in graph.tensors.items()})
