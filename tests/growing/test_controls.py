"""The controls of a run: they are those of a plain training, and go on where they were interrupted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from archir.cost import cost, training_flops
from archir.errors import FileError
from archir.growing.batches import Batches, stream
from archir.growing.controls import Control, train_controls
from archir.growing.data import Dataset
from archir.growing.examples import Examples
from archir.growing.expansion import widen_uniformly
from archir.growing.lock import lock_run
from archir.growing.log import Listener
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.range_test import find_rate
from archir.growing.run import CONTROLS, Event, RunDirectory, create_run
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from archir.scoring.program import number_of_examples
from frontends.pytorch import trace
from tests.growing.small_run import OPTIONS, Seed, data
from tests.growing.static_training import train_static

LOSS, BUDGET = find_loss("cross_entropy"), Budget(parameters=400)
SHORT = replace(OPTIONS, steps=24, checkpoint_every=10, evaluate_every=8)
NAMES = ["seed, not grown", "uniformly widened", "the same, trained for as many FLOPs"]
LONGER = 30
"""Steps of the widened network that take as many FLOPs as the run."""


def _never() -> Examples:
    raise AssertionError("the test data are read")


DATASET = Dataset("made", data(200, 1), data(60, 2), (), _never)


class PowerCut(Exception):
    """Ends the training at some event."""


@pytest.fixture(scope="module")
def plain_seed() -> Graph:
    """A seed that draws nothing at random while it is trained."""
    torch.manual_seed(0)
    model = Seed()
    model.dropout = nn.Dropout(0.0)
    return trace(model, (torch.randn(4, 1, 6, 6),))


def train(
    seed: Graph, directory: Path, options: GrowOptions = SHORT, steps: int = LONGER, on_event: Listener | None = None
) -> list[Control]:
    """Train the controls of a run that took as many FLOPs as so many steps of the widened network."""
    if not directory.exists():
        create_run(directory, "")
    spent = training_flops(widened(seed), 200 * steps // 7)
    return train_controls(seed, BUDGET, spent, DATASET, LOSS, options, directory, on_event=on_event)


def widened(seed: Graph) -> Graph:
    return widen_uniformly(seed, BUDGET, birth="fresh", seed=SHORT.seed).graph


def assert_same(one: list[Control], other: list[Control]) -> None:
    assert [(c.name, c.training_flops) for c in one] == [(c.name, c.training_flops) for c in other]
    for mine, theirs in zip(one, other, strict=True):
        assert str(mine.graph) == str(theirs.graph)
        assert_same_weights(mine.module, theirs.module)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    found, wanted = one.state_dict(), other.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize(("ema", "rate"), [(0.0, 0.05), (0.1, "auto")])
def test_they_are_those_of_a_training_in_one_loop(
    plain_seed: Graph, tmp_path: Path, ema: float, rate: float | str
) -> None:
    """Bit for bit: each finds its own rate, is averaged as the run is, and knows what it took."""
    options = replace(SHORT, ema=ema, optimiser=OptimiserOptions("sgd", rate=rate))
    found = train(plain_seed, tmp_path / "run", options)
    wide = widened(plain_seed)
    wanted = {
        "seed, not grown": (plain_seed, 24),
        "uniformly widened": (wide, 24),
        "the same, trained for as many FLOPs": (wide, LONGER),
    }
    assert [control.name for control in found] == list(wanted)
    for control, (graph, steps) in zip(found, wanted.values(), strict=True):
        lasting = replace(options, steps=steps)
        assert_same_weights(control.module, train_static(graph, DATASET.train, LOSS, lasting))
        assert not control.module.training and cost(control.graph) == cost(graph)
        batches = itertools.islice(stream(Batches(DATASET.train, options.batch_size, options.seed)), steps)
        examples = sum(number_of_examples(targets) for _, targets in batches)
        search = find_rate(graph, DATASET.train, LOSS, lasting).steps * options.batch_size
        assert control.training_flops == training_flops(graph, examples + search)


def test_the_widened_one_is_trained_once_if_the_run_took_no_more(plain_seed: Graph, tmp_path: Path) -> None:
    found = train(plain_seed, tmp_path / "run", replace(SHORT, steps=3, growth_steps=0), steps=3)
    assert [control.name for control in found] == ["seed, not grown", "uniformly widened"]
    assert not (tmp_path / "run" / CONTROLS[2]).exists()


@pytest.mark.parametrize(
    ("folder", "kind", "step", "goes_on"),
    [
        ("control-seed", "started", 0, None),
        ("control-seed", "train", 20, 10),
        ("control-seed", "train", 24, 20),
        ("control-uniform", "started", 0, None),
        ("control-uniform", "train", 16, 10),
        ("control-longer", "train", 30, 20),
    ],
)
def test_what_was_interrupted_ends_as_if_it_had_not_been_and_what_is_finished_is_not_trained_again(
    seed_graph: Graph, tmp_path: Path, folder: str, kind: str, step: int, goes_on: int | None
) -> None:
    """Of a network with dropout, too."""
    whole = train(seed_graph, tmp_path / "whole")

    def cut(event: Event) -> None:
        if (event["beside"], event["event"], event.get("step", 0)) == (folder, kind, step):
            raise PowerCut

    with pytest.raises(PowerCut):
        train(seed_graph, tmp_path / "cut", on_event=cut)
    heard: list[Event] = []
    assert_same(train(seed_graph, tmp_path / "cut", on_event=heard.append), whole)
    first = {name: next(e for e in heard if e["beside"] == name) for name in CONTROLS}
    place = CONTROLS.index(folder)
    for number, (name, ends) in enumerate(zip(CONTROLS, (24, 24, LONGER), strict=True)):
        at = ends if number < place else goes_on if number == place else None
        told = first[name]["event"], first[name].get("step"), first[name]["steps"]
        assert told == ("started" if at is None else "resumed", at, ends), name
    trained = {e["beside"] for e in heard if e["event"] == "train"}
    assert trained == set(CONTROLS[place:])
    heard.clear()
    assert_same(train(seed_graph, tmp_path / "cut", on_event=heard.append), whole)
    assert not [e for e in heard if e["event"] == "train"]


def test_nothing_of_them_is_in_the_history_of_the_run(plain_seed: Graph, tmp_path: Path) -> None:
    train(plain_seed, tmp_path / "run")
    assert RunDirectory(tmp_path / "run").history() == []


def test_damaged_checkpoints_are_told_and_passed_over(plain_seed: Graph, tmp_path: Path) -> None:
    whole = train(plain_seed, tmp_path / "run")
    (tmp_path / "run" / CONTROLS[0] / "step-0024.json").write_text("{")
    for path in (tmp_path / "run" / CONTROLS[1]).glob("*.json"):
        path.write_text("{")
    heard: list[Event] = []
    assert_same(train(plain_seed, tmp_path / "run", on_event=heard.append), whole)
    assert [(e["beside"], e["checkpoint"]) for e in heard if e["event"] == "damaged"] == [(CONTROLS[0], 24)]
    assert [e["step"] for e in heard if e["event"] == "resumed"] == [20, LONGER]


@pytest.mark.parametrize("evaluate_every", [8, 1])
def test_one_that_diverges_goes_back_once_and_is_told_of_if_that_does_not_help(
    plain_seed: Graph, tmp_path: Path, evaluate_every: int
) -> None:
    """Whether a training loss tells it or that on the validation data; it was paid for all the same."""
    sgd = OptimiserOptions("sgd", rate=1e30)
    options = replace(SHORT, clip=None, optimiser=sgd, evaluate_every=evaluate_every)
    heard: list[Event] = []
    found = train(plain_seed, tmp_path / "run", options, on_event=heard.append)
    assert [c.name for c in found] == NAMES
    assert all(c.failure.startswith("it failed: the loss") for c in found)
    assert all(c.module(DATASET.train.take(slice(None)).inputs).isfinite().all() for c in found)
    if evaluate_every == 8:
        assert {e["beside"] for e in heard if e["event"] == "diverged"} == set(CONTROLS)
        assert all(c.training_flops for c in found)


def test_nobody_else_writes_into_the_run_meanwhile(plain_seed: Graph, tmp_path: Path) -> None:
    create_run(tmp_path / "run", "")
    with lock_run(tmp_path / "run"), pytest.raises(FileError, match="is in use"):
        train(plain_seed, tmp_path / "run")


def test_a_run_that_takes_the_place_of_another_takes_nothing_of_its_controls(plain_seed: Graph, tmp_path: Path) -> None:
    train(plain_seed, tmp_path / "run")
    create_run(tmp_path / "run", "", replace=True)
    assert not [name for name in CONTROLS if (tmp_path / "run" / name).exists()]
