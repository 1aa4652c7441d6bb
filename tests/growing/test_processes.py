"""Several processes carry out a run together as one would: the same architecture, the same weights but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archir
from archir.growing.batches import Augmentation
from archir.growing.examples import Examples
from archir.growing.global_statistics import global_statistics
from archir.growing.lock import lock_run
from archir.growing.ranks import check_same_graph, in_step
from archir.growing.run import open_run
from archir.growing.streamed import Streamed
from archir.growing.training import Training, train
from archir.scoring.losses import LOSSES, NO_LABEL, coupled
from archir.scoring.processes import ALONE, Processes
from passes.prune import Prune
from tests.growing.process_groups import (
    SHORT,
    Failed,
    Ran,
    difference,
    events,
    on_both,
    pool,
    run,
    seed,
)
from tests.growing.small_run import data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    with pool() as found:
        yield found


@coupled
def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of the whole batch: the outputs are to be as alike as the targets are."""
    near = F.normalize(outputs, dim=1)
    return ((near @ near.mT - (targets[:, None] == targets).to(near)) ** 2).mean()


class Noisy(torch.utils.data.Dataset[Any]):
    """Examples with noise that is drawn when they are read."""

    def __init__(self, examples: Examples) -> None:
        assert isinstance(examples.inputs, Tensor) and isinstance(examples.targets, Tensor)
        self.inputs, self.targets = examples.inputs, examples.targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.inputs[number] + 0.1 * torch.randn(self.inputs[number].shape), int(self.targets[number])


