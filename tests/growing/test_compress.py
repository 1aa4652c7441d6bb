"""Compression: a trained network is contracted into a budget, mended, and trained on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import archir
from archir.cost import cost
from archir.errors import GrowError
from archir.growing.compress import compress_graph
from archir.growing.grow import Run, grow_graph
from archir.growing.growth import Growth, grow_once
from archir.growing.options import GrowOptions
from archir.growing.report import make_report
from archir.growing.report_tables import columns, rows
from archir.growing.run import open_run
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from frontends.pytorch import trace
from passes.merge import Merge
from passes.prune import Prune
from passes.remove_block import RemoveBlock
from passes.split import Split
from tests.growing.small_run import OPTIONS, Seed, data, grow

SHORT = replace(OPTIONS, steps=40, growth_steps=2, last_growth=0.5)
HALF = Budget(flops=0.5)


@pytest.fixture(scope="module")
def trained() -> Graph:
    torch.manual_seed(0)
    graph = trace(Seed(8), (torch.randn(4, 1, 6, 6),))
    return grow(graph, budget=10_000, options=replace(OPTIONS, growth_steps=0, steps=150)).graph


def compress(graph: Graph, budget: Budget = HALF, options: GrowOptions = SHORT, **rest: object) -> Run:
    given: dict[str, object] = {"morphisms": (Prune(),), **rest}
    return compress_graph(graph, train=data(400, 1), validation=data(200, 2), budget=budget, options=options, **given)  # type: ignore[arg-type]


def contract(graph: Graph, options: GrowOptions, *morphisms: Morphism) -> Growth:
    return grow_once(
        graph,
        train=data(400, 1),
        selection=data(100, 3),
        check=data(200, 2),
        loss=find_loss("cross_entropy"),
        budget=Budget(parameters=0.6).resolved(cost(graph)),
        options=options,
        morphisms=morphisms,
        seed=0,
    )


def test_a_trained_network_comes_down_to_a_part_of_its_cost_and_is_trained_on(trained: Graph) -> None:
    run = compress(trained)
    limit = cost(trained).flops // 2
    assert 0.8 * limit < cost(run.graph).flops <= limit
    assert run.history[0]["budget"] == {"flops": limit} and run.history[0]["kind"] == "compression"
    grown = [e for e in run.history if e["event"] == "grown"]
    assert [e["step"] for e in grown] == [0, 20]
    assert all(b["flops"] < a["flops"] for a, b in pairwise([{"flops": cost(trained).flops}, *grown]))
    # The first thing that is known is what the trained network does.
    (first, *_) = [e for e in run.history if e["event"] == "evaluated"]
    assert first["parameters"] == trained.parameter_count and first["accuracy"] > 0.8

    report = make_report(run.history)
    assert report.compresses and columns(report)[-3:] == (">loss", ">validation", ">seconds")
    table = rows(report)
    assert [row[1] for row in table] == ["network", "contraction 1", "trained on", "contraction 2", "end"]
    assert table[0][-3] == f"{first['loss']:.4f}" and all(row[-3] for row in table)
    assert table[1][4] == table[2][4] == f"{grown[0]['flops']:,}" and len({len(row) for row in table}) == 1


def test_weights_are_those_of_the_trained_network_where_nothing_is_trained(trained: Graph) -> None:
    options = replace(SHORT, compensate=False, growth_steps=1, steps=1, optimiser=replace(SHORT.optimiser, rate=1e-9))
    run = compress(trained, options=options)
    (grown,) = [e for e in run.history if e["event"] == "grown"]
    assert all(spec.startswith("prune") for spec in grown["specs"])
    kept = {row.numpy().tobytes() for row in trained.tensor("head.weight").round(decimals=3).T}
    assert {row.numpy().tobytes() for row in run.graph.tensor("head.weight").round(decimals=3).T} <= kept


@pytest.mark.parametrize("kinds", [(Prune(),), (Prune(), Merge()), (Prune(), Split()), (Prune(), RemoveBlock())])
def test_what_is_mended_is_what_lowers_the_loss(trained: Graph, kinds: tuple[Morphism, ...]) -> None:
    # θ that is learned for long leaves nothing for the compensation to do.
    options = replace(OPTIONS, learn_steps=1)
    plain, mended = (contract(trained, replace(options, compensate=given), *kinds) for given in (False, True))
    assert plain.specs == mended.specs and plain.cost == mended.cost
    assert "compensated" not in plain.mended and "compensated" in mended.mended
    assert mended.realised < plain.realised
    loss = find_loss("cross_entropy")
    before, after = (evaluate(g.module(), data(200, 2), loss).loss for g in (trained, mended.graph))
    assert mended.realised == pytest.approx(after - before, abs=1e-6)


def test_batch_statistics_are_averaged_anew_where_that_lowers_the_loss(trained: Graph) -> None:
    """They are those of the training batches, which the statistics of this network are far from."""
    stale = trained.with_tensors({"stem.1.running_mean": trained.tensor("stem.1.running_mean") + 1})
    growth = contract(stale, OPTIONS, Prune())
    assert growth.mended == ("recalibrated",) and growth.realised < 0
    kept = growth.graph.tensor("stem.1.running_mean")
    assert all(float((trained.tensor("stem.1.running_mean") - m).abs().min()) < 0.2 for m in kept)


def test_optimiser_and_average_go_on_after_compensation(trained: Graph) -> None:
    """Momentum goes through the maps; the average keeps its distance from the weights, compensated as they are."""
    options = replace(OPTIONS, compensate=True, ema=0.2)
    growth = contract(trained, options, Prune())
    assert growth.rewriting is not None and growth.rewriting.before is trained and "compensated" in growth.mended
    trainer = Trainer(trained, options)
    distance = 0.01
    shifted = {f"ema/{n}": p.detach() + distance for n, p in trainer.module.named_parameters()}
    momenta = {f"momentum_buffer/{n}": torch.ones_like(p) for n, p in trainer.module.named_parameters()}
    small = Trainer(trained, options, shifted | momenta).become(growth.rewriting)
    state, weights = small.state(), dict(small.module.named_parameters())
    for name, weight in weights.items():
        assert torch.allclose(state[f"ema/{name}"], weight + distance, atol=1e-6)
        assert torch.equal(state[f"momentum_buffer/{name}"], torch.ones_like(weight))
        assert torch.equal(weight, growth.graph.tensor(name))


def test_an_interrupted_compression_ends_as_if_it_had_not_been(trained: Graph, tmp_path: Path) -> None:
    whole = compress(trained, directory=tmp_path / "whole")

    class PowerCut(Exception):
        pass

    def cut(event: dict[str, object]) -> None:
        if event["event"] == "train" and int(str(event["step"])) > 20:
            raise PowerCut

    with pytest.raises(PowerCut):
        compress(trained, directory=tmp_path / "cut", on_event=cut)
    resumed = compress(trained, directory=tmp_path / "cut", resume=True)
    assert str(resumed.graph) == str(whole.graph)
    assert all(torch.equal(whole.graph.tensor(n), resumed.graph.tensor(n)) for n in whole.graph.by_name)
    assert open_run(tmp_path / "cut").fingerprint["budget.flops"] == cost(trained).flops // 2


@pytest.mark.parametrize(
    ("budget", "options", "why"),
    [
        (Budget(flops=1.0), SHORT, "within the budget already"),
        (Budget(parameters=10**6), SHORT, "archir grow"),
        (Budget(parameters=5), SHORT, "cannot be made as small as the budget"),
        (Budget(parameters=5), SHORT, r"at least \d+ parameters, \d+ FLOPs"),
        (Budget(latency=0.1), SHORT, "compression needs a budget"),
        (HALF, replace(SHORT, expansion=2.0), "not expanded"),
        (HALF, replace(SHORT, growth_steps=0), "one growth step at least"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    trained: Graph, tmp_path: Path, budget: Budget, options: GrowOptions, why: str
) -> None:
    with pytest.raises(GrowError, match=why):
        compress(trained, budget, options, directory=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_growth_does_not_shrink_a_seed(trained: Graph) -> None:
    with pytest.raises(GrowError, match="archir compress"):
        grow_graph(trained, train=data(40, 1), validation=data(20, 2), budget=HALF, morphisms=(Split(),))


def test_the_public_function_takes_modules_and_prunes(trained: Graph) -> None:
    train, validation = data(400, 1), data(200, 2)
    run = archir.compress(
        trained.module(),
        train=(train.inputs, train.targets),
        validation=validation,
        budget=Budget(parameters=0.5),
        options=replace(SHORT, growth_steps=1, steps=10),
    )
    assert cost(run.graph).parameters <= cost(trained).parameters // 2
    with pytest.raises(GrowError, match="a float is no Budget"):
        archir.compress(trained, train=train, validation=validation, budget=0.5)  # type: ignore[arg-type]
