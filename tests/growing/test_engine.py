"""The engine: growth under a budget, resuming, carrying the optimiser over, and bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archir.axes.infer import infer_widths
from archir.cost import cost
from archir.errors import FileError, GrowError
from archir.growing.grow import grow_graph
from archir.growing.growth import SHRUNK
from archir.growing.optimiser_state import carry_state
from archir.growing.options import GrowOptions
from archir.growing.report import make_report
from archir.growing.report_tables import rows
from archir.growing.run import Event, open_run
from archir.growing.training import evaluate
from archir.ir.graph import Graph, Patch
from archir.rewrite.pipeline import Rewrites, rewrite_together
from archir.scoring.budget import Budget, Prices
from archir.scoring.losses import find_loss
from passes.residual_branch import ResidualBranch
from passes.split import Split as SplitUnits
from passes.widen import Widen
from tests.growing.small_run import MORPHISMS, OPTIONS, data, grow


def test_a_run_trains_grows_and_stays_within_the_budget(seed_graph: Graph) -> None:
    heard: list[Event] = []
    run = grow(seed_graph, on_event=heard.append)
    kinds = [e["event"] for e in run.history]
    assert kinds[0] == "started" and kinds[-1] == "finished"
    assert kinds.count("scored") == 2
    assert list(run.history) == heard
    grown = [e for e in run.history if e["event"] == "grown"]
    assert grown, "nothing was committed, so the test says nothing"
    for event in grown:
        stage = Budget(parameters=900).stage(cost(seed_graph), event["growth"], 2)
        assert event["parameters"] <= (stage.parameters or 0)
        assert event["realised"] < 0 and event["scale"] in (1.0, *SHRUNK)
        assert event["specs"]
    assert cost(run.graph).parameters == run.history[-1]["parameters"] > cost(seed_graph).parameters
    assert run.history[-1]["loss"] < next(e for e in run.history if e["event"] == "evaluated")["loss"]
    found = evaluate(run.model, data(200, 2), find_loss("cross_entropy"))
    assert found.loss == pytest.approx(run.history[-1]["loss"], rel=1e-5)


@pytest.mark.parametrize("composites", [None, 2])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    seed_graph: Graph, tmp_path: Path, composites: int | None
) -> None:
    """Whether it grows in width alone or by splices and composites, too."""
    rest: dict[str, Any] = {}
    if composites:
        rest = {
            "morphisms": (*MORPHISMS, ResidualBranch(hidden=2)),
            "options": replace(OPTIONS, composites=composites, learn_steps=20),
        }
    whole = grow(seed_graph, directory=tmp_path / "whole", **rest)
    specs = [spec for e in whole.history if e["event"] == "grown" for spec in e["specs"]]
    assert not composites or any("residual-branch" in spec for spec in specs)

    class PowerCut(Exception):
        pass

    def cut(event: Event) -> None:
        if event["event"] == "train" and event["step"] > 40:
            raise PowerCut

    with pytest.raises(PowerCut):
        grow(seed_graph, directory=tmp_path / "cut", on_event=cut, **rest)
    resumed = grow(seed_graph, directory=tmp_path / "cut", resume=True, **rest)
    assert "resumed" in [e["event"] for e in resumed.history]
    assert str(resumed.graph) == str(whole.graph)
    for name, node in whole.graph.by_name.items():
        assert torch.equal(whole.graph.tensors[node.id], resumed.graph.tensor(name)), name
    assert open_run(tmp_path / "cut").steps()[-1] == OPTIONS.steps


def test_a_state_that_is_not_that_of_the_run_is_passed_over_and_told(seed_graph: Graph, tmp_path: Path) -> None:
    """Though its checksum is right; the run goes on from the checkpoint before, and ends as it would have."""
    options = replace(OPTIONS, steps=6, growth_steps=0, checkpoint_every=2, evaluate_every=0)
    whole = grow(seed_graph, directory=tmp_path, options=options)
    run = open_run(tmp_path)
    for step, change in ((6, {"growth_steps": 1}), (4, {"step": 2})):
        found = run.load(step)
        run.save(replace(found, state={**found.state, **change}))
    resumed = grow(seed_graph, directory=tmp_path, options=options, resume=True)
    told = resumed.history[len(whole.history) :]
    assert [(e["event"], e.get("checkpoint"), e.get("why")) for e in told[:3]] == [
        ("damaged", 6, "growth_steps is 1"),
        ("damaged", 4, "step is 2"),
        ("resumed", None, None),
    ]
    assert told[2]["step"] == 2 and open_run(tmp_path).history() == list(resumed.history)
    assert all(torch.equal(whole.graph.tensor(n), resumed.graph.tensor(n)) for n in whole.graph.by_name)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 7},
        {"step": True},
        {"step": None},
        {"growth_steps": -1},
        {"growth_steps": False},
        {"seconds": -1.0},
        {"seconds": "1"},
        {"seconds": None},
        {"seconds": True},
        {"rate": -0.1},
        {"rate": None},
        {"diverged": -1},
        {"diverged": True},
        {"kept": "grown"},
        {"kept": "mine"},
    ],
)
def test_no_run_goes_on_from_a_state_that_makes_no_sense(
    seed_graph: Graph, tmp_path: Path, change: dict[str, object]
) -> None:
    options = replace(OPTIONS, steps=6, growth_steps=0, evaluate_every=0)
    grow(seed_graph, directory=tmp_path, options=options)
    run = open_run(tmp_path)
    found = run.load(6)
    run.save(replace(found, state={**found.state, **change}))
    (name,) = change
    with pytest.raises(FileError, match=f"every checkpoint in (.|\n)*the newest: {name} is "):
        grow(seed_graph, directory=tmp_path, options=options, resume=True)


def test_a_finished_run_resumed_is_left_as_it_is(seed_graph: Graph, tmp_path: Path) -> None:
    first = grow(seed_graph, directory=tmp_path)
    again = grow(seed_graph, directory=tmp_path, resume=True)
    for name in first.graph.by_name:
        assert torch.equal(first.graph.tensor(name), again.graph.tensor(name))


def test_the_same_seed_gives_the_same_run(seed_graph: Graph) -> None:
    first, second = grow(seed_graph), grow(seed_graph)
    assert str(first.graph) == str(second.graph)
    assert all(torch.equal(first.graph.tensor(n), second.graph.tensor(n)) for n in first.graph.by_name)


def test_flops_are_a_budget_too(seed_graph: Graph) -> None:
    limit = round(cost(seed_graph).flops * 1.5)
    run = grow_graph(
        seed_graph,
        train=data(400, 1),
        validation=data(200, 2),
        budget=Budget(flops=limit),
        morphisms=MORPHISMS,
        options=replace(OPTIONS, growth_steps=1),
    )
    assert cost(run.graph).flops <= limit


def test_a_high_price_of_parameters_forbids_growth(seed_graph: Graph) -> None:
    run = grow(seed_graph, options=replace(OPTIONS, prices=Prices(parameters=10.0)))
    assert cost(run.graph).parameters <= cost(seed_graph).parameters


@pytest.mark.parametrize("rule", ["random", "net2net", "gradmax", "first-order"])
def test_networks_grow_by_other_rules_under_the_same_checks(seed_graph: Graph, rule: str) -> None:
    """One that predicts nothing is held to the true loss alone: what all but keeps the function may be committed."""
    morphisms = (SplitUnits(), Widen(count=1))
    options = replace(OPTIONS, rule=rule, growth_steps=1, composites=2)
    run = grow(seed_graph, options=options, morphisms=morphisms)
    (scored,) = [e for e in run.history if e["event"] == "scored"]
    assert scored["rule"] == rule and 0 < scored["ranked"] <= scored["candidates"]
    (grown,) = [e for e in run.history if e["event"] == "grown"]
    assert cost(seed_graph).parameters < grown["parameters"] <= 900
    predicts = rule == "first-order"
    assert (grown["predicted"] is not None) == (grown["expected"] is not None) == predicts
    before, after = (e for e in run.history if e["event"] == "evaluated" and "growth" in e["phase"])
    assert grown["realised"] <= (0.0 if predicts else 1e-3 * before["loss"])
    assert after["loss"] < before["loss"] * 1.01
    report = make_report(run.history)
    assert (report.growth[0].rule, report.growth[0].predicted) == (rule, grown["predicted"])
    assert (rows(report)[1][5] == "") == (not predicts)


def test_rules_that_are_not_there_are_told() -> None:
    with pytest.raises(GrowError, match="there is no rule 'randon': did you mean random"):
        replace(OPTIONS, rule="randon")
    with pytest.raises(GrowError, match="the rule random takes running statistics"):
        replace(OPTIONS, rule="random", batch_statistics=True)


def carried(slots: dict[str, torch.Tensor], rewriting: Patch) -> dict[str, torch.Tensor]:
    """Return what Adam keeps of `inner.0.weight` after a rewriting."""
    module, grown = rewriting.before.module(), rewriting.after.module()
    optimiser = torch.optim.Adam(module.parameters())
    optimiser.state[module.get_parameter("inner.0.weight")] = slots
    state = carry_state(optimiser, module, rewriting, grown)
    assert list(state) == [grown.get_parameter("inner.0.weight")]
    return state[grown.get_parameter("inner.0.weight")]


def test_fresh_units_start_without_momentum(seed_graph: Graph) -> None:
    widths = infer_widths(seed_graph)
    inner = next(w for w in widths if w.size == 6)
    rewriting = rewrite_together(seed_graph, [(Widen(inner.name, 2), None)])
    found = carried({"exp_avg": torch.ones(6, 3, 3, 3), "step": torch.tensor(7.0)}, rewriting)
    assert torch.equal(found["exp_avg"][:6], torch.ones(6, 3, 3, 3))
    assert not found["exp_avg"][6:].any()
    assert found["step"] == 7


def test_momentum_goes_with_the_weights_through_splices_and_changes_of_widths(seed_graph: Graph) -> None:
    inner = next(w for w in infer_widths(seed_graph) if w.size == 6)
    sites = list(ResidualBranch().sites(seed_graph))
    members: Rewrites = [
        (sites[0].members[0], None),
        (SplitUnits(inner.name, (1,)), None),
        (sites[-1].members[0], None),
    ]
    rewriting = rewrite_together(seed_graph, members)
    old = torch.randn(6, 3, 3, 3)
    found = carried({"exp_avg": old}, rewriting)
    copied = torch.cat([old, old[[1]]])
    copied[[1, 6]] /= 2
    assert found.keys() == {"exp_avg"} and torch.equal(found["exp_avg"], copied)
    assert len(rewriting.after.history) == 3


def test_a_budget_below_the_seed_is_refused_before_anything_is_written(seed_graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(GrowError, match="below the size of the seed"):
        grow(seed_graph, budget=10, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(GrowError, match="needs a budget"):
        grow_graph(seed_graph, train=data(9, 1), validation=data(9, 2), budget=Budget(), morphisms=MORPHISMS)


def test_a_loss_that_is_not_finite_stops_the_run(seed_graph: Graph) -> None:
    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.mean() * math.nan

    with pytest.raises(GrowError, match="nan"):
        grow(seed_graph, loss=broken)


def test_a_run_is_not_written_over(seed_graph: Graph, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=5, growth_steps=0)
    grow(seed_graph, options=options, directory=tmp_path)
    with pytest.raises(FileError, match="there is a run"):
        grow(seed_graph, options=options, directory=tmp_path)
    with pytest.raises(GrowError, match="kept nowhere"):
        grow(seed_graph, options=options, resume=True)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"growth_steps": 100}, "100 growth steps"),
        ({"first_growth": 0.9}, "first_growth is 0.9, after last_growth, which is 0.6"),
        ({"radius": 0.0}, "radius"),
        ({"growth_steps": -1}, "growth_steps is -1"),
        ({"evaluate_every": -1}, "evaluate_every is -1"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_options_that_make_no_run_are_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(GrowError, match=named):
        GrowOptions(**{"steps": 60, **wrong})  # type: ignore[arg-type]


def test_growth_is_spread_between_its_first_and_last_step() -> None:
    assert GrowOptions(steps=1000, growth_steps=3, first_growth=0.2, last_growth=0.6).growth_at() == [200, 400, 600]
    assert GrowOptions(steps=10, growth_steps=1, first_growth=0.5).growth_at() == [5]
