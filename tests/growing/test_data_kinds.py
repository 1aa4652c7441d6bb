"""Kinds of data a configuration may name: those that are not in memory are the same examples, split in the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from archir.errors import ArchirError, FileError, GrowError, ScoreError
from archir.growing import files
from archir.growing.batches import Batches
from archir.growing.data import Dataset, load_data
from archir.growing.examples import Examples
from archir.growing.iterated import Iterated
from archir.growing.streamed import Streamed
from tests.growing.data_files import all_rows, inputs_of, random_images, targets_of, write_folders

FUNCTIONS = """
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

X = np.random.default_rng(0).integers(0, 256, (40, 5, 4, 3), dtype=np.uint8)
Y = np.arange(40) % 3

class Columns:
    def __len__(self):
        return len(X)

    def __getitem__(self, number):
        return {"image": X[number], "label": int(Y[number])}

def pair():
    return X, Y

def columns():
    return {"image": X, "label": Y}

def dataset():
    return Columns()

def listed():
    return list(zip(X, Y))

def loader():
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return DataLoader(rows, batch_size=3, shuffle=True, num_workers=2)

def opened():
    np.save("x.npy", X)
    return np.load("x.npy", mmap_mode="r"), Y

def splits():
    return {"train": Columns(), "test": loader(), "validation": (X[:7], Y[:7])}

def masked():
    return [{"ids": [1, 2], "mask": x[0, :2, 0] > 9, "label": 0} for x in X]

def mask():
    return {"mask": X > 9, "label": Y}

def unlabelled():
    return [{"image": x} for x in X]

def ends():
    class Ends(Columns):
        def __getitem__(self, number):
            return [super(Ends, self).__getitem__(i) for i in range(30)][number]
    return Ends()

def once():
    return iter(Columns())

def batches(first=0, last=40):
    for i in range(first, last, 8):
        yield {"image": X[i : i + 8], "label": Y[i : i + 8]}

def held_out():
    return batches(32)

def iterated():
    return {"train": DataLoader(Columns(), batch_sampler=[range(40)]), "validation": held_out, "test": (X[:7], Y[:7])}

def generators():
    return {"train": batches(), "validation": held_out, "test": held_out}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _same(one: Dataset, other: Dataset) -> bool:
    """Say whether all splits hold the same examples in the same order."""
    pairs = zip((one.train, one.validation, one.test), (other.train, other.validation, other.test), strict=True)
    return all(torch.equal(of(a), of(b)) for a, b in pairs for of in (inputs_of, targets_of))


@pytest.mark.parametrize("name", ["columns", "dataset", "listed", "loader", "opened"])
def test_functions_may_return_any_kind_of_examples(folder: Path, name: str) -> None:
    """Bytes are intensities, and channels come first, whatever the kind."""
    wanted = load_data("mine.py:pair", base=folder, seed=3, limit=30)
    assert isinstance(wanted.train, Examples) and inputs_of(wanted.train).shape == (27, 3, 5, 4)
    found = load_data(f"mine.py:{name}", base=folder, seed=3, limit=30)
    assert _same(found, wanted)
    if name != "columns":
        assert isinstance(found.train, Streamed) and isinstance(found.test, Streamed)
        assert found.train.workers == (2 if name == "loader" else 0)
        again = load_data(f"mine.py:{name}", base=folder, seed=3, limit=30, workers=1)
        assert isinstance(again.train, Streamed) and again.train.workers == 1
        assert isinstance(again.test, Streamed) and again.test.workers == 1


def test_functions_may_return_kinds_by_split(folder: Path) -> None:
    data = load_data("mine.py:splits", base=folder)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [40, 7, 40]
    assert [type(s) for s in (data.train, data.validation, data.test)] == [Streamed, Examples, Streamed]
    assert torch.equal(inputs_of(data.test), inputs_of(data.train))
    assert torch.equal(inputs_of(data.validation), inputs_of(data.train)[:7])
    named = load_data("train=mine.py:dataset, test=mine.py:pair", base=folder, normalise=False)
    assert isinstance(named.train, Streamed) and torch.equal(inputs_of(named.test), inputs_of(data.test))


