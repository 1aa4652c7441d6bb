"""Expansion beyond the budget, contraction into it, and exchanges at it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import archir
from archir.cost import Cost, cost, training_flops
from archir.errors import GrowError, NotFiniteError
from archir.growing import step as step_module
from archir.growing.batches import Batches
from archir.growing.checks import LEAST_BATCH
from archir.growing.examples import Examples
from archir.growing.growth import Growth, grow_once
from archir.growing.options import GrowOptions
from archir.growing.report import make_report
from archir.growing.report_tables import notes, rows
from archir.growing.training import Metrics, evaluate
from archir.ir.graph import Graph
from archir.rewrite.set_cost import cost_of_set
from archir.rewrite.spec import parse_specs
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss, find_loss
from passes.prune import Prune
from passes.split import Split
from tests.growing.small_run import MORPHISMS, OPTIONS, data, grow

WIDE = replace(OPTIONS, expansion=2.0, growth_steps=2, first_growth=0.3)


CHECK = data(200, 2)


def contracted(
    graph: Graph, budget: Budget, options: GrowOptions = OPTIONS, *, selection: Examples | None = None
) -> Growth:
    """Return what one step does that has to come down to a budget by prunes; it is checked on `CHECK`."""
    return grow_once(
        graph,
        train=data(400, 1),
        selection=data(100, 3) if selection is None else selection,
        check=CHECK,
        loss=find_loss("cross_entropy"),
        budget=budget,
        options=options,
        morphisms=(Prune(),),
        seed=0,
    )


def test_an_expanded_network_is_contracted_into_its_budget(seed_graph: Graph) -> None:
    run = grow(seed_graph, options=WIDE)
    (expanded,) = [e for e in run.history if e["event"] == "expanded"]
    assert 900 < expanded["parameters"] <= 1800
    grown = [e for e in run.history if e["event"] == "grown"]
    limits = [Budget(parameters=900).stage(Cost(expanded["parameters"], 0, 0, 0), k, 2).parameters for k in (1, 2)]
    assert limits[1] == 900
    for event, limit in zip(grown, limits, strict=True):
        assert 0.9 * (limit or 0) < event["parameters"] <= (limit or 0) < event["parameters_before"]
        assert {spec.partition("{")[0] for spec in event["specs"]} <= {"prune", "split"}
    assert cost(run.graph).parameters == grown[-1]["parameters"]
    scored = [e for e in run.history if e["event"] == "scored"]
    assert [e["kind"] for e in scored] == ["contraction", "contraction"] and all(e["price"] > 0 for e in scored)
    found = make_report(run.history)
    assert [r[1] for r in rows(found)[1:-1]] == ["contraction 1", "contraction 2"] and not notes(found)


def test_a_contraction_is_committed_though_the_loss_rises(seed_graph: Graph) -> None:
    trained = grow(seed_graph, options=replace(OPTIONS, growth_steps=0, steps=150)).graph
    limit = round(0.6 * cost(trained).parameters)
    growth = contracted(trained, Budget(parameters=limit))
    assert growth.contracts and growth.rewriting is not None
    assert 0.9 * limit < growth.cost.parameters <= limit
    before, after = (evaluate(g.module(), CHECK, find_loss("cross_entropy")).loss for g in (trained, growth.graph))
    assert growth.realised == pytest.approx(after - before, abs=1e-6)
    assert growth.realised > 0
    assert growth.flops > 0 and growth.note == ""


def test_what_is_not_mended_is_measured_once(seed_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after: the set is neither compensated for, nor are there running statistics in use."""
    measured: list[int] = []

    def counted(module: nn.Module, batches: Batches, loss: Loss, *, coupled: bool) -> Metrics:
        assert coupled, "a batch is normalised by its own statistics, and is not to be halved"
        measured.append(len(batches.split))
        return evaluate(module, batches, loss, coupled=coupled)

    monkeypatch.setattr("archir.growing.step.evaluate", counted)
    most = round(0.8 * cost(seed_graph).parameters)
    growth = contracted(seed_graph, Budget(parameters=most), replace(OPTIONS, batch_statistics=True))
    assert growth.rewriting is not None and measured == [200, 200]


def test_a_budget_that_no_set_reaches_is_told(seed_graph: Graph) -> None:
    growth = contracted(seed_graph, Budget(parameters=20))
    assert growth.contracts and growth.cost.parameters > 20
    assert "no set of the candidates comes down to the budget" in growth.note


@pytest.mark.parametrize("rule", ["sampled", "linearised", "additive"])
def test_removals_go_no_further_than_the_budget_asks(seed_graph: Graph, rule: str) -> None:
    """Whatever the model says of more of them: without the last one it is above the budget."""
    trained = grow(seed_graph, options=replace(OPTIONS, growth_steps=0, steps=100)).graph
    for part in (0.7, 0.5):
        limit = Budget(flops=round(part * cost(trained).flops))
        growth = contracted(trained, limit, replace(OPTIONS, rule=rule, settled=False), selection=data(40, 3))
        prunes = [p for p in parse_specs("; ".join(growth.specs), {Prune.name: Prune}) if isinstance(p, Prune)]
        assert limit.allows(growth.cost) and len(prunes) == len(growth.specs) > 1
        assert not limit.allows(cost_of_set(trained, prunes[:-1]))


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, "prune"),
        ({"expansion": 1.5}, "prune"),
        ({"expansion": 1.0}, "split; prune; widen{rest=true}"),
        ({"exchanges": 2}, "split; prune"),
        ({"rule": "random"}, "split; prune"),
        ({"rule": "random", "expansion": 2.0}, "prune"),
    ],
)
def test_what_does_not_begin_beyond_its_budget_can_grow(options: dict[str, Any], kinds: str) -> None:
    assert GrowOptions(**options).kinds == kinds


