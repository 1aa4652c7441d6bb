"""What goes wrong in one of several processes is told by all, with an error of archir, and none waits for ever."""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from archir.errors import ScoreError
from archir.growing import conclusion
from archir.growing.examples import Examples
from archir.growing.given import split_of
from archir.growing.lock import lock_run
from archir.growing.ranks import check_same_graph, in_step
from archir.growing.streamed import Streamed
from archir.growing.training import train
from archir.scoring.losses import LOSSES
from archir.scoring.processes import ALONE, Processes
from tests.growing.process_groups import (
    SHORT,
    Drawn,
    Noisy,
    Ran,
    Stop,
    difference,
    events,
    gone_on,
    on_both,
    run,
    run_with,
    seed,
    stopped,
)
from tests.growing.small_run import data

pytestmark = pytest.mark.slow


OTHERS: dict[str, Any] = {
    "train.examples was 118, is 80": {"train": data(80, 1)},
    "validation.inputs was": {"validation": data(90, 5)},
    "options.seed was 0, is 1": {"options": replace(SHORT, seed=1)},
    "seed.tensors was": {"graph": "other"},
    "resume was false, is true": {"resume": True},
}


@pytest.mark.parametrize("said", OTHERS)
def test_processes_that_were_started_differently(workers: ProcessPoolExecutor, tmp_path: Path, said: str) -> None:
    found = on_both(workers, tmp_path, _other, OTHERS[said], tmp_path / "run")
    for failed in found:
        assert failed.kind == "ProcessError" and f"process 1: {said}" in failed.text
    assert not (tmp_path / "run").exists()


def _other(processes: Processes, other: dict[str, Any], directory: Path) -> Ran:
    given = dict(other) if processes.rank else {}
    if "graph" in given:
        graph = seed()
        given["graph"] = graph.with_tensors({n.names[0]: graph.tensors[n.id] + 1 for n in graph.parameters})
    return run(processes, directory=directory, **given)