def test_functions_may_give_what_is_only_iterated(folder: Path) -> None:
    """Bytes are intensities there, too, and channels come first; a function that makes a generator is called again."""
    wanted = load_data("mine.py:splits", base=folder)
    for spec in ("mine.py:iterated", "train=mine.py:batches, validation=mine.py:held_out, test=mine.py:pair"):
        found = load_data(spec, base=folder, normalise=False)
        assert isinstance(found.train, Iterated) and isinstance(found.validation, Iterated)
        assert isinstance(found.test, Examples)
        assert torch.equal(inputs_of(found.train.take(slice(50))), inputs_of(wanted.train.take(slice(40))))
        for _ in range(2):
            ((inputs, labels),) = list(Batches(found.validation, 100))
            assert isinstance(inputs, torch.Tensor) and inputs.shape == (8, 3, 5, 4) and inputs.dtype == torch.float32
            assert torch.equal(inputs, inputs_of(wanted.train.take(slice(32, 40))))
            assert isinstance(labels, torch.Tensor) and labels.tolist() == [n % 3 for n in range(32, 40)]
        with pytest.raises(GrowError, match=r"a limit is one of examples that have numbers\n(.|\n)*itertools\.islice"):
            load_data(spec, base=folder, limit=20)
        with pytest.raises(GrowError, match="can only be iterated, which 2 processes are to do"):
            load_data(spec, base=folder, workers=2)
    alike = load_data("train=mine.py:batches, validation=mine.py:held_out, test=mine.py:pair", base=folder)
    ((inputs, _),) = list(Batches(alike.train, 40))
    assert isinstance(inputs, torch.Tensor)
    deviation, mean = torch.std_mean(inputs, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close((mean, deviation), (torch.zeros(3), torch.ones(3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("unlabelled", ScoreError, r"has no targets\n.*the data of mine.py:unlabelled(.|\n)*it holds image"),
        ("ends", GrowError, "example 3[0-9] of the data of(.|\n)*IndexError(.|\n)*if there is no such example"),
        ("once", GrowError, r"no validation or test data can be held out\n.*once(.|\n)*name a function for each"),
        ("batches", GrowError, r"no validation or test data can be held out\n.*the data of mine.py:batches"),
        (
            "generators",
            GrowError,
            "the train data of mine(.|\n)*a generator can be iterated only once: give the function",
        ),
    ],
)
def test_functions_whose_examples_cannot_be_read(
    folder: Path, name: str, error: type[ArchirError], message: str
) -> None:
    with pytest.raises(error, match=message):
        inputs_of(load_data(f"mine.py:{name}", base=folder).train)
    with pytest.raises(GrowError, match="workers is -1"):
        load_data("mine.py:pair", base=folder, workers=-1)


def test_entries_go_by_the_names_of_arguments(folder: Path) -> None:
    """As those of examples that are given to `archir.grow`; truth values stay what they are."""
    both = load_data("mine.py:masked", base=folder).train.take(slice(2)).inputs
    assert isinstance(both, dict) and both["mask"].dtype == torch.bool and both["ids"].dtype == torch.int64
    for name in ("mask", "train=mine.py:mask, test=mine.py:mask"):
        spec = name if "=" in name else f"mine.py:{name}"
        alone = load_data(spec, base=folder, names=("other",)).train
        assert inputs_of(alone).dtype == torch.bool
        named = load_data(spec, base=folder, names=("other", "mask")).train.take(slice(2)).inputs
        assert isinstance(named, dict) and list(named) == ["mask"] and named["mask"].dtype == torch.bool


def _folders(tmp_path: Path, *, coloured: bool = True) -> Path:
    shape = (5, 4, 3) if coloured else (5, 4)
    for i, name in enumerate(("train", "test")):
        write_folders(tmp_path / "images" / name, random_images(30 - 10 * i, *shape, seed=i))
    return tmp_path / "images"


def _large(monkeypatch: pytest.MonkeyPatch, looked_at: int = 256) -> None:
    """Let any folder of images be a large one."""
    monkeypatch.setattr(files, "LARGE", 0)
    monkeypatch.setattr(files, "LOOKED_AT", looked_at)


@pytest.mark.parametrize("coloured", [True, False])
def test_large_folders_of_images_are_decoded_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coloured: bool
) -> None:
    folder = _folders(tmp_path, coloured=coloured)
    if coloured:
        Image.fromarray(random_images(1, 5, 4)[0]).save(folder / "train" / "ant" / "000.png")
    small, plain = load_data(str(folder)), load_data(str(folder), normalise=False)
    _large(monkeypatch)
    large = load_data(str(folder), workers=1)
    assert isinstance(small.train, Examples) and isinstance(large.train, Streamed) and isinstance(large.test, Streamed)
    assert large.classes == ("ant", "bee") and large.train.workers == 1
    assert _same(large, small) and _same(load_data(str(folder), normalise=False), plain)
    assert all_rows(load_data(str(folder), normalise=False)) == all_rows(plain)


def _fails(folder: Path) -> str:
    train = load_data(str(folder), normalise=False).train
    with pytest.raises(FileError) as caught:
        train.take(slice(None))
    return str(caught.value)


def test_images_of_large_folders_are_checked_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folders(tmp_path, coloured=False)
    _large(monkeypatch, looked_at=2)
    last = folder / "train" / "bee" / "029.png"
    Image.fromarray(random_images(1, 6, 4)[0]).save(last)
    assert f"images differ in size: 4x5 and 4x6\n  where: {last}" in _fails(folder)
    Image.fromarray(random_images(1, 5, 4, 3)[0]).save(last)
    assert f"coloured, and those looked at first are grey\n  where: {last}" in _fails(folder)
    last.write_bytes(b"nothing")
    assert "029.png is not an image that can be read" in _fails(folder)
    monkeypatch.setattr(files, "LOOKED_AT", 256)
    with pytest.raises(FileError, match=r"029\.png is not an image that can be read"):
        load_data(str(folder))


def test_the_size_of_a_folder_is_that_of_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of 30 images of 5 by 4 coloured pixels takes 7200 bytes, one of 20 grey ones 1600."""
    folder = _folders(tmp_path)
    for most, kind in ((7200, Examples), (7199, Streamed)):
        monkeypatch.setattr(files, "LARGE", most)
        assert type(load_data(str(folder)).train) is kind
    assert np.prod((30, 5, 4, 3)) * 4 == 7200
