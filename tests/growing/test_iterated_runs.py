"""Runs on data that can only be iterated: they go on exactly from where they were, and so does what is beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from archir.errors import ArchirError, GrowError
from archir.growing.batches import Augmentation
from archir.growing.given import split_of
from archir.growing.grow import Run, grow_graph
from archir.growing.run import Event, open_run
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from tests.growing.data_files import inputs_of, targets_of
from tests.growing.process_groups import Drawn
from tests.growing.small_run import MORPHISMS, OPTIONS, data

SHORT = replace(
    OPTIONS, steps=12, growth_steps=1, first_growth=0.5, learn_steps=3, refine=4, checkpoint_every=3, expansion=2.0
)


def _grow(graph: Graph, directory: Path, size: int = 20, **rest: Any) -> Run:
    rest = {"options": replace(SHORT, ema=0.1, augmentation=Augmentation(flip=True, cutout=1)), **rest}
    return grow_graph(
        graph,
        train=split_of(DataLoader(Drawn(data(100, 1)), size), "mine"),
        validation=split_of(DataLoader(Drawn(data(80, 2)), 30), "mine"),
        budget=Budget(parameters=900),
        morphisms=MORPHISMS,
        directory=directory,
        **rest,
    )


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("when", [2, 4])
def test_a_killed_run_goes_on_to_the_same_weights(seed_graph: Graph, tmp_path: Path, when: int) -> None:
    """Killed before it grows and after; what it grew and averaged on was read on in between."""
    wanted = _grow(seed_graph, tmp_path / "whole")
    trained = 0

    def kill(event: Event) -> None:
        nonlocal trained
        trained += event["event"] == "train"
        if trained == when:
            raise _Killed

    with pytest.raises(_Killed):
        _grow(seed_graph, tmp_path / "killed", on_event=kill)
    again = _grow(seed_graph, tmp_path / "killed", resume=True)
    assert {"resumed", "grown"} <= {e["event"] for e in again.history}
    over = _grow(seed_graph, tmp_path / "killed", resume=True)
    for run in (again, over):
        assert str(run.graph) == str(wanted.graph)
        assert all(map(torch.equal, run.graph.tensors.values(), wanted.graph.tensors.values()))
    assert again.history[-1]["loss"] == over.history[-1]["loss"] == wanted.history[-1]["loss"]
    with pytest.raises(GrowError, match=r"train\.batches was \[20, .*, is \[10, "):
        _grow(seed_graph, tmp_path / "killed", resume=True, size=10)
    state = open_run(tmp_path / "whole").load(12).state
    assert state["position"][0] > 3, "more was read than the 12 * 32 examples it was trained on"


def test_a_run_that_diverges_goes_back_in_its_data_too(seed_graph: Graph, tmp_path: Path) -> None:
    read: list[int] = []

    def notes() -> Iterator[Any]:
        for number, (inputs, targets) in enumerate(
            zip(torch.split(inputs_of(data(128, 1)), 32), torch.split(targets_of(data(128, 1)), 32), strict=True)
        ):
            read.append(number)
            yield inputs, targets

    options = replace(SHORT, growth_steps=0, optimiser=replace(SHORT.optimiser, rate=1e30), clip=None)
    with pytest.raises(ArchirError, match="diverged twice"):
        grow_graph(
            seed_graph,
            train=split_of(notes, "mine"),
            validation=data(40, 2),
            budget=Budget(parameters=900),
            morphisms=MORPHISMS,
            options=options,
        )
    trained = "".join(map(str, read))
    assert trained.count("0") >= 3, "it begins anew when it goes back to its first step"


def test_networks_beside_a_run_are_trained_on_the_same_data(seed_graph: Graph, tmp_path: Path) -> None:
    """What is trained from scratch begins at the beginning, and what goes on without growth where growth began."""
    options = replace(SHORT, retrain=True, counterfactual=True)
    run = _grow(seed_graph, tmp_path / "run", options=options)
    assert {"retrained", "counterfactual", "finished"} <= {e["event"] for e in run.history}
    beside = open_run(tmp_path / "run").beside("counterfactual")
    first, last = beside.load(6).state["position"], beside.load(12).state["position"]
    # From the sixth step to the last, in batches of 32 from passes of 100.
    assert (last[0] - first[0]) * 100 + (last[1] - first[1]) * 20 + last[2] - first[2] == 6 * 32
    scratch = open_run(tmp_path / "run").beside("retrained")
    number, batch, example = scratch.load(12).state["position"]
    assert number * 100 + batch * 20 + example == 12 * 32
