"""The parts that processes have of the batches, side by side, are the batches of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from archir.errors import GrowError, ProcessError
from archir.growing import start
from archir.growing.batches import Augmentation, Batches, stream
from archir.growing.checks import check_shares
from archir.growing.examples import Examples, Split
from archir.growing.launch import launched
from archir.growing.options import GrowOptions
from archir.growing.streamed import Streamed
from archir.growing.training import train
from archir.growing.training_loss import Mixed
from archir.scoring import stream as stream_module
from archir.scoring.batches import bind_batches, in_parts
from archir.scoring.budget import Budget
from archir.scoring.losses import LOSSES, NO_LABEL, find_loss
from archir.scoring.objective import Curvature, make_objective
from archir.scoring.processes import ALONE, Around, Processes
from archir.scoring.targets import tensors_of
from frontends.pytorch import trace
from tests.growing.process_groups import Pretended
from tests.growing.small_run import data
from tests.scoring.scarce import take_small_parts


class Read(torch.utils.data.Dataset[Any]):
    """Examples with noise that is drawn when they are read, and the numbers of those that were."""

    def __init__(self, examples: Examples) -> None:
        assert isinstance(examples.inputs, Tensor) and isinstance(examples.targets, Tensor)
        self.inputs, self.targets, self.read = examples.inputs, examples.targets, list[int]()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        self.read.append(number)
        return self.inputs[number] + torch.randn(self.inputs[number].shape), int(self.targets[number])


def three() -> list[Processes]:
    return [Pretended(number=rank, count=3) for rank in range(3)]


def _tensors(batch: Any) -> dict[str, Tensor]:
    return dict(tensors_of(batch))


AUGMENTATIONS = {
    "none": None,
    "images": Augmentation(flip=True, crop=2, cutout=3),
    "mixed": Augmentation(flip=True, mixup=0.5),
}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("make", [lambda e: e, lambda e: Streamed(Read(e), "noisy")], ids=["memory", "streamed"])
def test_parts_are_those_of_the_batches_of_one(make: Callable[[Examples], Split], augmentation: str) -> None:
    def batches(processes: Processes = ALONE) -> list[dict[str, Tensor]]:
        made = Batches(make(data(22, 1)), 8, 3, AUGMENTATIONS[augmentation], processes=processes)
        return [_tensors(batch) for batch in stream(made, 1, 4)]

    whole, parts = batches(), [batches(processes) for processes in three()]
    assert [len(batch["targets[0]"]) for batch in whole] == [7, 7, 8, 7]
    for i, batch in enumerate(whole):
        for name, tensor in batch.items():
            assert torch.equal(torch.cat([part[i][name] for part in parts]), tensor)
            assert {len(part[i][name]) for part in parts} == {2, 3}


def test_mixed_targets_are_cut(seed: int = 3) -> None:
    (batch, *_) = Batches(data(22, 1), 8, seed, Augmentation(mixup=0.5), processes=three()[2])
    assert isinstance(batch[1], Mixed) and len(batch[1].share) == len(batch[1].second) == len(batch[0]) == 3


def test_a_process_reads_its_own_examples_alone() -> None:
    read = list[int]()
    for processes in three():
        source = Read(data(22, 1))
        list(Batches(Streamed(source, "images"), 8, 3, processes=processes))
        read += source.read
    assert sorted(read) == list(range(22))


def test_too_many_processes_for_a_batch() -> None:
    assert len(Batches(data(9, 1), 3, processes=three()[0])) == 3
    with pytest.raises(GrowError, match="a batch of 2 examples cannot be shared out among 3 processes") as failure:
        Batches(data(8, 1), 3, processes=three()[0])
    assert "fewer processes" in failure.value.hint


def cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own."""
    return (outputs - targets[:, None]).cosh().mean(1)


