"""What a run ends with: the grown network or the same retrained, and what it would have become without growth."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archir.cost import cost, training_flops
from archir.errors import FileError, GrowError
from archir.growing import conclusion
from archir.growing.batches import Batches, stream
from archir.growing.compress import compress_graph
from archir.growing.conclusion import is_better
from archir.growing.examples import Examples
from archir.growing.fresh_start import drawn_afresh
from archir.growing.grow import Run, grow_graph
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.range_test import find_rate
from archir.growing.run import Event, RunDirectory, create_run
from archir.growing.start import expand
from archir.growing.training import Metrics, evaluate
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from archir.scoring.program import number_of_examples
from frontends.pytorch import trace
from passes.residual_branch import ResidualBranch
from tests.growing.small_run import MORPHISMS, OPTIONS, Seed, data, grow
from tests.growing.static_training import train_static

LOSS = find_loss("cross_entropy")
BOTH = replace(OPTIONS, retrain=True, counterfactual=True)


class PowerCut(Exception):
    """Ends a run at some event."""


def event(run: Run, kind: str) -> Event:
    (found,) = [e for e in run.history if e["event"] == kind]
    return found


def assert_same(one: Graph, other: Graph) -> None:
    assert str(one) == str(other)
    for name in one.by_name:
        assert torch.equal(one.tensor(name), other.tensor(name)), name


@pytest.fixture(scope="module")
def plain_seed() -> Graph:
    """A seed in float64 that draws nothing at random while it is trained."""
    torch.manual_seed(0)
    model = Seed()
    model.dropout = nn.Dropout(0.0)
    return trace(model.double(), (torch.randn(4, 1, 6, 6).double(),))


def doubled(examples: Examples) -> Examples:
    assert isinstance(examples.inputs, torch.Tensor)
    return replace(examples, inputs=examples.inputs.double())


def grow_plain(graph: Graph, options: GrowOptions, **rest: Any) -> Run:
    train, validation = doubled(data(400, 1)), doubled(data(200, 2))
    budget = Budget(parameters=900)
    return grow_graph(
        graph, train=train, validation=validation, budget=budget, morphisms=MORPHISMS, options=options, **rest
    )


@pytest.mark.parametrize(("ema", "rate"), [(0.0, 0.05), (0.1, "auto")])
def test_both_networks_are_those_of_a_training_without_growth(
    plain_seed: Graph, tmp_path: Path, ema: float, rate: float | str
) -> None:
    """Bit for bit: the retrained one from the same fresh start, the other from what training began with."""
    options = replace(BOTH, expansion=1.5, ema=ema, optimiser=OptimiserOptions("sgd", rate=rate))
    train, validation = doubled(data(400, 1)), doubled(data(200, 2))
    run = grow_plain(plain_seed, options, directory=tmp_path)
    expansion = expand(
        plain_seed,
        validation=validation,
        examples=len(train),
        loss=LOSS,
        budget=Budget(parameters=900),
        morphisms=MORPHISMS,
        options=options,
    )
    assert expansion is not None
    starts = {"retrained": drawn_afresh(run.graph, expansion.graph, MORPHISMS, options.seed)}
    starts["counterfactual"] = expansion.graph
    batches = itertools.islice(stream(Batches(train, options.batch_size, options.seed)), options.steps)
    examples = sum(number_of_examples(targets) for _, targets in batches)
    for kind, start in starts.items():
        module = train_static(start, train, LOSS, options)
        kept = RunDirectory(tmp_path / kind).load(options.steps)
        for name, tensor in module.state_dict().items():
            assert torch.equal(kept.graph.tensor(name), tensor), (kind, name)
        told, found = event(run, kind), evaluate(module, validation, LOSS, batch_size=options.batch_size)
        assert (told["loss"], told["accuracy"]) == (found.loss, found.accuracy)
        assert (told["parameters"], told["flops"]) == (cost(start).parameters, cost(start).flops)
        search = find_rate(start, train, LOSS, options).steps * options.batch_size
        assert told["training_flops"] == training_flops(start, examples + search)
        assert told["seconds"] > 0 and told["step"] == options.steps


def test_the_retrained_network_is_kept_if_it_is_better_and_its_cost_is_counted(
    seed_graph: Graph, tmp_path: Path
) -> None:
    alone, run = grow(seed_graph), grow(seed_graph, options=BOTH, directory=tmp_path)
    told, finished, ungrown = (event(run, kind) for kind in ("retrained", "finished", "counterfactual"))
    before = event(alone, "finished")
    assert told["kept"] is True and finished["kept"] == "retrained"
    assert told["accuracy"] > told["grown"]["accuracy"]
    for name in ("loss", "accuracy", "parameters", "flops"):
        assert told["grown"][name] == before[name]
    for name in ("loss", "accuracy", "parameters", "flops"):
        assert finished[name] == told[name]
    assert finished["training_flops"] == told["grown"]["training_flops"] + told["training_flops"]
    assert finished["seconds"] == pytest.approx(told["grown"]["seconds"] + told["seconds"])
    assert_same(run.graph, RunDirectory(tmp_path / "retrained").load(OPTIONS.steps).graph)
    assert_same(run.graph, RunDirectory(tmp_path).load(OPTIONS.steps).graph)
    assert str(run.graph) == str(alone.graph)
    assert ungrown["parameters"] == cost(seed_graph).parameters and ungrown["note"] == ""
    # Kept nowhere, and gone on with after its end, it is the same.
    assert_same(run.graph, grow(seed_graph, options=BOTH).graph)
    again = grow(seed_graph, options=BOTH, directory=tmp_path, resume=True)
    assert_same(run.graph, again.graph)
    ended = [e for e in again.history if e["event"] == "finished"]
    assert ended[1].keys() == ended[0].keys()
    assert all(ended[1][name] == ended[0][name] for name in ended[0] if name not in ("time", "seconds"))
    assert [e["event"] for e in again.history].count("retrained") == 1


def compress(graph: Graph, **rest: Any) -> Run:
    """Compress a trained network with so few steps that it cannot be trained from scratch."""
    options = replace(BOTH, steps=4, last_growth=0.5, expansion=None)
    return compress_graph(
        graph,
        train=data(400, 1),
        validation=data(200, 2),
        budget=Budget(parameters=0.9),
        morphisms=MORPHISMS[1:],
        options=options,
        **rest,
    )


@pytest.fixture(scope="module")
def trained_graph(seed_graph: Graph) -> Graph:
    module = train_static(seed_graph, data(400, 1), LOSS, replace(OPTIONS, steps=400))
    return seed_graph.with_tensors(module.state_dict())


def test_the_grown_network_is_kept_if_it_is_better(trained_graph: Graph, tmp_path: Path) -> None:
    """And one that is contracted from above the budget would have ended above it."""
    run = compress(trained_graph, directory=tmp_path)
    told, finished, ungrown = (event(run, kind) for kind in ("retrained", "finished", "counterfactual"))
    assert told["kept"] is False and finished["kept"] == "grown"
    assert told["accuracy"] < told["grown"]["accuracy"] == finished["accuracy"] and told["note"] == ""
    assert finished["training_flops"] == told["grown"]["training_flops"] + told["training_flops"]
    assert ungrown["parameters"] == cost(trained_graph).parameters > finished["parameters"]
    assert ungrown["note"] == "over the budget: 111% of it"
    assert_same(run.graph, compress(trained_graph, directory=tmp_path, resume=True).graph)


@pytest.mark.parametrize(
    ("retrained", "grown", "better"),
    [
        ((1.0, 0.6), (0.5, 0.5), True),
        ((0.5, 0.5), (1.0, 0.5), False),
        ((0.5, 0.4), (1.0, 0.5), False),
        ((0.5, None), (1.0, None), True),
        ((1.0, None), (1.0, None), False),
    ],
)
def test_accuracy_decides_where_there_is_one_and_ties_go_to_the_grown_network(
    retrained: tuple[float, float | None], grown: tuple[float, float | None], better: bool
) -> None:
    assert is_better(Metrics(*retrained), Metrics(*grown)) is better


@pytest.mark.parametrize(
    ("beside", "kind", "step"),
    [
        ("retrained", "started", 0),
        ("retrained", "train", 20),
        ("retrained", "train", 40),
        (None, "retrained", 60),
        ("counterfactual", "resumed", 6),
        ("counterfactual", "train", 40),
        (None, "counterfactual", 60),
        (None, "grown", 6),
    ],
)
def test_a_run_that_is_interrupted_in_any_phase_ends_as_if_it_had_not_been(
    seed_graph: Graph, tmp_path: Path, beside: str | None, kind: str, step: int
) -> None:
    options = replace(BOTH, growth_steps=1, learn_steps=5)
    whole = grow(seed_graph, options=options, directory=tmp_path / "whole")

    def cut(e: Event) -> None:
        if (e.get("beside"), e["event"], e.get("step", 0)) == (beside, kind, step):
            raise PowerCut

    with pytest.raises(PowerCut):
        grow(seed_graph, options=options, directory=tmp_path / "cut", on_event=cut)
    heard: list[Event] = []
    resumed = grow(seed_graph, options=options, directory=tmp_path / "cut", resume=True, on_event=heard.append)
    assert_same(resumed.graph, whole.graph)
    for name in ("retrained", "counterfactual"):
        ends = (RunDirectory(tmp_path / run / name).load(60) for run in ("whole", "cut"))
        assert_same(*(end.graph for end in ends))
        one, other = ([e for e in run.history if e["event"] == name][-1] for run in (whole, resumed))
        assert all(one[k] == other[k] for k in ("loss", "accuracy", "parameters", "flops", "training_flops"))
    finished = [e for e in resumed.history if e["event"] == "finished"][-1]
    assert finished["loss"] == event(whole, "finished")["loss"]
    if kind == "train" and step == 40:
        first = next(e for e in heard if e.get("beside") == beside)
        assert (first["event"], first["step"]) == ("resumed", 25)


def test_what_goes_on_beside_the_run_is_told_and_not_kept(seed_graph: Graph) -> None:
    heard: list[Event] = []
    run = grow(seed_graph, options=replace(BOTH, growth_steps=1), on_event=heard.append)
    beside = [e for e in heard if "beside" in e]
    assert {e["beside"] for e in beside} == {"retrained", "counterfactual"}
    assert [e for e in heard if "beside" not in e] == list(run.history)
    assert not [e for e in beside if e["event"] in ("scored", "grown", "finished")]


def test_a_run_that_takes_the_place_of_another_takes_nothing_of_it(seed_graph: Graph, tmp_path: Path) -> None:
    grow(seed_graph, options=replace(BOTH, growth_steps=1), directory=tmp_path)
    (tmp_path / "retrained" / "mine.txt").write_text("mine")
    create_run(tmp_path, "", replace=True)
    assert not (tmp_path / "counterfactual").exists()
    assert [p.name for p in (tmp_path / "retrained").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["retrained", "counterfactual"])
def test_damaged_checkpoints_beside_the_run_lose_nothing(seed_graph: Graph, tmp_path: Path, name: str) -> None:
    options = replace(BOTH, growth_steps=1, learn_steps=5)
    whole = grow(seed_graph, options=options, directory=tmp_path)
    for path in (tmp_path / name).glob("*.json"):
        path.write_text("{")
    for step in (25, 50, 60):  # so that it is retrained anew
        found = RunDirectory(tmp_path).load(step)
        if found.state["kept"]:
            (tmp_path / f"step-{step:04d}.json").unlink()
    resumed = grow(seed_graph, options=options, directory=tmp_path, resume=True)
    assert_same(resumed.graph, whole.graph)
    last = [e for e in resumed.history if e["event"] == name][-1]
    if name == "retrained":
        assert last["loss"] == next(e for e in whole.history if e["event"] == name)["loss"]
    else:
        assert last["note"] == "it failed: its checkpoints are lost or damaged"
        assert last["parameters"] == cost(seed_graph).parameters and last["loss"] is None


def _exploding(graph: Graph) -> Graph:
    return graph.with_stored({i: t * 1e25 for i, t in graph.tensors.items() if t.is_floating_point()})


def test_training_that_diverges_beside_the_run_is_told_and_the_grown_network_kept(
    seed_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the run itself, it goes back once, at half the rate."""
    keep = conclusion._Fork.keep
    monkeypatch.setattr(conclusion, "drawn_afresh", lambda *given: _exploding(drawn_afresh(*given)))
    monkeypatch.setattr(
        conclusion._Fork, "keep", lambda fork, found: keep(fork, replace(found, graph=_exploding(found.graph)))
    )
    heard: list[Event] = []
    options = replace(BOTH, growth_steps=1, learn_steps=5)
    run = grow(seed_graph, options=options, on_event=heard.append)
    assert_same(run.graph, grow(seed_graph, options=replace(options, retrain=False, counterfactual=False)).graph)
    assert [e["beside"] for e in heard if e["event"] == "diverged"] == ["retrained", "counterfactual"]
    told, ungrown, finished = (event(run, kind) for kind in ("retrained", "counterfactual", "finished"))
    for failed in (told, ungrown):
        assert failed["note"].startswith("it failed: the loss diverged twice")
        assert failed["loss"] is None and failed["accuracy"] is None
    assert told["kept"] is False and finished["kept"] == "grown" and told["training_flops"] == 0
    assert finished["loss"] == told["grown"]["loss"]


