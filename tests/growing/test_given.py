"""What users give for a split: all kinds of the same examples make the same run, and what makes none is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

import archir
from archir.errors import ArchirError, CaptureError, FileError, GrowError, ScoreError
from archir.growing.batches import Batches
from archir.growing.examples import Examples, Split
from archir.growing.given import split_of
from archir.growing.input_types import input_types
from archir.growing.options import GrowOptions
from archir.growing.streamed import Streamed
from tests.growing.data_files import inputs_of, targets_of
from tests.growing.given_rows import COUNT, OPTIONS, ROWS, ConcatTwice, X, Y, batches, grow
from tests.growing.made_datasets import Columns, Made


def _mapped(folder: Path) -> Any:
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r"), Y


def _labels_last(items: list[Any]) -> Any:
    inputs, labels = default_collate(items)
    return {"labels": labels, "features": inputs}


KINDS: dict[str, Callable[[Path], Any]] = {
    "arrays of doubles and short numbers": lambda folder: (X, Y.astype(np.int16)),
    "tensors of doubles": lambda folder: [torch.from_numpy(X), torch.from_numpy(Y)],
    "lists": lambda folder: (X.tolist(), Y.tolist()),
    "arrays that cannot be written": lambda folder: (np.broadcast_to(X, X.shape), Y),
    "an array that is read backwards": lambda folder: (X[::-1].copy()[::-1], Y),
    "a view of a file": _mapped,
    "columns": lambda folder: {"features": X, "labels": Y},
    "a data set": lambda folder: ROWS,
    "a list of pairs": lambda folder: list(zip(X, Y, strict=True)),
    "a list of mappings": lambda folder: [{"features": x, "target": y} for x, y in zip(X, Y, strict=True)],
    "mappings of plain numbers": lambda folder: Columns(features=X, label=Y),
    "a loader": lambda folder: DataLoader(ROWS, batch_size=5, shuffle=True, drop_last=True),
    "a loader with a way of its own to make batches": lambda folder: DataLoader(ROWS, 5, collate_fn=_labels_last),
    "a loader of mappings with workers": lambda folder: DataLoader(Columns(x=X, targets=Y), 2, num_workers=2),
    "a loader with a sampler of batches": lambda folder: DataLoader(
        ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS), 5, True)
    ),
    "a loader of a part": lambda folder: DataLoader(Subset(ConcatTwice(), range(COUNT)), 7),
    "a loader that draws from a part": lambda folder: DataLoader(ConcatTwice(), 7, sampler=_some()),
}


def _some() -> SubsetRandomSampler:
    return SubsetRandomSampler(list(reversed(range(COUNT))))


@pytest.fixture(scope="module")
def wanted() -> list[torch.Tensor]:
    run = grow(Examples(torch.from_numpy(X).float(), torch.from_numpy(Y)))
    return list(run.graph.tensors.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_the_same_examples_makes_the_same_run(
    kind: str, wanted: list[torch.Tensor], tmp_path: Path
) -> None:
    """Those in memory and those that are read one by one."""
    run = grow(KINDS[kind](tmp_path))
    assert all(map(torch.equal, run.graph.tensors.values(), wanted))


def test_compression_takes_them_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    options = GrowOptions(steps=2, growth_steps=1, batch_size=8, evaluate_every=0, optimiser=OPTIONS.optimiser)
    half = archir.Budget(parameters=0.5)
    loader: DataLoader[Any] = DataLoader(Columns(x=X, label=Y), 3)
    run = archir.compress(model, train=loader, validation=(X, Y), budget=half, options=options)
    assert run.graph.parameter_count <= 38


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_element_types_follow_the_model(dtype: torch.dtype) -> None:
    given = (X.astype(np.float32), Y.astype(np.uint8))
    run = grow(given, dtype)
    assert all(t.dtype == dtype and bool(t.isfinite().all()) for t in run.graph.tensors.values())
    types = input_types(run.graph)
    found = types(Examples(torch.arange(8).reshape(2, 4), torch.ones(2, dtype=torch.bool)))
    assert inputs_of(found).dtype == dtype and targets_of(found).dtype == torch.bool
    assert types(found).inputs is found.inputs and types(found).targets is found.targets


def test_whole_numbers_that_a_model_takes_are_kept() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, tokens: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.table(tokens).mean(1) * scale
            return found

    assert input_types(Tokens()).keywords == ("scale",)
    examples = Examples(
        {"tokens": torch.ones(2, 3, dtype=torch.int32), "scale": torch.ones(2, 1).double()}, torch.ones(2)
    )
    found = input_types(Tokens())(examples).inputs
    assert isinstance(found, dict) and found["tokens"].dtype == torch.int64 and found["scale"].dtype == torch.float32
    graph = archir.trace(Tokens(), (found["tokens"],), {"scale": found["scale"]})
    types = input_types(graph)
    assert types.keywords == ("scale",)
    fractions = Examples({**found, "tokens": torch.ones(2, 3)}, torch.ones(2))
    kept = types(fractions).inputs
    assert isinstance(kept, dict) and kept["tokens"].dtype == torch.float32, "they would lose what they are"


def test_inputs_go_by_their_names() -> None:
    """One alone is the first argument, whatever its name, unless it has that of another one."""
    both = split_of(Columns(x=X, mask=X > 0, labels=Y), "mine").take(slice(2)).inputs
    assert isinstance(both, dict) and list(both) == ["x", "mask"] and both["mask"].dtype == torch.bool
    one = split_of(Columns(x=X, labels=Y), "mine", names=("mask",)).take(slice(2))
    assert inputs_of(one).shape == (2, 4)
    for given in (Columns(mask=X, labels=Y), {"mask": X, "labels": Y}):
        other = split_of(given, "mine", names=("mask",)).take(slice(2)).inputs
        assert isinstance(other, dict) and list(other) == ["mask"]


class _Masked(nn.Module):
    """Averages the rows of a table where a mask says so."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept = attention_mask[:, :, None].float()
        found: torch.Tensor = self.head((self.table(input_ids) * kept).sum(1) / kept.sum(1))
        return found


