"""The analysis of widths on every model of both zoos, beside Torch-Pruning's, and what it costs on large networks.

For each model: the free widths, how many of them can be pruned and run, how many exactly, and seconds in one thread,
medians of rounds in which the two tools take turns (`speedup_median`), and of as many in which each repeats itself,
caches warm (`speedup_median_repeated`). Torch-Pruning has 20 seconds for its dependency graph and all its groups.
Models of packages that are not installed are left out; where none is, the tables of README.md and docs/coverage.md are
written anew. The network of 10,000 nodes has as many calls, and as many parameters besides.
"""

from __future__ import annotations

import statistics
import sys
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

import torch

from archir.axes.infer import analyse
from archir.ir.graph import Graph
from tests.models.wide.catalog import FAMILIES
from tests.models.wide.packages import installed
from tests.models.zoo import ZOO
from tools.coverage import write_tables
from tools.published import PUBLISHED
from tools.residual import residual_network
from tools.side_by_side import ROUNDS, Comparison, Timing, analysis_seconds, compare, measure


def run() -> Mapping[str, object]:
    """Return the figures, and write the tables."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        comparisons = dict(_comparisons())
        published = dict(_published())
        costs = _costs()
    finally:
        torch.set_num_threads(threads)
    if all(map(installed, ["torch_pruning", *(package for package, _ in FAMILIES.values())])):
        write_tables(comparisons, published)
    timings = [c.timing for c in comparisons.values() if c.timing is not None]
    return {
        **_summary(comparisons),
        **_times(timings),
        **{f"published_{name}": figure for name, figure in _times(list(published.values())).items()},
        **costs,
        "models": {name: asdict(c) for name, c in comparisons.items()},
        "published": {name: asdict(t) for name, t in published.items()},
    }


def _comparisons() -> Iterator[tuple[str, Comparison]]:
    families = {"own": ZOO, **{f: models for f, (package, models) in FAMILIES.items() if installed(package)}}
    for family, models in families.items():
        for name, example in models.items():
            print(f"{family}/{name}", file=sys.stderr, flush=True)
            yield f"{family}/{name}", compare(example)


def _published() -> Iterator[tuple[str, Timing]]:
    if installed("transformers") and installed("monai"):
        for name, example in PUBLISHED.items():
            print(name, file=sys.stderr, flush=True)
            yield name, measure(example)[1]


def _summary(comparisons: Mapping[str, Comparison]) -> dict[str, object]:
    done = [c.verdicts for c in comparisons.values() if c.verdicts is not None]
    return {
        "number_of_models": len(comparisons),
        "failed": len(comparisons) - len(done),
        "free": sum(v.free for v in done),
        "run": sum(v.run for v in done),
        "exact": sum(v.exact for v in done),
        "due": sum(v.due for v in done),
        "due_exact": sum(v.due_exact for v in done),
        "wrong": sum(len(v.wrong) for v in done),
    }


def _times(timings: list[Timing]) -> dict[str, object]:
    rivals = [t.rival for t in timings if t.rival is not None]
    return {
        "median_seconds": _median(t.seconds for t in timings),
        "median_trace_seconds": _median(t.trace_seconds for t in timings),
        "torch_pruning_failed": sum(bool(r.error) for r in rivals),
        "torch_pruning_median_seconds": _median(r.seconds for r in rivals if not r.error),
        "speedup_median": _median(s for t in timings if (s := t.speedup) is not None),
        "speedup_median_repeated": _median(s for t in timings if (s := t.repeated_speedup) is not None),
        "speedup_median_with_tracing": _median(s for t in timings if (s := t.whole_speedup) is not None),
    }


def _median(numbers: Iterable[float]) -> float | None:
    found = list(numbers)
    return statistics.median(found) if found else None


def _costs() -> dict[str, object]:
    small, large = residual_network(1000), residual_network(5000)
    return {
        "seconds_1000_layers": _seconds(small),
        "seconds_10000_nodes": _seconds(large),
        "nodes_1000_layers": len(small),
        "nodes_10000_nodes": len(large),
        "bytes_per_node_1000_layers": _memory(small) / len(small),
        "bytes_per_node_10000_nodes": _memory(large) / len(large),
    }


def _seconds(graph: Graph) -> float:
    return statistics.median(analysis_seconds(graph) for _ in range(ROUNDS))


def _memory(graph: Graph) -> int:
    """Return the most memory the analysis of a graph takes, in bytes."""
    tracemalloc.start()
    try:
        analyse(graph)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
