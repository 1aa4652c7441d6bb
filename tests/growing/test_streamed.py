"""Splits that are not in memory: read batch by batch, the same whoever reads them; a run on them goes on exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from archir.errors import ArchirError, FileError, GrowError, ScoreError
from archir.growing.batches import Augmentation, Batches, stream
from archir.growing.checks import check_examples, first_labelled, held_out
from archir.growing.collation import collated
from archir.growing.examples import AT_ONCE, LOOKED_AT, Examples, Split, looked_at, sample
from archir.growing.grow import Run, grow_graph
from archir.growing.run import Event
from archir.growing.streamed import Streamed
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from archir.scoring.targets import tensors_of
from tests.growing.data_files import inputs_of, targets_of
from tests.growing.made_datasets import Made, Rows, fails_at_seven, noisy
from tests.growing.small_run import MORPHISMS, OPTIONS, data

CROSS_ENTROPY = find_loss("cross_entropy")


def _parts(batches: Sequence[Any]) -> list[torch.Tensor]:
    return [t for inputs, targets in batches for _, t in (*tensors_of(inputs), *tensors_of(targets))]


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    first, second = _parts(one), _parts(other)
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=True, crop=1, cutout=2, mixup=0.3)])
def test_batches_are_those_of_the_same_examples_in_memory(workers: int, augmentation: Augmentation | None) -> None:
    split = data(23, 1)
    streamed = Streamed(Rows(split), "mine", workers=workers)
    for seed in (None, 4) if augmentation is None else (4,):
        wanted = list(Batches(split, 5, seed, augmentation))
        assert _same(list(Batches(streamed, 5, seed, augmentation)), wanted)
        assert _same(list(Batches(streamed, 5, seed, augmentation).since(3)), wanted[3:])
    few = torch.tensor([7, 2, 19])
    assert torch.equal(inputs_of(streamed.part(few).take(slice(1, 3))), inputs_of(split)[few[1:]])
    assert len(streamed.part(few).part(slice(2))) == 2
    assert _same(list(Batches(streamed.part(few), 2)), list(Batches(split.take(few), 2)))


def test_what_a_data_set_draws_depends_on_the_batch_alone() -> None:
    """Not on how many processes read, nor on what was read before; and nothing else is drawn otherwise for it."""
    alone, together = (Streamed(Made(20, noisy), "mine", workers=n) for n in (0, 2))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    whole = list(islice(stream(Batches(alone, 6, seed=1)), 9))
    drawn = float(torch.rand(())), random.random(), np.random.rand()
    assert _same(list(islice(stream(Batches(together, 6, seed=1)), 9)), whole)
    for start in (1, 4, 6):
        assert _same(list(islice(stream(Batches(alone, 6, seed=1), start), 9 - start)), whole[start:])
    assert _parts(whole)[0].shape == (5, 4) and not _same(whole[:4], whole[4:8])
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    list(Batches(together, 6, seed=1))
    assert (float(torch.rand(())), random.random(), np.random.rand()) == drawn


def test_only_what_is_asked_for_is_read() -> None:
    rows = Rows(data(40, 1))
    split = Streamed(rows, "mine")
    batches = iter(Batches(split, 8, seed=1))
    assert rows.read == []
    next(batches)
    assert len(rows.read) == 8
    rows.read.clear()
    next(stream(Batches(split, 8, seed=1, augmentation=Augmentation(cutout=2)), 3))
    assert len(rows.read) == 8 + 3, "the batch, and one example each time the shape is asked for"
    rows.read.clear()
    held_out(split, CROSS_ENTROPY, 6, 0)
    assert len(rows.read) == 12 == len(set(rows.read))


class _Counted(Rows):
    """Counts how often its length is asked for, too."""

    asked = 0

    def __len__(self) -> int:
        self.asked += 1
        return super().__len__()


def test_a_pass_asks_for_the_length_as_often_whatever_it_is() -> None:
    found = []
    for count in (8, 80):
        rows = _Counted(data(count, 1))
        split = Streamed(rows, "mine")
        rows.asked = 0
        list(Batches(split, 2, seed=1))
        found.append(rows.asked)
    assert found[0] == found[1]


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the system does not list open files")
def test_batches_that_were_read_leave_no_file_open() -> None:
    batches = iter(Batches(_streamed(data(160, 1), workers=1), 1, seed=1))
    opened = []
    for _ in range(150):
        next(batches)
        opened.append(len(list(Path("/dev/fd").iterdir())))
    assert opened[-1] < opened[10] + 20


def _threads(number: int) -> Any:
    return torch.tensor([float(torch.get_num_threads())]), 0


def test_examples_are_read_by_one_thread_whoever_reads() -> None:
    """Else what is read would be rounded otherwise in a process of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for workers in (0, 2):
            split = Streamed(Made(10, _threads), "mine", workers=workers)
            found = [inputs_of(split.take(slice(1))), *(_parts(list(Batches(split, 2)))[::2])]
            assert all(bool((t == 1).all()) for t in found)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_more_is_read_than_is_wanted() -> None:
    rows = Rows(data(40, 1))
    split = Streamed(rows, "mine", workers=2)
    batches = Batches(split, 4, seed=1)
    assert _same(list(stream(batches, 8, 3)), list(islice(stream(Batches(data(40, 1), 4, seed=1)), 8, 11)))
    assert len(rows.read) == 3 * 4, "in this process, for processes that read ahead would take longer to start"
    rows.read.clear()
    assert len(list(stream(batches, 0, 4))) == 4 and not rows.read
    assert list(stream(batches, 3, 0)) == []