@pytest.mark.parametrize("loss", ["cross_entropy", "streamed", "mse", "own"])
def test_samples_of_the_curvature_are_drawn_for_whole_batches(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "LARGEST_OUTPUTS", 6)
    graph = trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3)), (torch.randn(2, 4),))
    objective = make_objective(graph, cosh if loss == "own" else loss.replace("streamed", "cross_entropy"))
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(7, 3, generator=generator)
    targets = torch.randn(7, 3) if loss == "mse" else torch.randint(3, (7,), generator=generator)
    if loss == "streamed":  # the outputs are then what its last layer reads
        batches = bind_batches(objective.program, [(torch.randn(7, 4), targets)])
        objective = stream_module.streamed(objective, [], batches)
        assert isinstance(objective, stream_module.StreamedObjective)

    def pairs(part: slice, around: Around) -> Tensor:
        drawn = torch.Generator().manual_seed(2)
        chosen = [list(objective.pairs([outputs[part]], targets[part], Curvature.SAMPLED, drawn, around)) for _ in "12"]
        return torch.cat([right for few in chosen for _, right in few], 1)

    whole = pairs(slice(7), Around())
    found = torch.cat([pairs(p.part(7), p.around(7)) for p in three()])
    assert float(whole.abs().min()) > 0
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-7)


def test_parts_of_a_part_have_the_others_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    take_small_parts(monkeypatch)
    objective = make_objective(trace(torch.nn.Linear(4, 3), (torch.randn(2, 4),)), "mse")
    (bound,) = bind_batches(objective.program, [(torch.randn(5, 4), torch.randn(5, 3))])
    parts = list(in_parts(objective, [replace(bound, around=Around(2, 3))]))
    assert [(p.examples, p.around) for p in parts] == [
        (1, Around(2, 0)),
        (1, Around(0, 0)),
        (1, Around(0, 0)),
        (2, Around(0, 3)),
    ]


def test_the_environment_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with launched() as processes:
        assert processes == ALONE
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ProcessError, match="WORLD_SIZE is 'two', not a whole number"), launched():
        pass
    monkeypatch.setenv("WORLD_SIZE", "0")
    with pytest.raises(ProcessError, match="WORLD_SIZE is 0"), launched():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ProcessError, match=r"WORLD_SIZE is 2, .* has no MASTER_ADDR, MASTER_PORT\n"), launched():
        pass
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "none")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match="the 2 processes do not find each other") as failure, launched():
        pass
    assert "process 0, localhost:none" in failure.value.where


@pytest.mark.parametrize(("gpus", "on_gpus"), [(0, False), (1, False), (2, True)])
def test_all_processes_of_a_machine_exchange_by_one_backend(
    monkeypatch: pytest.MonkeyPatch, gpus: int, on_gpus: bool
) -> None:
    """The first has a GPU where there is one; where the second has none it does not matter."""
    found, taken = list[str](), list[int]()

    def begin(backend: str) -> None:
        found.append(backend)
        raise RuntimeError("nobody is there")

    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    environment = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**environment, "RANK": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match="nobody is there"), launched():
        pass
    assert (found, taken) == ((["cpu:gloo,cuda:nccl"], [0]) if on_gpus else (["gloo"], []))


def test_a_growth_step_needs_labelled_examples_for_every_process() -> None:
    loss, options, split = LOSSES["cross_entropy"], GrowOptions(batch_size=8, score_examples=16), data(64, 1)
    assert isinstance(split.targets, Tensor)
    few = replace(split, targets=torch.where(torch.arange(64) < 4, split.targets, NO_LABEL))
    check_shares(split, split, loss, options, three()[0])
    check_shares(split, few, loss, options, ALONE)
    with pytest.raises(GrowError, match="a batch of 2 examples cannot be shared out among 3 processes"):
        check_shares(split, few, loss, options, three()[0])
    check_shares(split, few, loss, replace(options, growth_steps=0), three()[0])


def test_a_process_needs_memory_for_its_part_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()
    monkeypatch.setattr(start, "check_memory", lambda graph, examples, *_: asked.append(examples))
    for processes, n in ((ALONE, 100), (three()[0], 100), (three()[0], 8)):
        start.expand(
            trace(torch.nn.Linear(4, 3), (torch.randn(2, 4),)),
            validation=data(9, 1),
            examples=n,
            loss=LOSSES["mse"],
            budget=Budget(parameters=20),
            morphisms=(),
            options=GrowOptions(batch_size=32, expansion=1.0),
            processes=processes,
        )
    assert asked == [32, 11, 3]


def test_a_loss_that_depends_on_no_weight_is_told_of_by_several_processes_too() -> None:
    module, examples = nn.Linear(3, 2), Examples(torch.randn(4, 3), torch.randn(4, 2))
    loss = find_loss(_of_its_own)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(GrowError, match="the loss _of_its_own depends on none of the weights"):
        train(module, Batches(examples, 4), loss, optimiser, processes=Pretended(count=2))


def _of_its_own(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.ones(len(outputs), requires_grad=True) * 2
