"""The device a run computes on: how it is named, and that one that is not there is told of before all else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import archir
from archir.errors import GrowError
from archir.growing import device
from archir.growing.batches import Augmentation, Batches
from archir.growing.device import CPU, device_of, find_device, moved, sent
from archir.growing.examples import Examples
from archir.growing.options import GrowOptions
from archir.growing.streamed import Streamed
from archir.ir.device_memory import free_on
from archir.ir.graph import Graph
from tests.growing.small_run import OPTIONS, data, grow

CUDA = torch.device("cuda", 0)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, the second of which is the current one."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


@pytest.mark.usefixtures("two_gpus")
def test_an_accelerator_is_found_with_its_number() -> None:
    assert [find_device(name) for name in ("cuda:0", "cuda:1")] == [CUDA, torch.device("cuda", 1)]
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cpu") == find_device("cpu:0") == CPU
    with pytest.raises(GrowError, match=r"there is no device cuda:7 here\n.*PyTorch finds cuda:0 to cuda:1"):
        find_device("cuda:7")
    with pytest.raises(GrowError, match=r"there is no device mps here\n.*PyTorch finds cpu and cuda"):
        find_device("mps")


def test_an_accelerator_without_float64_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    assert find_device("auto") == CPU
    with pytest.raises(GrowError, match=r"nothing can be computed on mps\n.*no float64"):
        find_device("mps")


@pytest.mark.usefixtures("no_accelerator")
def test_without_an_accelerator_it_is_the_cpu() -> None:
    assert find_device("auto") == CPU
    for name in ("cuda", "cuda:0", "meta"):
        with pytest.raises(GrowError, match=f"there is no device {name} here\n.*PyTorch finds cpu\n.*auto, or cpu"):
            find_device(name)
    for name in ("gpu", "0", "cuda:-1", "cuda:x", "cuda:99999999999999999999"):
        with pytest.raises(GrowError, match=f"there is no device '{name}'\n.*hint"):
            find_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_options_refuse_what_no_device_is_called(name: str) -> None:
    with pytest.raises(GrowError, match="device"):
        GrowOptions(device=name)
    with pytest.raises(GrowError, match="device is 3, not text"):
        GrowOptions(device=3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_accelerator")
def test_nothing_is_written_where_the_device_is_not_there(seed_graph: Graph, tmp_path: Path) -> None:
    wanted = "there is no device cuda:3 here"
    with pytest.raises(GrowError, match=wanted):
        grow(seed_graph, options=replace(OPTIONS, device="cuda:3"), directory=tmp_path / "run")
    for carry_out in (archir.grow, archir.compress):
        with pytest.raises(GrowError, match=wanted):
            carry_out(
                seed_graph,
                train=data(40, 1),
                validation=data(40, 2),
                budget=archir.Budget(flops=0.5),
                device="cuda:3",
                directory=tmp_path / "run",
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_accelerator")
def test_the_device_that_is_given_stands_above_the_options(seed_graph: Graph) -> None:
    options = replace(OPTIONS, steps=4, growth_steps=0, device="cuda")
    run = archir.grow(seed_graph, train=data(40, 1), validation=data(40, 2), budget=900, options=options, device="cpu")
    assert run.graph.device == device_of(run.model) == CPU


def test_a_graph_that_is_there_is_not_copied(seed_graph: Graph) -> None:
    assert moved(seed_graph, CPU) is seed_graph
    away = moved(seed_graph, torch.device("meta"))
    assert away.device.type == "meta" and str(away) == str(seed_graph)
    assert device_of(nn.ReLU()) == CPU


class _Pinned(torch.Tensor):
    """A tensor that is taken for one in pinned memory."""

    def is_pinned(self, device: object = None) -> bool:
        return True


def test_what_goes_to_a_gpu_is_pinned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: what is asked of the tensors is looked at."""
    asked: list[object] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        asked.append("pin")
        return tensor.as_subclass(_Pinned)

    def to(tensor: torch.Tensor, *where: object, non_blocking: bool = False) -> torch.Tensor:
        asked.append((*where, non_blocking, tensor.is_pinned()))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    sent(torch.ones(2), CUDA)
    assert asked == ["pin", (CUDA, True, True)]
    asked.clear()
    sent(torch.ones(2).as_subclass(_Pinned), CUDA)
    assert asked == [(CUDA, True, True)]
    asked.clear()
    sent(torch.ones(2), CPU)
    assert asked == [(CPU, False, False)]


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=True)])
def test_workers_pin_what_goes_to_a_gpu_as_it_is(
    augmentation: Augmentation | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is augmented is made anew, and is pinned then; either way it is what the CPU gets."""
    asked: list[bool] = []

    class Loader:
        def __init__(self, dataset: Any, *, sampler: Any, pin_memory: bool, **rest: object) -> None:
            asked.append(pin_memory)
            self.dataset, self.rows = dataset, sampler

        def __iter__(self) -> Iterator[Any]:
            return (self.dataset[row] for row in self.rows)

    split = data(24, 1)
    pairs = list(zip(split.inputs, split.targets, strict=True))
    batches = Batches(Streamed(pairs, "pairs", workers=1), 4, 7, augmentation)
    monkeypatch.setattr("archir.growing.streamed.DataLoader", Loader)
    monkeypatch.setattr("archir.growing.batches.sent", lambda tensor, device: tensor)
    there = list(replace(batches, device=CUDA))
    assert asked == [augmentation is None]
    torch.testing.assert_close(there, list(batches), rtol=0, atol=0)
    assert asked == [augmentation is None, False]


def test_examples_are_pinned_as_a_loader_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    found = Examples({"x": torch.zeros(2, 3)}, (torch.zeros(2), torch.zeros(2)), "here").pin_memory()
    assert isinstance(found.inputs, dict) and torch.equal(found.inputs["x"], torch.ones(2, 3))
    assert found.where == "here"
    torch.testing.assert_close(found.targets, (torch.ones(2), torch.ones(2)))


def test_the_memory_of_a_gpu_is_what_is_free_and_what_is_held_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda where: (1000, 5000))
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda where: 300)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda where: 100)
    assert free_on(CUDA) == 1200
    assert device.find_device("cpu") == CPU and free_on(CPU) > 2**20


def test_of_an_accelerator_that_does_not_tell_it_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(where: torch.device) -> None:
        raise RuntimeError("not supported")

    monkeypatch.setattr(torch.accelerator, "get_memory_info", refuse)
    monkeypatch.setattr("archir.ir.device_memory.free_memory", lambda: 77)
    assert free_on(torch.device("mps")) == 77