def _padding(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return token numbers of different lengths as one batch, as those who train on text do."""
    rows = [torch.tensor(item["input_ids"]) for item in items]
    ids = nn.utils.rnn.pad_sequence([*rows, torch.zeros(6, dtype=torch.long)], batch_first=True)[:-1]
    return {"input_ids": ids, "attention_mask": (ids > 0).int(), "labels": torch.tensor([i["label"] for i in items])}


def test_texts_are_grown_on_as_a_loader_pads_them() -> None:
    """Two inputs by name, as the models and data sets of the packages `transformers` and `datasets` have them."""
    rows = [{"input_ids": [1 + (n + i) % 8 for i in range(2 + n % 5)], "label": n % 3} for n in range(40)]
    torch.manual_seed(0)
    options = GrowOptions(steps=8, growth_steps=1, batch_size=8, learn_steps=3, optimiser=OPTIONS.optimiser)
    loader: DataLoader[Any] = DataLoader(rows, 4, collate_fn=_padding)  # type: ignore[arg-type]
    run = archir.grow(_Masked(), train=loader, validation=loader, budget=130, options=options)
    assert {"scored", "finished"} <= {e["event"] for e in run.history}
    with pytest.raises(FileError, match=r"do not fit into one batch\n(.|\n)*a DataLoader with a collate_fn that pads"):
        archir.grow(_Masked(), train=rows, validation=rows, budget=130, options=options)


def test_images_of_pillow_are_intensities() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    coloured = np.stack([grey, grey // 2, grey // 4], 2)
    for array, channels in ((grey, 1), (coloured, 3)):
        pictures = [(Image.fromarray(array), number) for number in range(3)]
        found = inputs_of(split_of(pictures, "mine").take(slice(2)))
        assert found.shape == (2, channels, 3, 4) and found.dtype == torch.float32
        expected = torch.from_numpy(array.reshape(3, 4, channels)).movedim(2, 0).float() / 255
        assert torch.equal(found[1], expected)
    deep = Made(3, lambda number: (Image.fromarray(grey.astype(np.uint16)), number))
    with pytest.raises(FileError, match="pixels that are no bytes"):
        split_of(deep, "mine").take(slice(2))


def test_views_of_files_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    inputs, targets = _mapped(tmp_path)
    split = split_of((inputs[2:], targets[2:]), "mine", workers=1)
    assert isinstance(split, Streamed) and len(split) == COUNT - 2 and split.workers == 1
    assert torch.equal(inputs_of(split.take(slice(3))), torch.from_numpy(X[2:5]))
    named = split_of(({"a": inputs, "b": inputs[:, :1]}, (targets, {"c": targets})), "mine")
    ((found, wanted),) = list(Batches(named, COUNT))
    assert isinstance(found, dict) and found["b"].shape == (COUNT, 1)
    assert isinstance(wanted, tuple) and isinstance(wanted[1], dict) and torch.equal(wanted[0], wanted[1]["c"])
    for plain in (targets.tolist(), np.stack((targets, targets), 1).tolist()):
        two = split_of((inputs, plain), "mine").take(slice(1, 3))
        assert torch.equal(targets_of(two), torch.tensor(plain[1:3]))
    with pytest.raises(FileError, match="24 in inputs, 3 in targets"):
        split_of((inputs, targets[:3]), "mine")
    with pytest.raises(FileError, match="24 in inputs, 0 in targets"):
        split_of((inputs, 3), "mine")


class _Stored:
    """Rows in a file, as those of the package h5py are."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.shape, self.dtype, self.read = rows, rows.shape, rows.dtype, list[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        self.read.append(number)
        return self.rows[number]


def test_what_is_like_an_array_is_read_when_it_is_asked_for() -> None:
    inputs, targets = _Stored(X), _Stored(Y)
    split = split_of((inputs, targets), "mine")
    assert isinstance(split, Streamed) and not inputs.read and len(split) == COUNT
    found = split.take(slice(2, 4))
    assert inputs.read == targets.read == [2, 3]
    assert torch.equal(inputs_of(found), torch.from_numpy(X[2:4])) and targets_of(found).tolist() == Y[2:4].tolist()
    with pytest.raises(FileError, match="24 in inputs, 3 in targets"):
        split_of((inputs, Y[:3]), "mine")


def test_a_loader_says_how_many_processes_read() -> None:
    loader = DataLoader(ROWS, 4, num_workers=2)
    for workers, found in ((None, 2), (0, 0), (1, 1)):
        split = split_of(loader, "mine", workers=workers)
        assert isinstance(split, Streamed) and split.workers == found
        assert split_of(split, "mine") is split
    split = split_of(split_of(ROWS, "mine"), "mine", workers=3)
    assert isinstance(split, Streamed) and split.workers == 3


class _Unmeasured(Dataset[Any]):
    def __len__(self) -> int:
        raise NotImplementedError("not counted")

    def __getitem__(self, number: int) -> Any:
        return 1.0, 2


class _Endless(Dataset[Any]):
    def __getitem__(self, number: int) -> Any:
        return 1.0, 2


def _twice(name: str) -> Any:
    return {name: X, "label": Y, "labels": Y}


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        (
            zip(X, Y, strict=True),
            GrowError,
            r"a zip can be iterated only once: give the function that makes it, or lambda: \(yield from it\)",
        ),
        (batches(8), GrowError, "the training data are no examples(.|\n)*a generator can be iterated only once"),
        (lambda: zip(X, Y, strict=True), FileError, "one number, not one for each example of a batch"),
        (_Endless(), GrowError, r"a _Endless has no length\n.*a data set with a length"),
        (DataLoader(_Endless()), GrowError, r"a _Endless has no length\n.*a data set with a length"),
        (torch.ones(3), GrowError, "are no examples with targets\n.*they are a Tensor"),
        ("digits", GrowError, "they are a str"),
        (None, GrowError, "they are a NoneType"),
        (3, GrowError, "they are a int"),
        ({}, ScoreError, "it holds nothing"),
        ({"train": (X, Y)}, ScoreError, "has no targets(.|\n)*it holds train"),
        ({"labels": Y}, ScoreError, "has no inputs"),
        (_twice("x"), ScoreError, "has several targets"),
        ((X, Y[:3]), FileError, "24 in inputs, 3 in targets"),
        ((X[:0], Y[:0]), FileError, "there are no examples"),
        (([[1.0], [1.0, 2.0]], [0, 1]), FileError, "inputs of the training data is no array of numbers"),
        ((X, Y.astype(str)), FileError, "targets of the training data is no array of numbers"),
        (DataLoader(ROWS, batch_size=None), FileError, "let a DataLoader make them of examples, with a batch_size"),
        (DataLoader(ROWS, sampler=SubsetRandomSampler(["a", "b"])), GrowError, "draws from no numbers"),  # type: ignore[list-item]
        (_Unmeasured(), GrowError, "have no length\n.*NotImplementedError: not counted"),
    ],
)
def test_what_makes_no_split_is_told(given: Any, error: type[ArchirError], named: str) -> None:
    with pytest.raises(error, match=named):
        grow(given)


@pytest.mark.parametrize("model", ["x", torch.relu, None])
def test_what_is_no_model_is_told(model: Any) -> None:
    with pytest.raises(CaptureError, match=f"a model is an nn.Module, not a {type(model).__name__}"):
        archir.grow(model, train=ROWS, validation=ROWS, budget=200)
    with pytest.raises(CaptureError, match="a model is an"):
        archir.compress(model, train=ROWS, validation=ROWS, budget=archir.Budget(parameters=0.5))


def test_a_model_without_a_signature_is_told() -> None:
    class Unsigned(nn.Linear):
        forward = min  # type: ignore[assignment]

    with pytest.raises(CaptureError, match="Unsigned cannot be captured"):
        archir.grow(Unsigned(4, 3), train=ROWS, validation=ROWS, budget=200)


def test_a_split_is_taken_as_it_is() -> None:
    split: Split = Examples(torch.ones(2, 1), torch.ones(2))
    assert split_of(split, "mine", workers=2) is split
