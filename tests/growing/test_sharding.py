"""Several processes hold shards of what they train (FSDP2), and come to the network of one process that holds all."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archir.growing.log import Log
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.run import open_run
from archir.ir.graph import Graph
from archir.scoring.processes import ALONE, Processes
from passes.prune import Prune
from tests.growing.process_groups import SHORT, Ran, Stop, contrast, difference, events, gone_on, on_both, run

pytestmark = pytest.mark.slow

FEW = replace(SHORT, evaluate_every=0, sharded=True)
ADAM = replace(FEW, optimiser=OptimiserOptions("adamw", rate=0.01), ema=0.2)
MOMENTUM = replace(FEW, steps=24, expansion=3.0, birth="fresh", first_growth=0.75, last_growth=0.75)
KINDS: dict[str, dict[str, Any]] = {
    "contracts by momentum": {
        "options": replace(MOMENTUM, compensate=True, ema=0.1, even=True),
        "morphisms": (Prune(),),
        "budget": 450,
    },
    "coupled": {"options": FEW, "loss": contrast},
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_do_what_one_does(workers: ProcessPoolExecutor, tmp_path: Path, kind: str) -> None:
    first, second = on_both(workers, tmp_path, _kind, kind)
    wanted = run(**KINDS[kind])
    _check_same(first, wanted)
    assert first.history == second.history and difference(first, second) == 0


def _kind(processes: Processes, kind: str) -> Ran:
    return run(processes, **KINDS[kind])


def _check_same(found: Ran, wanted: Ran) -> None:
    """Check that a run went as another one did, and that the network grew in it."""
    (grown,) = events(wanted, "grown")
    assert grown["specs"] and difference(found, wanted) < 1e-9
    assert [e["event"] for e in found.history] == [e["event"] for e in wanted.history]
    for name in ("loss", "realised", "expected", "parameters", "accuracy", "examples"):
        ours, others = ([e[name] for e in ran.history if e.get(name) is not None] for ran in (found, wanted))
        assert ours == pytest.approx(others, rel=1e-9, abs=1e-12)


def test_a_run_goes_on_with_shards_and_without(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    """By Adam, whose moments and averages are carried over in the growth step that is between the two stops."""
    wanted = run(options=ADAM, directory=tmp_path / "wanted")
    assert on_both(workers, tmp_path, _stopped, tmp_path / "run", 8, ADAM) == ["stopped"] * 2
    alone = gone_on(ALONE, tmp_path / "run", replace(ADAM, sharded=False))
    assert difference(alone, wanted) < 1e-9 and events(alone, "resumed")

    (tmp_path / "again").mkdir()
    assert _stopped(ALONE, tmp_path / "one", 4, replace(ADAM, sharded=False)) == "stopped"
    both = on_both(workers, tmp_path / "again", gone_on, tmp_path / "one", ADAM)
    assert events(both[0], "resumed") and both[0].history == both[1].history
    assert difference(both[0], wanted) < 1e-9 and difference(both[0], both[1]) == 0

    runs = {name: open_run(tmp_path / name) for name in ("wanted", "run", "one")}
    for step in runs["wanted"].steps():
        whole = runs["wanted"].load(step)
        for name in ("run", "one"):
            checkpoint = runs[name].load(step)
            assert str(checkpoint.graph) == str(whole.graph)
            found, others = ({**of.tensors, **_weights(of.graph)} for of in (checkpoint, whole))
            assert {key.partition("/")[0] for key in found} >= {"exp_avg", "exp_avg_sq", "ema"}
            torch.testing.assert_close(found, others, rtol=1e-9, atol=1e-9)


def _stopped(processes: Processes, directory: Path, step: int, options: GrowOptions) -> str:
    """Grow that net until all processes stop after the first stretch of training that ends after a step.

    PyTorch keeps the connections of processes that have held shards, so that one that waits would not be told.
    """
    told = Log.__call__

    def stop(log: Log, event: str, **fields: Any) -> None:
        told(log, event, **fields)
        if event == "train" and fields["step"] > step:
            raise Stop

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Log, "__call__", stop)
        with pytest.raises(Stop):
            run(processes, options, directory=directory)
    return "stopped"


def _weights(graph: Graph) -> dict[str, torch.Tensor]:
    return {name: graph.tensors[node.id] for name, node in graph.by_name.items()}


def test_processes_of_which_one_was_to_hold_shards(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    for failed in on_both(workers, tmp_path, _apart):
        assert failed.kind == "ProcessError" and "process 1: options.sharded was true, is false" in failed.text


def _apart(processes: Processes) -> Ran:
    return run(processes, replace(SHORT, sharded=processes.rank == 0))


def test_a_loss_that_diverges_with_shards(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    """In a step of one process: all go back to the last checkpoint, at half the rate."""
    first, second = on_both(workers, tmp_path, _diverging)
    assert first.history == second.history
    (diverged,) = events(first, "diverged")
    assert diverged["rate"] == 0.025 and events(first, "finished")


def _diverging(processes: Processes) -> Ran:
    left, step = 1, 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal left, step
        found = nn.functional.cross_entropy(outputs, targets, reduction="none")
        step += outputs.requires_grad
        if processes.rank and left and step == 9:
            left -= 1
            return found * torch.nan
        return found

    options = replace(SHORT, steps=12, growth_steps=0, sharded=True, ema=0.1)
    return run(processes, options, loss=loss)