def test_networks_with_inserted_layers_and_composites_are_retrained(seed_graph: Graph) -> None:
    options = replace(OPTIONS, retrain=True, growth_steps=1, composites=2, learn_steps=10)
    run = grow(seed_graph, options=options, morphisms=(*MORPHISMS, ResidualBranch(hidden=2)))
    assert any("residual-branch" in spec for spec in event(run, "grown")["specs"])
    assert event(run, "retrained")["note"] == ""


def test_passes_that_cannot_be_done_again_are_told(seed_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conclusion, "drawn_afresh", lambda g, *rest: drawn_afresh(g.with_history("splat"), *rest))
    run = grow(seed_graph, options=replace(OPTIONS, retrain=True, growth_steps=1, learn_steps=5))
    told = event(run, "retrained")
    assert told["note"] == "it failed: this is not a specification of passes"
    assert told["kept"] is False and told["seconds"] == 0.0


def test_checkpoints_of_another_network_beside_the_run_are_not_taken(seed_graph: Graph, tmp_path: Path) -> None:
    """Though they are whole: the budget would be no limit any more."""
    options = replace(OPTIONS, retrain=True, growth_steps=1, learn_steps=5)

    def cut(e: Event) -> None:
        if e["event"] == "retrained":
            raise PowerCut

    with pytest.raises(PowerCut):
        grow(seed_graph, options=options, directory=tmp_path, on_event=cut)
    folder = RunDirectory(tmp_path / "retrained")
    own, foreign = folder.load(60), train_static(seed_graph, data(400, 1), LOSS, OPTIONS)
    folder.save(replace(own, graph=seed_graph.with_tensors(foreign.state_dict()), tensors={}))
    heard: list[Event] = []
    resumed = grow(seed_graph, options=options, directory=tmp_path, resume=True, on_event=heard.append)
    assert [e["why"] for e in heard if e["event"] == "damaged"] == ["it is that of another network"]
    assert_same(RunDirectory(tmp_path / "retrained").load(60).graph, own.graph)
    assert str(resumed.graph) == str(own.graph)


def test_a_folder_that_is_a_link_is_refused(seed_graph: Graph, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = create_run(tmp_path / "run", "")
    (run.path / "retrained").symlink_to(elsewhere)
    with pytest.raises(FileError, match="is a link"):
        run.beside("retrained")
    create_run(run.path, "", replace=True)
    assert elsewhere.exists()


def test_there_has_to_be_growth_to_judge() -> None:
    for options in (replace(OPTIONS, retrain=True), replace(OPTIONS, counterfactual=True)):
        with pytest.raises(GrowError, match="there are no growth steps"):
            replace(options, growth_steps=0)
        assert not options.without_growth.growth_at()
        replace(options, growth_steps=0, exchanges=1)