def test_other_rules_grow_from_the_seed(seed_graph: Graph) -> None:
    options = replace(OPTIONS, expansion=None, rule="net2net", growth_steps=1)
    run = archir.grow(seed_graph, train=data(400, 1), validation=data(200, 2), budget=900, options=options)
    kinds = [e["event"] for e in run.history]
    assert "expanded" not in kinds and "grown" in kinds
    assert cost(run.graph).parameters > cost(seed_graph).parameters


def test_exchanges_stay_within_the_budget(seed_graph: Graph) -> None:
    options = replace(WIDE, exchanges=1, last_growth=0.6)
    assert len(options.growth_at()) == 3
    run = grow(seed_graph, options=options)
    scored = [e for e in run.history if e["event"] == "scored"]
    assert [e["kind"] for e in scored] == ["contraction", "contraction", "exchange"]
    assert scored[-1]["budget"] == {"parameters": 900}
    assert cost(run.graph).parameters <= 900


def test_training_flops_are_those_of_all_networks_on_the_way(seed_graph: Graph) -> None:
    run = grow(seed_graph, options=replace(OPTIONS, growth_steps=0, steps=30))
    examples = sum(e["examples"] for e in run.history if e["event"] == "train")
    assert (
        run.history[-1]["training_flops"]
        == training_flops(seed_graph, examples)
        == 3 * cost(seed_graph).flops * examples
    )


def test_growth_that_does_not_use_its_budget_says_why(seed_graph: Graph) -> None:
    """Labels drawn at random: nothing that is learned of them lowers the loss on others."""
    noise = torch.Generator().manual_seed(3)

    def drawn(count: int, seed: int) -> Examples:
        return Examples(data(count, seed).inputs, torch.randint(3, (count,), generator=noise))

    run = grow(seed_graph, options=replace(OPTIONS, steps=20, growth_steps=1), morphisms=(Split(),))
    growth = grow_once(
        run.graph,
        train=drawn(400, 1),
        selection=drawn(60, 4),
        check=drawn(60, 5),
        loss=find_loss("cross_entropy"),
        budget=Budget(parameters=100_000),
        options=OPTIONS,
        morphisms=(Split(),),
        seed=1,
    )
    assert growth.note and ("% of the budget is used: " in growth.note or "nothing was committed: " in growth.note)


def test_an_interrupted_contraction_ends_as_if_it_had_not_been(seed_graph: Graph, tmp_path: Path) -> None:
    whole = grow(seed_graph, options=WIDE, directory=tmp_path / "whole", morphisms=MORPHISMS)

    class PowerCut(Exception):
        pass

    def cut(event: dict[str, object]) -> None:
        if event["event"] == "train" and int(str(event["step"])) > 25:
            raise PowerCut

    with pytest.raises(PowerCut):
        grow(seed_graph, options=WIDE, directory=tmp_path / "cut", on_event=cut)
    resumed = grow(seed_graph, options=WIDE, directory=tmp_path / "cut", resume=True)
    assert str(resumed.graph) == str(whole.graph)
    assert all(torch.equal(whole.graph.tensor(n), resumed.graph.tensor(n)) for n in whole.graph.by_name)
    assert resumed.history[-1]["training_flops"] == whole.history[-1]["training_flops"]


def test_steps_of_an_expanded_network_cost_no_more_than_those_of_the_final_one(seed_graph: Graph) -> None:
    """Batches hold as many fewer examples as the network is above its budget, and are whole again at the end."""
    runs = {
        even: grow(seed_graph, options=replace(WIDE, even=even, evaluate_every=0)).history for even in (True, False)
    }
    sizes: dict[bool, list[float]] = {}
    for even, history in runs.items():
        trained = [e for e in history if e["event"] == "train"]
        starts = [0, *(e["step"] for e in trained)]
        sizes[even] = [e["examples"] / (e["step"] - s) for s, e in zip(starts, trained, strict=False)]
    full = pytest.approx(OPTIONS.batch_size, rel=0.1)  # the last batch of an epoch holds less
    assert all(size == full for size in sizes[False])
    assert sizes[True][0] == pytest.approx(OPTIONS.batch_size / 2, rel=0.1) and sizes[True][-1] == full
    assert len({round(size) for size in sizes[True]}) > 2
    spent = {even: history[-1]["training_flops"] for even, history in runs.items()}
    assert spent[True] < spent[False]


def test_batches_are_not_made_too_small_for_their_statistics(seed_graph: Graph) -> None:
    options = replace(WIDE, expansion=3.0, even=True, batch_size=12)
    first = next(e for e in grow(seed_graph, options=options).history if e["event"] == "train")
    assert first["examples"] / first["step"] == pytest.approx(LEAST_BATCH, rel=0.1), "not 4"


@pytest.mark.parametrize("kind", [GrowError, NotFiniteError])
def test_memory_that_runs_out_is_no_infinite_loss(
    seed_graph: Graph, monkeypatch: pytest.MonkeyPatch, kind: type[GrowError]
) -> None:
    """The first loss that is measured is that of the network before it is mended."""
    failures = [kind("it fails")]

    def once(*given: Any, **options: Any) -> Metrics:
        if failures:
            raise failures.pop()
        return evaluate(*given, **options)

    monkeypatch.setattr(step_module, "evaluate", once)
    budget = Budget(parameters=seed_graph.parameter_count * 3 // 4)
    if kind is GrowError:
        with pytest.raises(GrowError, match="it fails"):
            contracted(seed_graph, budget)
    else:
        assert contracted(seed_graph, budget, replace(OPTIONS, compensate=True)).mended