def test_parts_of_the_validation_data_are_those_in_memory() -> None:
    split = data(60, 2)
    for most in (7, 29, 500):
        found = held_out(_streamed(split), CROSS_ENTROPY, most, 3)
        for one, other in zip(held_out(split, CROSS_ENTROPY, most, 3), found, strict=True):
            assert torch.equal(inputs_of(one), inputs_of(other)) and torch.equal(targets_of(one), targets_of(other))


def test_examples_without_labels_are_passed_over() -> None:
    split = data(50, 2)
    targets = torch.full((50,), -100)
    targets[30:37] = 1
    streamed = _streamed(replace(split, targets=targets))
    found = first_labelled(streamed, CROSS_ENTROPY, 5)
    assert found is not None and torch.equal(inputs_of(found), inputs_of(split)[30:35])
    assert first_labelled(streamed.part(slice(30)), CROSS_ENTROPY, 5) is None


def _streamed(split: Examples, workers: int = 0) -> Streamed:
    return Streamed(Rows(split), "mine", workers=workers)


SHORT = replace(
    OPTIONS, steps=12, growth_steps=1, first_growth=0.5, learn_steps=3, refine=4, checkpoint_every=3, expansion=2.0
)


def _grow(graph: Graph, train: Split, validation: Split, **rest: Any) -> Run:
    options = replace(SHORT, augmentation=Augmentation(flip=True, cutout=1))
    return grow_graph(
        graph,
        train=train,
        validation=validation,
        budget=Budget(parameters=900),
        morphisms=MORPHISMS,
        **{"options": options, **rest},
    )


def _weights(run: Run) -> list[torch.Tensor]:
    return list(run.graph.tensors.values())


def test_a_run_does_not_depend_on_where_its_examples_are(seed_graph: Graph) -> None:
    wanted = _grow(seed_graph, data(100, 1), data(80, 2))
    streamed = _grow(seed_graph, _streamed(data(100, 1)), _streamed(data(80, 2)))
    assert "grown" in {e["event"] for e in wanted.history}
    assert all(map(torch.equal, _weights(streamed), _weights(wanted)))
    assert streamed.history[-1]["loss"] == wanted.history[-1]["loss"]


class _Killed(BaseException):
    pass


def _noisy_image(number: int) -> Any:
    image = torch.zeros(1, 6, 6, dtype=torch.float64)
    image[:, number % 3] = 2
    return {"image": image + torch.randn(1, 6, 6) + float(np.random.rand()), "label": number % 3}


def test_a_killed_run_goes_on_to_the_same_weights(seed_graph: Graph, tmp_path: Path) -> None:
    """Also where the data set draws at random, and other processes read it than before."""

    def split(count: int, workers: int) -> Streamed:
        return Streamed(Made(count, _noisy_image), "mine", workers=workers)

    wanted = _grow(seed_graph, split(70, 0), split(60, 0), directory=tmp_path / "whole")
    trained = 0

    def kill(event: Event) -> None:
        nonlocal trained
        trained += event["event"] == "train"
        if trained == 3:
            raise _Killed

    with pytest.raises(_Killed):
        _grow(seed_graph, split(70, 0), split(60, 0), directory=tmp_path / "killed", on_event=kill)
    again = _grow(seed_graph, split(70, 2), split(60, 0), directory=tmp_path / "killed", resume=True)
    assert "resumed" in {e["event"] for e in again.history}
    assert all(map(torch.equal, _weights(again), _weights(wanted)))
    with pytest.raises(GrowError, match=r"train\.examples was 70, is 69"):
        _grow(seed_graph, split(69, 0), split(60, 0), directory=tmp_path / "killed", resume=True)


def test_other_data_are_told_by_some_of_them(seed_graph: Graph, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=2, growth_steps=0, evaluate_every=0)
    _grow(seed_graph, _streamed(data(40, 1)), data(40, 2), directory=tmp_path, options=options)
    with pytest.raises(GrowError, match=r"train\.inputs was "):
        _grow(seed_graph, _streamed(data(40, 3)), data(40, 2), directory=tmp_path, options=options, resume=True)
    many = Streamed(Made(10 * LOOKED_AT + 3, noisy), "mine")
    parts = list(looked_at(many))
    numbers = torch.cat([some for _, some in parts])
    assert len(sample(many)) == LOOKED_AT == len(set(numbers.tolist())) and int(numbers[0]) == 0
    assert int(numbers[-1]) >= 10 * LOOKED_AT - 10
    assert inputs_of(sample(many))[:, 0].tolist() == numbers.tolist()
    assert [int(x) for some, _ in parts for x in inputs_of(some)[:, 0]] == numbers.tolist()


