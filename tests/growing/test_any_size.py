"""Runs on batches of several sizes: padded by what makes batches, or given as they are, each with its own length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from archir.api import grow
from archir.errors import ArchirError, FileError
from archir.growing.batches import Batches
from archir.growing.checks import held_out
from archir.growing.examples import Examples
from archir.growing.given import split_of
from archir.growing.iterated import Iterated, of_any_size
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.ragged import Ragged, joined
from archir.ir.graph import Graph
from archir.scoring.losses import find_loss
from frontends.pytorch import trace
from tests.models.any_size import Encoder

LENGTHS = (5, 8, 3, 8)
"""Of the batches that are given, one after the other."""


class Sentences(Dataset[tuple[Tensor, Tensor]]):
    """Sentences of three to eight words, to be told apart by their first one."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
        self.words = [torch.randint(1, 11, (length,), generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.words[number], self.words[number][0] % 5


def padded(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    words, labels = zip(*items, strict=True)
    return nn.utils.rnn.pad_sequence(list(words), batch_first=True), torch.stack(labels)


def batches(count: int, size: int = 8, seed: int = 0) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    def make() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for number in range(count):
            x = torch.randint(0, 11, (size, LENGTHS[number % len(LENGTHS)]), generator=generator)
            yield x, x[:, 0] % 5

    return make


def encoder(**how: object) -> Graph:
    torch.manual_seed(0)
    return trace(Encoder().eval(), torch.zeros(3, 7, dtype=torch.int64), **how)  # type: ignore[arg-type]


def any_length(count: int, size: int = 8) -> Iterated:
    found = of_any_size(split_of(batches(count, size), "mine"))
    assert isinstance(found, Iterated)
    return found


@pytest.mark.parametrize("kind", ["loaders", "iterated"])
def test_a_run_on_batches_of_several_lengths(kind: str) -> None:
    graph = encoder(dynamic={"x": {1: "T"}})
    if kind == "loaders":
        train, validation = (DataLoader(Sentences(n, s), 8, collate_fn=padded) for n, s in ((96, 0), (48, 1)))
    else:
        train, validation = batches(12), batches(6, seed=1)  # type: ignore[assignment]
    rate = OptimiserOptions(rate=0.01)
    options = GrowOptions(steps=12, growth_steps=1, batch_size=8, learn_steps=4, score_examples=16, optimiser=rate)
    run = grow(graph, train=train, validation=validation, budget=1300, options=options, device="cpu")
    assert graph.parameter_count < run.graph.parameter_count <= 1300
    assert str(run.graph.inputs[0].results[0]) == "i64[B, T]"
    for length in (3, 8, 21):
        assert run.graph.module().eval()(torch.ones(2, length, dtype=torch.int64)).shape == (2, 5)


def test_a_graph_of_one_size_takes_batches_of_that_alone() -> None:
    options = GrowOptions(steps=4, growth_steps=1, batch_size=32, optimiser=OptimiserOptions(rate=0.01))
    with pytest.raises(ArchirError, match=r"do not fit together|instead of 7|rejects"):
        grow(encoder(), train=batches(12), validation=batches(6), budget=1300, options=options, device="cpu")


def test_batches_are_joined_where_they_have_one_size_and_cut_everywhere() -> None:
    split = any_length(8, size=6)
    sizes = [(len(batch), batch.inputs.shape[1]) for batch in split.one_pass(4)]  # type: ignore[union-attr]
    assert sum(count for count, _ in sizes) == 48
    assert all(count <= 4 for count, _ in sizes)
    assert {length for _, length in sizes} == {3, 5, 8}
    following = [batch for _, batch in islice(split.following(12, None), 9)]
    lengths = [batch.inputs.shape[1] for batch in following]  # type: ignore[union-attr]
    assert lengths == [5, 8, 3, 8, 5, 8, 3, 8, 5]
    assert all(len(batch) == 6 for batch in following)
    alike = of_any_size(split_of(lambda: (b for b in batches(8, 6)() if b[0].shape[1] == 8), "mine"))
    assert isinstance(alike, Iterated)
    assert [len(batch) for _, batch in alike.following(12, 2)] == [12, 12]


def test_reading_goes_on_at_the_same_place() -> None:
    whole, split = any_length(8, size=6), any_length(8, size=6)
    wanted = [(p, b.inputs) for p, b in whole.following(4, 12)]
    first = list(split.following(4, 5))
    split.go_to(split.position, 0)
    found = [(p, b.inputs) for p, b in (*first, *split.following(4, 7))]
    assert [p for p, _ in found] == [p for p, _ in wanted]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True))  # type: ignore[arg-type]


def test_held_out_examples_of_several_lengths_are_in_two_parts_that_share_none() -> None:
    split = any_length(8, size=6)
    parts = held_out(split, find_loss("cross_entropy"), 12, seed=3)
    rows = [{tuple(row) for piece in _pieces(part) for row in piece.inputs.tolist()} for part in parts]  # type: ignore[union-attr]
    assert [len(part) for part in parts] == [12, 12]
    assert not rows[0] & rows[1]
    for part in parts:
        drawn = list(Batches(part, 5))
        assert [len(y) for _, y in drawn] == Batches(part, 5).sizes
        assert sum(len(y) for _, y in drawn) == 12 and len(drawn) == len(Batches(part, 5))
        assert all(torch.equal(x[:, 0] % 5, y) for x, y in drawn)  # type: ignore[index, arg-type]
        later = list(Batches(part, 5).since(1))
        assert len(later) == len(drawn) - 1


def _pieces(part: Examples | Ragged) -> tuple[Examples, ...]:
    return part.pieces if isinstance(part, Ragged) else (part,)


def test_examples_of_several_shapes() -> None:
    parts = [Examples(x, y, "mine") for x, y in batches(4, 3)()]
    found = joined(parts)
    assert isinstance(found, Ragged) and len(found) == 12 and [len(piece) for piece in found.pieces] == [3, 6, 3]
    assert isinstance(found.part(slice(0, 3)), Examples)
    assert [len(piece) for piece in _pieces(found.part(torch.tensor([0, 4, 5, 11])))] == [1, 2, 1]
    with pytest.raises(FileError, match="do not fit together"):
        found.take(slice(0, 5))
    with pytest.raises(FileError, match="there are no examples"):
        found.part(slice(0, 0))
    odd = Examples(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), "mine")
    with pytest.raises(FileError, match="do not fit together"):
        joined([*parts, Examples({"x": odd.inputs}, odd.targets, "mine")])  # type: ignore[dict-item]
    changed = found.changed(lambda e: Examples(e.inputs + 1, e.targets, e.where))  # type: ignore[operator, arg-type]
    assert int(changed.pieces[0].inputs.min()) >= 1  # type: ignore[union-attr]
