"""A loss that diverges: back to the last checkpoint at half the rate, once. Which rates are stable is known here."""

from __future__ import annotations

import gc
import math
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archir.cost import training_flops
from archir.errors import DivergenceError
from archir.growing.divergence import TIMES, largest_loss
from archir.growing.engine import Engine
from archir.growing.examples import Examples
from archir.growing.grow import Run, grow_graph
from archir.growing.log import Log
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.run import Checkpoint, Event, open_run
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import LOSSES
from frontends.pytorch import trace

DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(64, 3, generator=DRAW)
EXAMPLES = Examples(INPUTS, INPUTS.sum(1, keepdim=True) + 0.1 * torch.randn(64, 1, generator=DRAW))
LEAST = 0.0070829
"""The least loss there is: the mean square of what a line leaves of the targets."""

EDGE = 2 / float(torch.linalg.eigvalsh(2 * INPUTS.T @ INPUTS / 64)[-1])
"""The rate above which gradient descent on the whole of the examples diverges: two over the largest curvature."""


def _graph() -> Graph:
    torch.manual_seed(0)
    return trace(nn.Linear(3, 1, bias=False), (torch.ones(2, 3),))


def _options(rate: float, **changes: Any) -> GrowOptions:
    plain = OptimiserOptions("sgd", rate, weight_decay=0.0, momentum=0.0, nesterov=False)
    given: dict[str, Any] = {
        "steps": 60,
        "growth_steps": 0,
        "batch_size": 64,
        "evaluate_every": 10,
        "checkpoint_every": 20,
    }
    given |= {"warmup": 0, "clip": None}
    return GrowOptions(**{**given, "optimiser": plain, "schedule": "constant", **changes})


def _run(options: GrowOptions, examples: Examples = EXAMPLES, **rest: Any) -> Run:
    return grow_graph(
        _graph(),
        train=examples,
        validation=EXAMPLES,
        budget=Budget(parameters=9),
        morphisms=(),
        loss="mse",
        options=options,
        **rest,
    )


def test_a_loss_that_diverges_leads_back_at_half_the_rate() -> None:
    run = _run(_options(1.5 * EDGE))
    (event,) = [e for e in run.history if e["event"] == "diverged"]
    assert event["step"] == 10 and event["rate"] == pytest.approx(0.75 * EDGE)
    assert "the loss before step 10 is" in event["why"]
    told = [e["event"] for e in run.history]
    assert told[told.index("diverged") + 1] == "resumed"
    assert run.history[-1]["loss"] == pytest.approx(LEAST, rel=1e-4)
    never = _run(_options(0.75 * EDGE))
    assert not any(e["event"] == "diverged" for e in never.history)
    assert torch.equal(run.graph.tensor("weight"), never.graph.tensor("weight")), "it began anew at half the rate"
    spent, less = (r.history[-1]["training_flops"] for r in (run, never))
    assert spent - less == training_flops(_graph(), 10 * 64), "what came to nothing is counted"


def _late(**changes: Any) -> GrowOptions:
    """Return options under which the rate is stable at first, and no longer once it is warm."""
    return _options(1.6 * EDGE, warmup=50, steps=100, **changes)


def test_it_goes_back_no_further_than_the_last_checkpoint() -> None:
    run = _run(_late())
    (event,) = [e for e in run.history if e["event"] == "diverged"]
    (resumed,) = [e for e in run.history if e["event"] == "resumed"]
    assert 40 <= resumed["step"] < event["step"] <= resumed["step"] + 20
    assert run.history[-1]["loss"] == pytest.approx(LEAST, rel=1e-4)


def test_a_run_that_diverged_and_was_interrupted_keeps_its_lower_rate(tmp_path: Path) -> None:
    whole = _run(_late(), directory=tmp_path / "whole")
    assert open_run(tmp_path / "whole").load(100).state["diverged"] == 1
    assert open_run(tmp_path / "whole").load(100).state["rate"] == 0.8 * EDGE
    for after in ("diverged", "finished"):
        directory = tmp_path / after

        def cut(event: Event, after: str = after) -> None:
            if event["event"] == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _run(_late(), directory=directory, on_event=cut)
        resumed = _run(_late(), directory=directory, resume=True)
        assert torch.equal(resumed.graph.tensor("weight"), whole.graph.tensor("weight"))
        assert [e["rate"] for e in resumed.history if e["event"] == "train"][-1] == 0.8 * EDGE