class _Sizes:
    """Makes batches, and notes how large they are."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def __call__(self, items: list[Any]) -> Any:
        self.found.append(len(items))
        return collated(items)


def test_a_few_examples_at_a_time_are_looked_at() -> None:
    sizes = _Sizes()
    split = Streamed(Rows(data(203, 1)), "mine", sizes)
    check_examples(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), CROSS_ENTROPY, 5, {"training": split})
    list(looked_at(split))
    assert max(sizes.found) <= AT_ONCE and min(sizes.found) > 1


def _ragged(number: int) -> Any:
    return torch.ones(2 + number // 7), 0


def _infinite(number: int) -> Any:
    return torch.ones(2) * (torch.inf if number == 7 else 1), 0


def _of_three(number: int) -> Any:
    return 1.0, 2.0, 3.0


def _untold(number: int) -> Any:
    return {"x": 1.0, "y": 2.0}


def _text(number: int) -> Any:
    return {"x": "words", "label": 2.0}


def _alone(number: int) -> Any:
    return torch.ones(3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (
            fails_at_seven,
            GrowError,
            r"cannot be read\n.*example 7 of mine; .*made_datasets\.py:\d+\n.*ZeroDivisionError",
        ),
        (_ragged, FileError, r"do not fit into one batch\n.*examples 5, 6, 7, 8, 9 of mine\n(.|\n)*collate_fn"),
        (_infinite, FileError, r"the inputs hold inf\n.*example 7, position \[0\] of mine"),
        (_of_three, ScoreError, r"not a (tuple|list) of 3\n.*examples 0, 1, 2, 3, 4 of mine"),
        (_untold, ScoreError, r"has no targets\n.*\n.*it holds x, y\n.*labels, label, targets, target"),
        (_text, FileError, r"example\['x'\] is text, not numbers"),
        (_alone, ScoreError, r"not a Tensor"),
    ],
)
def test_what_cannot_be_read_is_told_alike_by_whoever_reads(
    make: Callable[[int], Any], error: type[ArchirError], named: str, workers: int
) -> None:
    with pytest.raises(error, match=named):
        list(Batches(Streamed(Made(20, make), "mine", workers=workers), 5))


def test_data_that_end_early_are_told() -> None:
    """As what they raise: an index that is out of range somewhere need not be that of the example."""
    rows = Rows(data(8, 1), length=9)
    with pytest.raises(GrowError, match=r"cannot be read\n.*example 8 of(.|\n)*IndexError.*\n.*if there is no such"):
        list(Batches(Streamed(rows, "mine"), 4))
    with pytest.raises(FileError, match="there are no examples"):
        Streamed(Rows(data(8, 1), length=0), "mine")


def _halving(items: list[Any]) -> Any:
    return collated(items[::2])


def test_what_makes_batches_keeps_their_number() -> None:
    with pytest.raises(GrowError, match=r"a batch of 4 examples has 2 targets\n.*examples 0, 1, 2, 3 of mine"):
        Streamed(Rows(data(8, 1)), "mine", _halving).take(slice(4))


def _exits(number: int) -> Any:
    if torch.utils.data.get_worker_info() is not None and number == 7:
        raise SystemExit
    return torch.ones(2), 0


def test_a_process_that_ends_is_told() -> None:
    with pytest.raises(GrowError, match="a process that reads examples failed"):
        list(Batches(Streamed(Made(20, _exits), "mine", workers=1), 5))


def test_faults_are_told_by_the_number_of_the_example() -> None:
    """Whatever is written in the name of where they come from."""

    def label(number: int) -> Any:
        return torch.ones(3), torch.tensor([1, 9 if number == 600 else -100, 0])

    split = Streamed(Made(LOOKED_AT * 3, label), "example 99999")
    with pytest.raises(
        FileError, match=r"the training data is 9, the model has 2 classes\n.*example 600, position \[1\]"
    ):
        check_examples(_Pairs(), CROSS_ENTROPY, 5, {"training": split})


def test_targets_that_are_no_probabilities_are_told_when_they_are_read(seed_graph: Graph) -> None:
    """Also those that were not looked at before the run began."""

    def wrong(number: int) -> Any:
        return torch.ones(1, 6, 6), torch.full((3,), 5.0 if number == 401 else 0.5)

    split = Streamed(Made(3 * LOOKED_AT, wrong), "mine")
    with pytest.raises(FileError, match=r"is 5, not a probability(.|\n)*of the batch of examples .* of mine"):
        options = replace(OPTIONS, steps=400, growth_steps=0, evaluate_every=0)
        _grow(seed_graph, split, split.part(slice(9)), loss="bce_with_logits", options=options)


class _Pairs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, None].repeat(1, 1, 2)
