"""Several processes carry out a run together as one would: the same architecture, the same weights but for rounding."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import archir
from archir.growing.batches import Augmentation, Batches, stream
from archir.growing.controls import train_controls
from archir.growing.data import Dataset
from archir.growing.examples import Examples
from archir.growing.given import split_of
from archir.growing.global_statistics import global_statistics
from archir.growing.input_types import input_types
from archir.growing.run import create_run, open_run
from archir.growing.streamed import Streamed
from archir.growing.training import Training, train
from archir.scoring.losses import LOSSES, NO_LABEL
from archir.scoring.processes import ALONE, Processes
from passes.prune import Prune
from tests.growing.process_groups import (
    SHORT,
    Drawn,
    Noisy,
    Ran,
    contrast,
    difference,
    events,
    gone_on,
    on_both,
    run,
    seed,
    stopped,
)
from tests.growing.small_run import data

pytestmark = pytest.mark.slow


LONGER = replace(SHORT, steps=24)
ABOVE = replace(LONGER, expansion=3.0, birth="fresh", first_growth=0.75, last_growth=0.75, compensate=True)
KINDS: dict[str, dict[str, Any]] = {
    "grows": {},
    "contracts": {"options": replace(ABOVE, ema=0.1, even=True), "morphisms": (Prune(),), "budget": 450},
    "streams": {
        "options": replace(LONGER, augmentation=Augmentation(flip=True, crop=1, mixup=0.1), label_smoothing=0.1),
        "train": Streamed(Noisy(data(118, 1)), "noisy"),
    },
    "iterates": {
        "options": replace(LONGER, ema=0.1, augmentation=Augmentation(flip=True, cutout=2)),
        "train": split_of(DataLoader(Drawn(data(118, 1)), 10), "drawn"),
        "validation": split_of(DataLoader(Drawn(data(119, 2)), 50), "drawn"),
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


def test_a_run_goes_on_with_another_number_of_processes(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    wanted = run()
    first, second = on_both(workers, tmp_path, stopped, tmp_path / "run", 8)
    assert first == "stopped" and second.kind == "ProcessError", "who is left is told, and does not wait"
    assert "has ended" in second.text
    alone = run(directory=tmp_path / "run", resume=True)
    assert difference(alone, wanted) < 1e-9
    assert events(alone, "resumed") and max(open_run(tmp_path / "run").steps()) == SHORT.steps

    (tmp_path / "again").mkdir()
    assert stopped(ALONE, tmp_path / "one", 4) == "stopped"
    both = on_both(workers, tmp_path / "again", gone_on, tmp_path / "one")
    assert difference(both[0], wanted) < 1e-9 and difference(both[1], wanted) < 1e-9
    assert both[0].history == both[1].history == open_run(tmp_path / "one").history()


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


def test_controls_are_trained_by_both(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    first, second = on_both(workers, tmp_path, _controls, tmp_path / "run")
    wanted = _controls(ALONE, tmp_path / "alone")
    assert [name for name, *_ in first] == [name for name, *_ in wanted] and len(wanted) == 3
    for one, other, control in zip(first, second, wanted, strict=True):
        assert one[1] == other[1] == pytest.approx(control[1], rel=1e-9)
        assert one[2] == other[2] == control[2] > 0
    folders = [{p.name for p in (tmp_path / name).glob("control-*/step-*")} for name in ("run", "alone")]
    assert folders[0] == folders[1] and len(folders[0]) > 3, "the first process keeps them"


def _controls(processes: Processes, directory: Path) -> list[tuple[str, list[float], int]]:
    if processes.rank == 0:
        directory.mkdir()
        create_run(directory, "")
    dataset = Dataset("made", data(118, 1), data(119, 2), (), lambda: data(1, 1)).changed(input_types(seed()))
    spent, options = 4 * 10**7, replace(SHORT, steps=8)
    found = train_controls(
        seed(),
        archir.Budget(parameters=450),
        spent,
        dataset,
        LOSSES["cross_entropy"],
        options,
        directory,
        processes=processes,
    )
    sums = [[float(t.double().square().sum()) for t in c.graph.tensors.values()] for c in found]
    return [(c.name, one, c.training_flops or 0) for c, one in zip(found, sums, strict=True)]


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


def test_a_scaled_loss_has_as_much_room_in_two_processes(workers: ProcessPoolExecutor, tmp_path: Path) -> None:
    """What is beyond float16 in one process is so in two, and nothing else: steps that are left out are the same."""
    wanted = _scaled(ALONE)
    first, second = on_both(workers, tmp_path, _scaled)
    assert first == second == wanted and 0 < wanted[0] < 12


def _scaled(processes: Processes) -> tuple[int, float]:
    """Train in float16 from a scale that is too large; return the steps left out, and the scale at the end."""
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    generator = torch.Generator().manual_seed(1)
    examples = Examples(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    done = train(
        module,
        stream(Batches(examples, 8, processes=processes), count=12),
        LOSSES["mse"],
        torch.optim.SGD(module.parameters(), lr=1e-3),
        precision="float16",
        scaler=scaler,
        processes=processes,
    )
    return done.overflowed, scaler.get_scale()