@pytest.mark.parametrize("kept", [False, True])
def test_a_loss_that_diverges_twice_stops_the_run(tmp_path: Path, kept: bool) -> None:
    with pytest.raises(DivergenceError) as caught:
        _run(_options(5 * EDGE), directory=tmp_path / "run" if kept else None)
    error = caught.value
    assert error.step == 10 and error.loss > 10
    assert f"the learning rate was {5 * EDGE:g}, and {2.5 * EDGE:g} after that" in error.why
    assert "lower the learning rate" in error.hint


@pytest.mark.parametrize("even", [False, True])
def test_all_steps_that_came_to_nothing_are_counted(even: bool) -> None:
    """Those of the second divergence, too, and with the batches they had: above the budget even ones are smaller."""
    options = replace(_options(1.5 * EDGE), even=even)
    engine = Engine(
        _graph(), None, EXAMPLES, EXAMPLES, Budget(parameters=1), (), LOSSES["mse"], options, None, Log(None, None)
    )
    size = 21 if even else 64
    for spent in (10, 20):
        kept = engine.recovery.last or Checkpoint(0, _graph(), {}, {"rate": 1.0, "training_flops": 0, "seconds": 0.0})
        engine.recovery.keep(kept)
        error = DivergenceError("it is too large", step=10, loss=9.0)
        with suppress(DivergenceError):
            engine.recovery.after(error, engine._batch_size)
        engine.recovery.diverged = 1
        last = engine.recovery.last
        assert last is not None and last.state["training_flops"] == training_flops(_graph(), spent * size)


def test_the_network_whose_loss_is_compared_with_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[weakref.ref[nn.Module]] = []
    made = Engine._seed_module

    def kept(engine: Engine) -> nn.Module:
        module = made(engine)
        seeds.append(weakref.ref(module))
        return module

    def look(_: Event) -> None:
        gc.collect()
        alive.append([seed() is not None for seed in seeds])

    alive: list[list[bool]] = []
    monkeypatch.setattr(Engine, "_seed_module", kept)
    _run(_options(0.5 * EDGE, steps=10), on_event=look)
    assert len(alive) > 2 and all(each == [False] for each in alive)


def test_inputs_that_are_far_off_are_told() -> None:
    """One example of 512 overflows the loss; what is left is the same batch again at half the rate."""
    inputs = INPUTS.repeat(8, 1)
    inputs[300] = 1e25
    examples = Examples(inputs, inputs.sum(1, keepdim=True))
    examples.targets[300] = 0.0  # type: ignore[index]
    seen: list[Event] = []
    with pytest.raises(DivergenceError, match="the loss diverged twice; the last time, the loss is inf") as caught:
        _run(_options(0.1 * EDGE), examples, on_event=seen.append)
    (event,) = [e for e in seen if e["event"] == "diverged"]
    assert event["step"] == caught.value.step < 8 and "inputs that are far off" in caught.value.hint


def test_a_steady_loss_of_any_size_is_let_pass() -> None:
    """Ten times what a network that says nothing has, and no less than ten nats."""
    loss, labels = LOSSES["cross_entropy"], torch.arange(8) % 4
    logits = torch.nn.functional.one_hot(labels, 4).float() * 20
    good, bad = Examples(logits, labels), Examples(-100 * logits, labels)
    assert largest_loss(nn.Identity(), good, loss, 8) == pytest.approx(TIMES * math.log(4))
    assert largest_loss(nn.Identity(), bad, loss, 8) == pytest.approx(TIMES * 2000, rel=1e-2)
    assert largest_loss(nn.Identity(), Examples(logits, logits), LOSSES["mse"], 8) == TIMES * 100
    assert largest_loss(nn.Identity(), Examples(0 * logits, 0 * logits), LOSSES["mse"], 8) == TIMES
    unlabelled = replace(good, targets=torch.where(torch.arange(8) < 4, -100, labels))
    assert largest_loss(nn.Identity(), unlabelled, loss, 4) == pytest.approx(TIMES * math.log(4))
