"""Splits that can only be iterated: cut and joined to batches, read on from any place, and the same each time."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, get_worker_info

from archir.errors import ArchirError, FileError, GrowError, ProcessError, ScoreError, UnnumberedError
from archir.growing import iterated
from archir.growing.batches import Augmentation, Batches, stream
from archir.growing.checks import first_labelled, held_out
from archir.growing.examples import LOOKED_AT, looked_at, sample
from archir.growing.given import split_of
from archir.growing.iterated import START, Iterated
from archir.growing.training import evaluate
from archir.scoring.losses import find_loss
from tests.growing.data_files import inputs_of, targets_of
from tests.growing.made_datasets import Rows
from tests.growing.process_groups import Pretended
from tests.growing.small_run import data

CROSS_ENTROPY = find_loss("cross_entropy")


def _iterated(given: Any) -> Iterated:
    split = split_of(given, "mine")
    assert isinstance(split, Iterated)
    return split


def _numbered(sizes: Iterable[int]) -> Callable[[], Iterator[Any]]:
    """Return a function that makes batches of so many examples, numbered from 0 in each pass."""

    def make() -> Iterator[Any]:
        first = 0
        for size in sizes:
            numbers = torch.arange(first, first + size)
            yield numbers[:, None].double(), numbers
            first += size

    return make


def _numbers(batches: Iterable[Any]) -> list[list[int]]:
    found = [(inputs, targets) for inputs, targets in batches]
    assert all(torch.equal(inputs[:, 0], targets) for inputs, targets in found)
    return [targets.tolist() for _, targets in found]


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4, 4, 3), (23,), (1,) * 23, (7, 1, 9, 6)])
def test_batches_are_cut_and_joined(sizes: tuple[int, ...]) -> None:
    """Over the end of a pass, too; one that is read by itself ends with two batches of nearly equal size."""
    split = _iterated(_numbered(sizes))
    endless = [n % 23 for n in range(60)]
    assert _numbers(stream(Batches(split, 4), count=15)) == [endless[i : i + 4] for i in range(0, 60, 4)]
    batches = list(range(23))
    wanted = [batches[i : i + 4] for i in range(0, 16, 4)] + [batches[16:20], batches[20:]]
    assert _numbers(Batches(split, 4)) == _numbers(Batches(split, 4)) == wanted
    assert _numbers(Batches(split, 4).since(4)) == wanted[4:]
    assert _numbers(Batches(split, 11)) == [batches[:11], batches[11:17], batches[17:]]
    assert _numbers(Batches(split, 100)) == [batches]
    assert _numbers(Batches(split, 7).since(0, 1)) == [[14, 15, 16, 17, 18, 19, 20]], "it is read on from where it was"


@pytest.mark.parametrize("sizes", [(4, 4, 4), (7, 1, 9, 6), (40,)])
def test_it_is_read_on_from_any_position(sizes: tuple[int, ...]) -> None:
    split, again = _iterated(_numbered(sizes)), _iterated(_numbered(sizes))
    assert split.position == START
    for _ in range(30):
        again.go_to(split.position, 0)
        wanted = _numbers(stream(Batches(split, 5), count=2))
        assert _numbers(stream(Batches(again, 5), count=2)) == wanted
        assert again.position == split.position


class _Drawing:
    """Gives batches it draws at random from all generators that are seeded for it, and notes what it is told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(9)
        for some in torch.split(order, 2):
            noise = [float(torch.rand(())), random.random(), float(np.random.rand()), self.epochs[-1]]
            yield some[:, None] + torch.tensor(noise), some


