"""Torch-Pruning 1.6.1 with its defaults: its dependency graph and all its pruning groups of a model."""

from __future__ import annotations

import io
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from types import FrameType
from typing import Any

from torch import nn

LIMIT = 20
"""Seconds it may take for a model."""


@dataclass(frozen=True)
class Attempt:
    """What became of one model.

    Attributes:
        seconds: time until it was done or gave up.
        groups: number of groups.
        error: what went wrong; empty if nothing did.
    """

    seconds: float
    groups: int = 0
    error: str = ""


def find_groups(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Attempt:
    """Build the dependency graph of a model and make all pruning groups."""
    library = import_module("torch_pruning")
    start = time.perf_counter()
    groups, error = 0, ""
    try:
        with _quiet(), _limit(LIMIT):
            graph = library.DependencyGraph()
            graph.build_dependency(model, args, forward_fn=lambda net, inputs: net(*inputs, **kwargs), verbose=False)
            groups = sum(1 for _ in graph.get_all_groups())
    except Exception as caught:  # whatever it is, the model is one it cannot do
        error = f"{type(caught).__name__}: {caught}".splitlines()[0]
    return Attempt(time.perf_counter() - start, groups, error)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again, since the code that is interrupted may catch the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
