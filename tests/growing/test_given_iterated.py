"""What users give that can only be iterated: all kinds of the same batches make the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, TensorDataset
from transformers.utils.generic import ModelOutput

import archir
from archir.errors import GrowError
from archir.growing.examples import Examples
from archir.growing.given import split_of
from archir.growing.options import GrowOptions
from archir.ir.seeds import derived_seed
from tests.growing.given_rows import COUNT, OPTIONS, ROWS, ConcatTwice, X, Y, batches, grow


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(X, Y, strict=True)


class _Batched(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from batches(5)


class _Loader:
    """Gives batches as loaders of other packages do: with a length, and as outputs of models."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        for inputs, labels in batches(8):
            yield ModelOutput(x=torch.from_numpy(inputs), labels=torch.from_numpy(labels))  # type: ignore[no-untyped-call]


class _Resetting:
    """An iterator that begins anew each time it is iterated."""

    def __iter__(self) -> Iterator[Any]:
        self._left = list(batches(7))
        return self

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        return self._left.pop(0)


class _InOrder(SequentialSampler):
    pass


class _Twice(DataLoader[Any]):
    def __iter__(self) -> Any:
        for inputs, targets in super().__iter__():
            yield inputs * 2, targets


def _halves() -> TensorDataset:
    return TensorDataset(torch.from_numpy(X / 2), torch.from_numpy(Y))


ITERATED: dict[str, Callable[[], Any]] = {
    "a function that makes a generator": lambda: lambda: batches(7),
    "one of batches that are larger": lambda: lambda: batches(11),
    "one that returns a list": lambda: lambda: [{"features": x.tolist(), "label": y.tolist()} for x, y in batches(8)],
    "one of an iterator that begins anew": lambda: lambda: (yield from _Resetting()),
    "a class": lambda: _Loader,
    "an object": _Loader,
    "examples one by one": _Stream,
    "a loader of these": lambda: DataLoader(_Stream(), 5),
    "a loader of batches": lambda: DataLoader(_Batched(), batch_size=None),
    "a loader with a worker": lambda: DataLoader(_Batched(), batch_size=None, num_workers=1),
    "a loader with a sampler": lambda: DataLoader(ROWS, 5, sampler=_InOrder(ROWS)),
    "a loader of a part in order": lambda: DataLoader(ConcatTwice(), 5, sampler=SequentialSampler(range(COUNT))),
    "a loader with batches of its own": lambda: DataLoader(ROWS, batch_sampler=[list(range(9)), list(range(9, COUNT))]),
    "a loader that changes them": lambda: _Twice(_halves(), 6),
    "a loader whose workers are prepared": lambda: DataLoader(
        ROWS, 5, sampler=_InOrder(ROWS), num_workers=1, worker_init_fn=_as_it_is, timeout=30
    ),
}


def _as_it_is(worker: int) -> None:
    assert worker == 0


@pytest.fixture(scope="module")
def in_order() -> list[torch.Tensor]:
    """Return the weights after one pass in the order of the examples."""
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(derived_seed(OPTIONS.seed, 0)))
    places = order.argsort()
    run = grow(Examples(torch.from_numpy(X).float()[places], torch.from_numpy(Y)[places]))
    return list(run.graph.tensors.values())


@pytest.mark.parametrize("kind", ITERATED)
def test_what_is_iterated_makes_the_same_run(kind: str, in_order: list[torch.Tensor]) -> None:
    """As examples in memory that are trained on in that order."""
    run = grow(ITERATED[kind]())
    assert all(map(torch.equal, run.graph.tensors.values(), in_order))


def test_a_network_grows_on_what_is_iterated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    options = GrowOptions(
        steps=8, growth_steps=2, batch_size=8, learn_steps=3, score_examples=10, recalibrate_batches=2
    )
    run = archir.grow(model, train=_Stream(), validation=lambda: batches(5), budget=60, options=options)
    assert run.graph.parameter_count <= 60 and {"scored", "rate", "finished"} <= {e["event"] for e in run.history}
    half = archir.Budget(parameters=0.7)
    shrunk = archir.compress(run.graph, train=_Loader(), validation=_Stream(), budget=half, options=options)
    assert shrunk.graph.parameter_count <= 0.7 * run.graph.parameter_count


def test_the_loader_says_how_many_processes_iterate() -> None:
    loader: DataLoader[Any] = DataLoader(_Stream(), 5, num_workers=2)
    for workers in (None, 2):
        split = split_of(loader, "mine", workers=workers)
        assert split_of(split, "mine", workers=workers) is split
    for given in (loader, split_of(loader, "mine"), _Loader()):
        with pytest.raises(GrowError, match=r"mine can only be iterated, which 1 processes are to do\n.*by [02]\n"):
            split_of(given, "mine", workers=1)