class _Simple(IterableDataset[Any]):
    """Gives examples one by one, each worker its share of them."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, self.total, step):
            yield torch.rand(3, dtype=torch.float64) + number, number


def _shuffling(**more: Any) -> DataLoader[Any]:
    rows = TensorDataset(torch.arange(11.0)[:, None], torch.arange(11))
    return DataLoader(rows, 3, sampler=RandomSampler(rows, replacement=True, **more))


RANDOM: dict[str, Callable[[], Any]] = {
    "an iterable": _Drawing,
    "examples one by one": lambda: _Simple(19),
    "a loader": lambda: DataLoader(_Simple(19), 4),
    "a loader with workers": lambda: DataLoader(_Simple(19), 4, num_workers=2),
    "a loader whose workers stay": lambda: DataLoader(_Simple(19), 4, num_workers=1, persistent_workers=True),
    "a loader with a sampler": _shuffling,
    "with a generator": lambda: _shuffling(generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_what_is_drawn_follows_from_the_seed_and_the_position(kind: str) -> None:
    """Whatever else was read in between, and whatever else is drawn."""
    split, again = _iterated(RANDOM[kind]()), _iterated(RANDOM[kind]())
    split.go_to(START, 5)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    wanted = [(split.position, next(stream(Batches(split, 4)))) for _ in range(13)]
    drawn = float(torch.rand(())), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    for start in (0, 3, 9):
        again.go_to(wanted[start][0], 5)
        for _, (inputs, targets) in wanted[start:]:
            found = next(stream(Batches(again, 4)))
            assert torch.equal(found[0], inputs) and torch.equal(found[1], targets)  # type: ignore[arg-type]
            if start == 3:
                one_pass = list(Batches(again, 4))
    assert len(one_pass) == {"an iterable": 3}.get(kind, 5 if "examples" in kind or "worker" in kind else len(one_pass))
    assert (float(torch.rand(())), random.random(), np.random.rand()) == drawn
    again.go_to(START, 6)
    assert not torch.equal(next(stream(Batches(again, 4)))[0], wanted[0][1][0])  # type: ignore[arg-type]
    passes = [batch[0] for _, batch in wanted]
    assert not torch.equal(passes[0], passes[5]), "each pass draws anew"  # type: ignore[arg-type]


def test_passes_are_numbered_for_what_is_told() -> None:
    split = _iterated(given := _Drawing())
    list(stream(Batches(split, 3), count=7))
    assert given.epochs == [0, 1, 2]

    class Sampler(RandomSampler):
        epochs: ClassVar[list[int]] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    rows = Rows(data(6, 1))
    list(stream(Batches(_iterated(DataLoader(rows, 2, sampler=Sampler(rows))), 6), count=2))
    assert Sampler.epochs == [0, 1]


def test_what_is_given_may_be_filled_anew() -> None:
    """The examples that are held do not share its memory."""
    buffer, rows = torch.zeros(3, 2), np.zeros(3)

    def fills() -> Iterator[Any]:
        for number in range(4):
            buffer.fill_(number)
            rows.fill(number)
            yield {"x": buffer, "labels": rows}

    found = [t for _, t in Batches(_iterated(fills), 12)]
    assert len(found) == 1 and isinstance(found[0], torch.Tensor)
    assert found[0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_the_first_examples_stand_for_all() -> None:
    split = _iterated(_numbered([100] * 7))
    ((seen, numbers),) = list(looked_at(split))
    assert numbers.tolist() == targets_of(seen).tolist() == list(range(LOOKED_AT))
    assert split.count is None and torch.equal(targets_of(sample(split)), targets_of(seen))
    for few in (slice(3), slice(2, 5), slice(300, 302), torch.tensor([600, 2])):
        assert targets_of(split.take(few)).tolist() == torch.arange(700)[few].tolist()
    assert len(_iterated(_numbered([5])).take(slice(50))) == 5
    for asked in (lambda: len(split), lambda: split.part(slice(2)), lambda: split.take(slice(None))):
        with pytest.raises(UnnumberedError, match=r"mine \(make\) can only be iterated, and have no (length|numbers)"):
            asked()


def test_any_labelled_examples_of_a_pass_are_held_out() -> None:
    """All of them where there are few; each as likely as any other where there are many."""

    def some() -> Iterator[Any]:
        for inputs, numbers in _numbered([50] * 12)():
            yield inputs, torch.where(numbers % 2 == 0, numbers, -100)

    split, times = _iterated(some), torch.zeros(600)
    for seed in range(40):
        one, other = held_out(split, CROSS_ENTROPY, 15, seed)
        found = torch.cat((targets_of(one), targets_of(other)))
        assert len(one) == len(other) == 15 and len(set(found.tolist())) == 30
        assert torch.equal(inputs_of(one)[:, 0], targets_of(one))
        times[found] += 1
    assert not times[1::2].any()
    halves = times[::2].reshape(3, 100).sum(1)
    assert int(halves.sum()) == 1200 and all(340 < n < 460 for n in halves.tolist())
    assert torch.equal(
        targets_of(held_out(split, CROSS_ENTROPY, 15, 3)[0]), targets_of(held_out(split, CROSS_ENTROPY, 15, 3)[0])
    )
    one, other = held_out(split, CROSS_ENTROPY, 1000, 0)
    assert sorted(torch.cat((targets_of(one), targets_of(other))).tolist()) == list(range(0, 600, 2))

    def late() -> Iterator[Any]:
        for inputs, numbers in _numbered([50] * 12)():
            yield inputs, torch.where(numbers > 400, numbers, -100)

    first = first_labelled(_iterated(late), CROSS_ENTROPY, 60)
    assert first is not None and targets_of(first).tolist() == list(range(401, 461))
    assert first_labelled(_iterated(lambda: islice(late(), 7)), CROSS_ENTROPY, 3) is None
    with pytest.raises(GrowError, match="the validation split is too small"):
        held_out(_iterated(lambda: islice(late(), 7)), CROSS_ENTROPY, 3, 0)


def test_a_module_is_evaluated_on_all_of_a_pass() -> None:
    split = data(83, 1)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)).double()
    double = replace(split, inputs=inputs_of(split).double())
    wanted = evaluate(module, double, CROSS_ENTROPY, batch_size=83)
    given = _iterated(lambda: zip(torch.split(inputs_of(double), 7), torch.split(targets_of(double), 7), strict=True))
    for size in (5, 16, 100):
        found = evaluate(module, given, CROSS_ENTROPY, batch_size=size)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-12) and found.accuracy == wanted.accuracy


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=True, crop=1, cutout=2), Augmentation(mixup=0.3)])
def test_each_process_takes_its_part_of_every_batch(augmentation: Augmentation | None) -> None:
    split = data(30, 1)

    def batches() -> Iterator[Any]:
        yield from zip(torch.split(inputs_of(split), 7), torch.split(targets_of(split), 7), strict=True)

    def read(processes: Any) -> list[torch.Tensor]:
        found = Batches(_iterated(batches), 8, 4, augmentation, processes=processes)
        return [inputs for inputs, _ in stream(found, count=5)]  # type: ignore[misc]

    whole = read(Pretended())
    parts = [read(Pretended(number=rank, count=3)) for rank in range(3)]
    assert [torch.equal(torch.cat(some), one) for some, one in zip(zip(*parts, strict=True), whole, strict=True)] == [
        True
    ] * 5
    assert augmentation is None or not torch.equal(whole[0], inputs_of(split)[:8])
    with pytest.raises(GrowError, match="a batch of 2 examples cannot be shared out among 3 processes"):
        Batches(_iterated(batches), 2, processes=Pretended(count=3))
    with pytest.raises(GrowError, match="a batch of 2 examples cannot be shared out among 3 processes"):
        list(Batches(_iterated(_numbered([2])), 8, processes=Pretended(count=3)))


def test_processes_that_have_come_to_different_places_are_told() -> None:
    """As where the data of one of them end before those of the others."""

    class Two(Pretended):
        def everyones(self, value: Any) -> list[Any]:
            return [value, other or value]

    other: Any = None
    group: Any = object()
    batches = Batches(_iterated(_numbered([4] * 5)), 4, processes=Two(group))
    assert len(list(stream(batches, count=2))) == 2
    other = (1, 0, 0)
    with pytest.raises(ProcessError, match=r"places of mine \(make\)\n.*0: pass 0, batch 3\n.*1: pass 1, batch 0\n"):
        list(stream(batches, count=1))


def _once() -> Callable[[], Iterator[Any]]:
    made = _numbered([4, 4])()
    return lambda: made


class _Once:
    def __init__(self) -> None:
        self.made = _once()()

    def __iter__(self) -> Iterator[Any]:
        return self.made


def _zipped() -> Callable[[], Iterator[Any]]:
    made = zip(torch.ones(2, 3, 4), torch.ones(2, 3), strict=True)
    return lambda: made


def _fails() -> Iterator[Any]:
    yield from _numbered([4, 4])()
    yield torch.ones(2) / 0, 1 // 0


def _infinite() -> Iterator[Any]:
    yield from _numbered([4, 4])()
    yield torch.tensor([[1.0], [torch.inf]]), torch.ones(2)


def _growing() -> Iterator[Any]:
    yield from ((torch.ones(3, 2 + n), torch.ones(3)) for n in range(3))


def _renamed() -> Iterator[Any]:
    yield from ({"x": torch.ones(3, 2), "y" * n: torch.ones(3), "labels": torch.ones(3)} for n in (1, 2))


class _Shrinking:
    def __init__(self) -> None:
        self.begun = 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return _numbered([4] * (3 - self.begun))()


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        (
            _once(),
            GrowError,
            r"mine give an iterator that was begun before\n.*a function without arguments that returns",
        ),
        (_zipped(), GrowError, "mine give an iterator that was begun before"),
        (_Once(), GrowError, "mine give an iterator that was begun before"),
        (lambda: 3, GrowError, "mine are a function that returns a int, which cannot be iterated"),
        (lambda: (torch.ones(3, 2), torch.ones(3)), ScoreError, r"not a Tensor\n.*batch 0 of pass 0 of mine"),
        (_fails, GrowError, r"cannot be read\n.*batch 2 of pass 0 of mine; .*test_iterated\.py:\d+\n.*ZeroDivision"),
        (_infinite, FileError, r"the inputs hold inf\n.*example 1, position \[0\] of batch 2 of pass 0 of mine"),
        (_growing, FileError, r"do not fit together\n.*pass 0 of mine, and those after it(.|\n)*to one shape"),
        (_renamed, FileError, r"do not fit together(.|\n)*their entries have other names"),
        (list, FileError, r"there are no examples\n.*mine"),
        (_Shrinking(), GrowError, "pass 1 of mine gives nothing"),
        (lambda: iter([torch.ones(3)]), ScoreError, r"not a Tensor\n.*batch 0 of pass 0"),
        (lambda: iter([{"x": torch.ones(3)}]), ScoreError, "has no targets"),
        (lambda: iter([{"x": torch.ones(3, 1), "labels": 3}]), FileError, "one number, not one for each example of a"),
        (lambda: iter([(torch.ones(3, 1), torch.ones(2))]), FileError, r"differ: 3 in inputs, 2 in targets\n.*batch 0"),
        (
            lambda: iter([(["a", "b"], [0, 1])]),
            FileError,
            r"inputs is no array of numbers\n.*batch 0 of pass 0 of mine",
        ),
        (DataLoader(Rows(data(4, 1)), batch_size=None), FileError, "let a DataLoader make them of examples"),
    ],
)
def test_what_cannot_be_iterated_is_told(given: Any, error: type[ArchirError], named: str) -> None:
    with pytest.raises(error, match=named):
        split = _iterated(given)
        list(Batches(split, 5))
        list(stream(Batches(split, 5), count=4))


def test_data_that_are_not_the_same_again_are_told() -> None:
    split = _iterated(_numbered([4] * 3))
    split.go_to((2, 5, 0), 0)
    with pytest.raises(
        GrowError, match=r"have ended before the place that the run had(.|\n)*pass 2 has 3 batches, of which 5"
    ):
        list(stream(Batches(split, 4), count=1))


def test_what_is_being_read_is_let_go_with_its_split() -> None:
    """At once, and not by the garbage collector, in which the processes of a loader take seconds to end."""
    numbered, read = _numbered([4] * 9), list[weakref.ref[Iterator[Any]]]()

    def noted() -> Iterator[Any]:
        iterator = numbered()
        read.append(weakref.ref(iterator))
        return iterator

    gc.disable()
    try:
        split = _iterated(noted).changed(lambda batch: batch)
        assert len(list(stream(Batches(split, 4), count=2))) == 2
        assert read[-1]() is not None
        one_pass = iter(Batches(split, 4))
        next(one_pass)
        assert [known() is None for known in read] == [True] * (len(read) - 1) + [False]
        del one_pass
        assert len(list(stream(Batches(split, 4), count=2))) == 2
        del split
        assert read and all(known() is None for known in read)
    finally:
        gc.enable()


def test_data_without_end_are_not_read_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterated, "LONGEST", 100)
    split = _iterated(_numbered(4 for _ in count()))
    assert len(list(stream(Batches(split, 4), count=50))) == 50
    with pytest.raises(GrowError, match=r"mine \(make\) do not end\n.*have given 100 examples\n.*itertools.islice"):
        list(Batches(split, 4))