def test_there_are_too_many_processes_for_a_batch(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    for options in (replace(SHORT, batch_size=1), replace(SHORT, score_examples=1)):
        (tmp_path / str(options.batch_size)).mkdir()
        found = on_both(workers, tmp_path / str(options.batch_size), run_with, {"options": options})
        for failed in found:
            assert failed.kind == "GrowError" and "cannot be shared out among 2 processes" in failed.text


def test_a_directory_that_is_in_use_is_told_by_all(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with lock_run(directory):
        found = on_both(workers, tmp_path, run_with, {"directory": directory})
    for failed in found:
        assert failed.kind == "FileError" and "is in use" in failed.text


def test_damaged_checkpoints_are_told_by_all(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    assert stopped(ALONE, tmp_path / "run", 4) == "stopped"
    (checkpoint,) = (tmp_path / "run").glob("step-*.safetensors")
    checkpoint.write_bytes(b"damaged")
    for failed in on_both(workers, tmp_path, gone_on, tmp_path / "run"):
        assert failed.kind == "FileError" and "every checkpoint in" in failed.text


def test_a_loss_that_diverges_on_one_process(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    first, second = on_both(workers, tmp_path, _diverging, 1)
    assert first.history == second.history and difference(first, second) == 0
    (diverged,) = events(first, "diverged")
    assert diverged["step"] > 4 and "the loss is nan" in diverged["why"]
    assert diverged["rate"] == 0.025
    (tmp_path / "twice").mkdir()
    failures = on_both(workers, tmp_path / "twice", _diverging, 2)
    assert failures[0] == failures[1] and failures[0].step > diverged["step"]
    assert failures[0].kind == "DivergenceError" and "diverged twice" in failures[0].text


def _diverging(processes: Processes, times: int) -> Ran:
    """Let the loss of the second process be no number at the seventh step of training, and at the fourteenth.

    Before them the first batches of both splits are checked.
    """
    left, step = times, 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal left, step
        found = F.cross_entropy(outputs, targets, reduction="none")
        if outputs.requires_grad:
            step += 1
            if processes.rank and left and step in (9, 16):
                left -= 1
                return found * torch.nan
        return found

    return run(processes, loss=loss, options=replace(SHORT, growth_steps=0, exchanges=0))


def test_a_network_beside_the_run_that_fails_on_one_process(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The other process does not know of it, so that neither can go on."""
    first, second = on_both(workers, tmp_path, _failing_beside)
    assert first.kind == "ProcessError" and "another process of the group has ended" in first.text
    assert second.kind == "ScoreError" and "it fails here" in second.text


def _failing_beside(processes: Processes) -> Ran:
    """Let the network that is trained from scratch not be drawn on the second process."""

    def fails(*_: object) -> None:
        raise ScoreError("it fails here")

    with pytest.MonkeyPatch.context() as patched:
        if processes.rank:
            patched.setattr(conclusion, "drawn_afresh", fails)
        return run(processes, options=replace(SHORT, retrain=True))


def test_what_one_process_cannot_begin_with_none_begins(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    first, second = on_both(workers, tmp_path, _unfit, tmp_path / "run")
    assert first.kind == "ProcessError" and "another process cannot begin the run" in first.text
    assert second.kind == "GrowError" and "of the first training batch is nan" in second.text
    assert not (tmp_path / "run").exists()


def _unfit(processes: Processes, directory: Path) -> Ran:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") * (torch.nan if processes.rank else 1.0)

    return run(processes, loss=loss, directory=directory)


def test_batches_that_end_on_one_process(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    first, second = on_both(workers, tmp_path, _uneven)
    for failed in (first, second):
        assert failed.kind == "ProcessError" and "have ended before those of the others" in failed.text


def _uneven(processes: Processes) -> None:
    net = nn.Linear(2, 2)
    few = [(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))] * (3 - processes.rank)
    train(net, few, LOSSES["cross_entropy"], torch.optim.SGD(net.parameters(), 0.1), processes=processes)


def test_a_stream_that_ends_on_one_process(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Which goes on with another pass there: the first examples are the same, and those of all other batches not."""
    for failed in on_both(workers, tmp_path, _shorter):
        assert failed.kind == "ProcessError"
        assert re.search(r"different places of drawn (.|\n)*0: pass 1, batch 6\n.*1: pass 1, batch 9\n", failed.text)


def _shorter(processes: Processes) -> Ran:
    rows = Drawn(data(330, 1), 290 if processes.rank else 320)
    options = replace(SHORT, growth_steps=0, evaluate_every=0)
    return run(processes, options, train=split_of(DataLoader(rows, 10), "drawn"))


def test_examples_that_one_process_cannot_read(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    first, second = on_both(workers, tmp_path, _unreadable)
    assert first.kind == "ProcessError" and "another process cannot read" in first.text
    assert second.kind == "FileError" and "hold nan" in second.text


def _unreadable(processes: Processes) -> None:
    images = torch.ones(8, 2)
    images[6] = torch.nan
    split = Streamed(Noisy(Examples(images, torch.zeros(8, dtype=torch.long))), "images")
    numbers = torch.arange(8)[processes.part(8)]
    list(in_step(processes, split.batches([(numbers[:2], 0, 0), (numbers[2:], 1, 0)])))


def test_networks_that_were_grown_differently(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    for failed in on_both(workers, tmp_path, _apart):
        assert failed.kind == "ProcessError" and "process 1: prune" in failed.text


def _apart(processes: Processes) -> None:
    graph, specs = seed(), list[str]()
    check_same_graph(processes, graph, specs)
    if processes.rank:
        specs.append("prune")
        graph = graph.with_history("other")
    check_same_graph(processes, graph, specs)


@pytest.mark.parametrize("when", ["start", "forward", "backward"])
def test_a_process_that_ends_ends_the_others(workers: ProcessPoolExecutor, tmp_path: Path, when: str) -> None:
    first, second = on_both(workers, tmp_path, _leaving, when)
    assert first.kind == "ProcessError" and "another process of the group has ended" in first.text
    assert second == "left"


def _leaving(processes: Processes, when: str) -> str:
    class Leave(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if when == "forward":
                raise Stop
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            raise KeyboardInterrupt

    def minimised(outputs: Any, targets: Any) -> Tensor:
        if processes.rank:
            outputs = Leave.apply(outputs)  # type: ignore[no-untyped-call]
        return F.cross_entropy(outputs, targets)

    if when == "start" and processes.rank:
        return "left"
    net, batch = nn.Linear(2, 2), (torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    try:
        train(net, [batch] * 2, LOSSES["cross_entropy"], optimiser, minimised=minimised, processes=processes)
    except (Stop, KeyboardInterrupt):
        return "left"
    return "trained"
