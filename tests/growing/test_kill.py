"""A run that is killed at any moment ends, once it goes on, with the weights of one that was not."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archir.growing.grow import Run
from archir.growing.report import make_report
from archir.growing.run import HISTORY, open_run
from archir.ir.graph import Graph
from archir.ir.load import load
from tests.growing.small_run import OPTIONS, grow

SHORT = replace(
    OPTIONS,
    steps=12,
    growth_steps=1,
    first_growth=0.5,
    learn_steps=3,
    refine=4,
    checkpoint_every=3,
    retrain=True,
    counterfactual=True,
)


def _run(graph: Graph, directory: Path) -> Run:
    """Start the run, or go on with it if it has begun."""
    return grow(graph, options=SHORT, directory=directory, resume=(directory / HISTORY).exists())


def _in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def _ended(child: int) -> bool:
    """Wait for a process, and say whether it finished, not killed; it must not have failed."""
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0
    return not killed


def _killing_at(call: int, work: Callable[[], object]) -> None:
    """Do some work, and kill this process at the nth call that changes the disk."""
    left = call

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def counting(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counting

    for name in ("fsync", "replace", "unlink", "pwrite", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))  # the child's own, which ends with it
    work()


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(seed_graph: Graph, tmp_path: Path) -> None:
    began = time.monotonic()
    whole = _run(seed_graph, tmp_path / "whole")
    seconds = time.monotonic() - began
    dice = random.Random(12)
    anytime, writing = tmp_path / "anytime", tmp_path / "writing"
    for _ in range(3):
        child = _in_child(lambda: _run(seed_graph, anytime))
        time.sleep(dice.uniform(0.1, 0.7) * seconds)
        os.kill(child, signal.SIGKILL)
        _ended(child)
    _run(seed_graph, anytime)
    # Such moments hardly ever fall into the writing of files: these do, and how many there are is no matter of time.
    kills = 0
    while not _ended(_in_child(lambda: _killing_at(dice.randrange(1, 80), lambda: _run(seed_graph, writing)))):
        kills += 1
        dice.random()
        assert kills < 200
    assert kills >= 3
    for path in ("step-0012.archir", "retrained/step-0012.archir", "counterfactual/step-0012.archir"):
        wanted = load(tmp_path / "whole" / path)
        for found in (load(directory / path) for directory in (anytime, writing)):
            assert str(found) == str(wanted)
            for name in wanted.by_name:
                assert torch.equal(found.tensor(name), wanted.tensor(name)), name
    for directory in (anytime, writing):
        _is_told_alike(directory, whole)


def _is_told_alike(directory: Path, whole: Run) -> None:
    report = make_report(open_run(directory).history())
    expected = make_report(whole.history)
    assert report.points == expected.points and len(report.growth) == len(expected.growth) == 1
