"""Work done by two processes of a group, for the tests of runs that several carry out together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from archir.errors import ArchirError
from archir.growing.examples import Examples
from archir.growing.grow import grow_graph
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import coupled
from archir.scoring.processes import ALONE, Processes
from frontends.pytorch import trace
from tests.growing.small_run import MORPHISMS, OPTIONS, Seed, data

WORLD = 2

SHORT = replace(
    OPTIONS,
    steps=16,
    growth_steps=1,
    first_growth=0.5,
    last_growth=0.5,
    learn_steps=4,
    refine=12,
    recalibrate_batches=2,
    score_examples=60,
    evaluate_every=8,
    checkpoint_every=4,
)


@dataclass(frozen=True)
class Failed:
    """The error of archir that a process has ended with; as text, for it is sent to another."""

    kind: str
    text: str
    step: int | None = None


@dataclass(frozen=True)
class Ran:
    """What a run ended with."""

    graph: str
    tensors: dict[int, torch.Tensor]
    history: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Pretended(Processes):
    """One of several processes that exchange nothing."""

    number: int = 0
    count: int = 1

    @property
    def rank(self) -> int:
        return self.number

    @property
    def size(self) -> int:
        return self.count


@contextmanager
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes that wait for work, each of which keeps its rank: PyTorch keeps what shards a process has."""
    spawn = get_context("spawn")
    ranks = spawn.Queue()
    for rank in range(WORLD):
        ranks.put(rank)
    with ProcessPoolExecutor(WORLD, mp_context=spawn, initializer=_begin, initargs=(ranks,)) as found:
        yield found


_RANK: list[int] = []
"""The rank of this process."""


def _begin(ranks: Any) -> None:
    _RANK.append(ranks.get())


def on_both(workers: ProcessPoolExecutor, folder: Path, work: Callable[..., Any], *given: Any) -> list[Any]:
    """Return what a function of the processes gives on each of them, or the error it ended with."""
    found = dict(workers.map(_on_one, [folder] * WORLD, [work] * WORLD, [given] * WORLD))
    return [found[rank] for rank in range(WORLD)]


def _on_one(folder: Path, work: Callable[..., Any], given: tuple[Any, ...]) -> tuple[int, Any]:
    (rank,) = _RANK
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    try:
        return rank, work(Processes(dist.group.WORLD, parts=True), *given)
    except ArchirError as error:
        return rank, Failed(type(error).__name__, str(error), getattr(error, "step", None))
    finally:
        dist.destroy_process_group()


def seed() -> Graph:
    """A small convolutional net in float64, without dropout."""
    torch.manual_seed(0)
    net = Seed()
    net.dropout.p = 0.0
    return trace(net.double(), (torch.randn(4, 1, 6, 6, dtype=torch.float64),))


def run(processes: Processes = ALONE, options: GrowOptions = SHORT, budget: int = 900, **rest: Any) -> Ran:
    """Grow that net."""
    given: dict[str, Any] = {"train": data(118, 1), "validation": data(119, 2), "morphisms": MORPHISMS, **rest}
    graph = given.pop("graph", None) or seed()
    found = grow_graph(graph, budget=Budget(parameters=budget), options=options, processes=processes, **given)
    return Ran(str(found.graph), dict(found.graph.tensors), list(found.history))


def difference(one: Ran, other: Ran) -> float:
    """Return the largest difference of two networks, which are the same but for their weights."""
    assert one.graph == other.graph
    return max(float((t - other.tensors[i]).abs().max()) for i, t in one.tensors.items())


def events(of: Ran, name: str) -> list[dict[str, Any]]:
    """Return the events of a kind."""
    return [e for e in of.history if e["event"] == name]


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


class Drawn(torch.utils.data.IterableDataset[Any]):
    """Such examples in an order that is drawn when they are read."""

    def __init__(self, examples: Examples, most: int | None = None) -> None:
        self.noisy, self.most = Noisy(examples), most

    def __iter__(self) -> Iterator[Any]:
        return map(self.noisy.__getitem__, torch.randperm(len(self.noisy)).tolist()[: self.most])


def run_with(processes: Processes, given: dict[str, Any]) -> Ran:
    """Grow that net with other arguments."""
    return run(processes, **given)


class Stop(Exception):
    """Ends a run from its listener."""


def stopped(processes: Processes, directory: Path, step: int) -> str:
    """Grow that net until it is stopped by the first event after a step."""

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "train" and event["step"] > step:
            raise Stop

    try:
        run(processes, directory=directory, on_event=stop)
    except Stop:
        return "stopped"
    raise AssertionError("it was to be stopped")


def gone_on(processes: Processes, directory: Path, options: GrowOptions = SHORT) -> Ran:
    """Go on with the run in a directory."""
    return run(processes, options, directory=directory, resume=True)
