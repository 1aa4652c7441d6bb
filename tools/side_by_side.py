"""One model, its widths held to the value oracle, and what Torch-Pruning makes of it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import dataclass

import torch

from archir.axes.infer import analyse, infer_widths
from archir.errors import ArchirError
from archir.ir.graph import Graph
from archir.testing import Verdict, check_widths
from frontends.pytorch import trace
from tests.models.example import Example
from tests.models.wide.packages import installed
from tools.rival import Attempt, find_groups

ROUNDS = 5
INEXACT = frozenset({"norm", "scale", "reduced"})
"""Roles of widths whose pruning need not be exact, only run."""


@dataclass(frozen=True)
class Timing:
    """Seconds in one thread, medians.

    Attributes:
        nodes: of the graph.
        seconds: from the graph to the widths, in turn with Torch-Pruning: what either keeps in the processor's caches
            the other drives out, so that this is the time of an analysis that is made once.
        trace_seconds: from the model to the graph.
        rival: what Torch-Pruning did; None where it is not installed.
        repeated: seconds from the graph to the widths, several times in a row.
        rival_repeated: seconds of Torch-Pruning, several times in a row; None where it is not done.
    """

    nodes: int
    seconds: float
    trace_seconds: float
    rival: Attempt | None
    repeated: float
    rival_repeated: float | None

    @property
    def speedup(self) -> float | None:
        """Seconds of Torch-Pruning over those of the analysis, where both are done."""
        return None if self.rival is None or self.rival.error else self.rival.seconds / self.seconds

    @property
    def whole_speedup(self) -> float | None:
        """The same, with the time of tracing counted as part of the analysis."""
        whole = self.seconds + self.trace_seconds
        return None if self.rival is None or self.rival.error else self.rival.seconds / whole

    @property
    def repeated_speedup(self) -> float | None:
        """The same as `speedup`, each several times in a row."""
        return None if self.rival_repeated is None else self.rival_repeated / self.repeated


@dataclass(frozen=True)
class Verdicts:
    """What was found out about the widths of one model.

    Attributes:
        free: number of free widths.
        frozen: number of others.
        run: free widths of which any unit can be removed, after which the model runs.
        exact: those of them where that does what zeros in the place of the unit do.
        due: free widths without a role for which it need not be exact.
        due_exact: those of them where it is.
        wrong: what contradicts the claims, over all changes the oracle tries.
        reach: share of the trainable parameters with an axis in which a free width stands.
    """

    free: int
    frozen: int
    run: int
    exact: int
    due: int
    due_exact: int
    wrong: tuple[str, ...]
    reach: float


@dataclass(frozen=True)
class Comparison:
    """One model.

    Attributes:
        verdicts: on its widths; None if it could not be traced, analysed or changed.
        timing: likewise.
        error: why not.
    """

    verdicts: Verdicts | None = None
    timing: Timing | None = None
    error: str = ""


def compare(example: Example) -> Comparison:
    """Trace a model, find its widths, hold each to the oracle, and let Torch-Pruning have the same model."""
    try:
        graph, timing = measure(example)
        return Comparison(_verdicts(graph, check_widths(graph, example.inputs(), example.kwargs())), timing)
    except (ArchirError, RuntimeError) as error:
        return Comparison(error=str(error).splitlines()[0])


def measure(example: Example) -> tuple[Graph, Timing]:
    """Trace a model and find its widths, in turn with Torch-Pruning.

    Raises:
        CaptureError: the model cannot be captured.
    """
    torch.manual_seed(0)
    model, args, kwargs = example.build(), example.inputs(), example.kwargs()
    start = time.perf_counter()
    graph = trace(model, args, kwargs, static_batch=example.static_batch)
    trace_seconds = time.perf_counter() - start
    times: list[float] = []
    attempts: list[Attempt] = []
    for _ in range(ROUNDS):
        times.append(analysis_seconds(graph))
        if installed("torch_pruning") and not any(a.error for a in attempts):
            attempts.append(find_groups(copy.deepcopy(model), args, kwargs))
    rival = _middle(attempts)
    repeated = statistics.median(analysis_seconds(graph) for _ in range(ROUNDS))
    rival_repeated = None
    if rival is not None and not rival.error:
        again = _middle([find_groups(copy.deepcopy(model), args, kwargs) for _ in range(ROUNDS)])
        rival_repeated = None if again is None or again.error else again.seconds
    return graph, Timing(len(graph), statistics.median(times), trace_seconds, rival, repeated, rival_repeated)


def analysis_seconds(graph: Graph) -> float:
    """Return the seconds the analysis of the axes of a graph takes."""
    start = time.perf_counter()
    analyse(graph)
    return time.perf_counter() - start


def _verdicts(graph: Graph, verdicts: list[Verdict]) -> Verdicts:
    widths = infer_widths(graph)
    due = [v for v in verdicts if not v.width.roles & INEXACT]
    return Verdicts(
        free=len(widths),
        frozen=len(widths.frozen),
        run=sum(not v.pruned.reason and math.isfinite(v.pruned.difference) for v in verdicts),
        exact=sum(v.pruned.exact for v in verdicts),
        due=len(due),
        due_exact=sum(v.pruned.exact for v in due),
        wrong=tuple(problem for v in verdicts for problem in v.problems),
        reach=widths.coverage,
    )


def _middle(attempts: list[Attempt]) -> Attempt | None:
    """Return the first attempt that failed, or else the one of median time."""
    failed = [a for a in attempts if a.error]
    ordered = failed[:1] or sorted(attempts, key=lambda a: a.seconds)
    return ordered[len(ordered) // 2] if ordered else None