LONGER = replace(SHORT, steps=24)
ABOVE = replace(LONGER, expansion=3.0, birth="fresh", first_growth=0.75, last_growth=0.75, compensate=True)
KINDS: dict[str, dict[str, Any]] = {
    "grows": {},
    "contracts": {"options": replace(ABOVE, ema=0.1, even=True), "morphisms": (Prune(),), "budget": 450},
    "streams": {
        "options": replace(LONGER, augmentation=Augmentation(flip=True, crop=1, mixup=0.1), label_smoothing=0.1),
        "train": Streamed(Noisy(data(118, 1)), "noisy"),
    },
    "coupled": {
        "options": replace(SHORT, augmentation=Augmentation(flip=True, cutout=2), retrain=True, counterfactual=True),
        "loss": contrast,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_do_what_one_does(workers: ProcessPoolExecutor, tmp_path: Path, kind: str) -> None:
    first, second = on_both(workers, tmp_path, _kind, kind)
    wanted = run(**KINDS[kind])
    (grown,) = events(wanted, "grown")
    assert grown["specs"] and bool(grown["mended"]) == (kind == "contracts")
    assert first.graph == second.graph and first.history == second.history
    assert difference(first, second) == 0
    assert difference(first, wanted) < 1e-9
    assert [e["event"] for e in first.history] == [e["event"] for e in wanted.history]
    flops = [events(ran, "finished")[0]["training_flops"] for ran in (first, wanted)]
    assert flops[0] == pytest.approx(flops[1], rel=1e-4)
    for name in ("loss", "realised", "expected", "parameters", "accuracy", "examples"):
        found, others = ([e[name] for e in ran.history if e.get(name) is not None] for ran in (first, wanted))
        assert found == pytest.approx(others, rel=1e-9, abs=1e-12)


def _kind(processes: Processes, kind: str) -> Ran:
    return run(processes, **KINDS[kind])


def _run(processes: Processes, given: dict[str, Any]) -> Ran:
    return run(processes, **given)


def test_a_run_goes_on_with_another_number_of_processes(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    wanted = run()
    first, second = on_both(workers, tmp_path, _stopped, tmp_path / "run", 8)
    assert first == "stopped" and second.kind == "ProcessError", "who is left is told, and does not wait"
    assert "has ended" in second.text
    alone = run(directory=tmp_path / "run", resume=True)
    assert difference(alone, wanted) < 1e-9
    assert events(alone, "resumed") and max(open_run(tmp_path / "run").steps()) == SHORT.steps

    (tmp_path / "again").mkdir()
    assert _stopped(ALONE, tmp_path / "one", 4) == "stopped"
    both = on_both(workers, tmp_path / "again", _gone_on, tmp_path / "one")
    assert difference(both[0], wanted) < 1e-9 and difference(both[1], wanted) < 1e-9
    assert both[0].history == both[1].history == open_run(tmp_path / "one").history()


class Stop(Exception):
    """Ends a run from its listener."""


def test_a_network_is_compressed_by_both(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    (first, told), (second, untold) = on_both(workers, tmp_path, _compressed)
    wanted, _ = _compressed(ALONE)
    assert difference(first, second) == 0 and difference(first, wanted) < 1e-9
    assert events(first, "grown") and told == first.history and not untold, "the first process tells of events"


def _compressed(processes: Processes) -> tuple[Ran, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    found = archir.compress(
        seed(),
        train=data(118, 1),
        validation=data(119, 2),
        budget=archir.Budget(parameters=0.7),
        options=SHORT,
        on_event=told.append,
        group=processes.group,
    )
    return Ran(str(found.graph), dict(found.graph.tensors), list(found.history)), told


def _stopped(processes: Processes, directory: Path, step: int) -> str | Failed:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "train" and event["step"] > step:
            raise Stop

    try:
        run(processes, directory=directory, on_event=stop)
    except Stop:
        return "stopped"
    raise AssertionError("it was to be stopped")


def _gone_on(processes: Processes, directory: Path) -> Ran:
    return run(processes, directory=directory, resume=True)


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
        found = on_both(workers, tmp_path / str(options.batch_size), _run, {"options": options})
        for failed in found:
            assert failed.kind == "GrowError" and "cannot be shared out among 2 processes" in failed.text


def test_a_directory_that_is_in_use_is_told_by_all(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with lock_run(directory):
        found = on_both(workers, tmp_path, _run, {"directory": directory})
    for failed in found:
        assert failed.kind == "FileError" and "is in use" in failed.text


def test_damaged_checkpoints_are_told_by_all(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    assert _stopped(ALONE, tmp_path / "run", 4) == "stopped"
    (checkpoint,) = (tmp_path / "run").glob("step-*.safetensors")
    checkpoint.write_bytes(b"damaged")
    for failed in on_both(workers, tmp_path, _gone_on, tmp_path / "run"):
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
    """Let the loss of the second process be no number at the seventh step of training, and at the fourteenth."""
    left, step = times, 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal left, step
        found = F.cross_entropy(outputs, targets, reduction="none")
        if outputs.requires_grad and len(targets) < 20:  # a part of a batch, not what is checked before the run
            step += 1
            if processes.rank and left and step in (7, 14):
                left -= 1
                return found * torch.nan
        return found

    return run(processes, loss=loss, options=replace(SHORT, growth_steps=0, exchanges=0))


def test_parts_without_labels_count_for_nothing(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    found, (whole, wanted) = on_both(workers, tmp_path, _partly_labelled), _partly_labelled(ALONE)
    assert (wanted.steps, wanted.examples, wanted.skipped) == (2, 10, 1)
    for weights, done in found:
        torch.testing.assert_close(weights, whole, rtol=1e-12, atol=1e-12)
        assert (
            (done.steps, done.examples, done.skipped) == (wanted.steps, wanted.examples, wanted.skipped) == (2, 10, 1)
        )
        assert done.loss == pytest.approx(wanted.loss, rel=1e-12)


def _partly_labelled(processes: Processes) -> tuple[Tensor, Training]:
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    none = [NO_LABEL] * 3
    targets = torch.tensor([[2, 1, *none], [*none, 0, 1], [*none, NO_LABEL, NO_LABEL]])
    part = processes.part(5)
    few = [(x[part], y[part]) for x, y in zip(inputs, targets, strict=True)]
    optimiser = torch.optim.SGD(net.parameters(), 0.5)
    done = train(net, few, LOSSES["cross_entropy"], optimiser, clip=0.1, processes=processes)
    return net.weight.detach(), done


def test_batches_that_end_on_one_process(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    first, second = on_both(workers, tmp_path, _uneven)
    for failed in (first, second):
        assert failed.kind == "ProcessError" and "have ended before those of the others" in failed.text


def _uneven(processes: Processes) -> None:
    net = nn.Linear(2, 2)
    few = [(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))] * (3 - processes.rank)
    train(net, few, LOSSES["cross_entropy"], torch.optim.SGD(net.parameters(), 0.1), processes=processes)


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


@pytest.mark.parametrize("when", ["forward", "backward"])
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

    net, batch = nn.Linear(2, 2), (torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    try:
        train(net, [batch] * 2, LOSSES["cross_entropy"], optimiser, minimised=minimised, processes=processes)
    except (Stop, KeyboardInterrupt):
        return "left"
    return "trained"


def test_batches_are_normalised_as_a_whole(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    whole, found = _normalised(ALONE), on_both(workers, tmp_path, _normalised)
    for name in ("output", "gradient"):
        together = torch.cat([part[name] for part in found])
        torch.testing.assert_close(together, whole[name], rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var"):
        for part in found:
            torch.testing.assert_close(part[name], whole[name], rtol=1e-12, atol=1e-12)
    weight = sum(part["weight"] for part in found)
    torch.testing.assert_close(weight, whole["weight"], rtol=1e-12, atol=1e-12)
    assert all(part["half"] for part in found)


def _normalised(processes: Processes) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(7, 3, 4, 2, generator=generator, dtype=torch.float64)
    pull = torch.randn(x.shape, generator=generator, dtype=torch.float64)[processes.part(7)]
    x = x[processes.part(7)].requires_grad_()
    norm = nn.BatchNorm2d(3, momentum=0.3).double()
    with torch.no_grad():
        assert norm.weight is not None
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    with global_statistics(processes):
        output = norm(x)
        half = nn.functional.batch_norm(x.detach().bfloat16(), None, None, training=True).dtype is torch.bfloat16
    (output * pull).sum().backward()
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    return {
        "output": output.detach(),
        "gradient": x.grad,
        "weight": norm.weight.grad,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "half": half,
    }
