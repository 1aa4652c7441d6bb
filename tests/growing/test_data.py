"""Data sets: what a spec names, splits, standardisation, and what makes no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from archir.errors import ArchirError, FileError, GrowError
from archir.growing.data import load_data
from archir.growing.examples import make_split
from tests.growing.data_files import (
    Array,
    all_rows,
    inputs_of,
    random_images,
    rows,
    savez,
    targets_of,
)


def test_digits_are_all_there_and_standardised() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 144, 359)
    assert inputs_of(data.train).shape == (1294, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert targets_of(data.train).dtype == torch.int64
    assert inputs_of(data.train).mean().item() == pytest.approx(0, abs=1e-6)
    assert inputs_of(data.train).std(correction=0).item() == pytest.approx(1, abs=1e-6)
    raw = load_data("digits", normalise=False)
    digits = load_digits()
    assert all_rows(raw) == rows(make_split(digits.images[:, None] / 16, digits.target, ""))


def test_the_seed_draws_the_validation_data_and_never_the_test_data() -> None:
    one, same, other = (load_data("digits", seed=s, normalise=False) for s in (1, 1, 2))
    assert torch.equal(inputs_of(one.train), inputs_of(same.train))
    assert not torch.equal(targets_of(one.validation), targets_of(other.validation))
    assert torch.equal(inputs_of(one.test), inputs_of(other.test))


def test_a_limit_is_the_first_of_the_training_data() -> None:
    data = load_data("digits", limit=100, normalise=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 359)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0, the data have 1438 examples"),
        ({"limit": 1439}, "limit is 1439"),
        ({"validation": 0.0}, "validation is 0.0"),
        ({"test": 1.0}, "test is 1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GrowError, match=message):
        load_data("digits", **options)


@pytest.mark.parametrize("names", ["x y", "X y", "images labels", "data target", "inputs targets"])
def test_npz_of_one_pair(tmp_path: Path, names: str) -> None:
    inputs, targets = names.split()
    values, labels = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 4
    savez(tmp_path / "data.npz", **{inputs: values, targets: labels})
    data = load_data("data.npz", base=tmp_path, normalise=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    assert data.classes == ("0", "1", "2", "3")
    assert all_rows(data) == rows(make_split(values, labels, ""))


@pytest.mark.parametrize("pattern", ["{}_train {}_val {}_test", "train_{} valid_{} test_{}"])
def test_npz_of_splits(tmp_path: Path, pattern: str) -> None:
    arrays: dict[str, Array] = {}
    for i, name in enumerate(pattern.split()):
        arrays[name.format("images")] = random_images(10 + i, 4, 5, seed=i)
        arrays[name.format("labels")] = (np.arange(10 + i, dtype=np.uint8) % 3)[:, None]
    savez(tmp_path / "data.npz", **arrays, classes=np.array(["cat", "dog", "eel"]))
    data = load_data("data.npz", base=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [10, 11, 12]
    assert inputs_of(data.test).shape == (12, 1, 4, 5)
    assert targets_of(data.validation).tolist() == [i % 3 for i in range(11)]
    assert data.classes == ("cat", "dog", "eel")


def test_standardisation_uses_the_training_data_of_each_channel(tmp_path: Path) -> None:
    train, test = random_images(30, 6, 6, 3), random_images(10, 6, 6, 3, seed=1)
    train[..., 2] = 7
    labels = np.arange(30) % 2
    savez(tmp_path / "d.npz", x_train=train, y_train=labels, x_val=train, y_val=labels, x_test=test, y_test=labels[:10])
    data = load_data("d.npz", base=tmp_path)
    mean = train.reshape(-1, 3).astype(np.float64).mean(0) / 255
    deviation = train.reshape(-1, 3).astype(np.float64).std(0) / 255
    deviation[2] = 1
    expected = ((test / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    assert np.allclose(inputs_of(data.test).numpy(), expected, atol=1e-5)
    assert np.array_equal(
        inputs_of(load_data("d.npz", base=tmp_path, normalise=False).test).numpy(),
        (test / np.float32(255)).transpose(0, 3, 1, 2),
    )


def test_tokens_and_values_are_left_as_they_are(tmp_path: Path) -> None:
    tokens, values = np.arange(60).reshape(20, 3), np.linspace(0, 1, 20)
    savez(tmp_path / "data.npz", x=tokens, y=values)
    data = load_data("data.npz", base=tmp_path)
    assert inputs_of(data.train).dtype == torch.int64
    assert targets_of(data.train).dtype == torch.float32
    assert data.classes == ()
    assert all_rows(data) == rows(make_split(tokens, values, ""))


def test_test_data_are_read_once_when_they_are_asked_for(tmp_path: Path) -> None:
    labels = np.arange(10) % 2
    savez(tmp_path / "train.npz", x=random_images(10, 3, 3), y=labels)
    savez(tmp_path / "test.npz", x=random_images(4, 3, 3), y=labels[:4])
    data = load_data("train=train.npz, test = test.npz", base=tmp_path)
    first = data.test
    (tmp_path / "test.npz").unlink()
    assert data.test is first and len(first) == 4
    assert len(data.train) + len(data.validation) == 10


FUNCTIONS = """
import torch

def pair():
    return torch.arange(20.0)[:, None], torch.arange(20) % 3

def splits():
    return {"train": pair(), "test": (torch.ones(5, 1), torch.zeros(5, dtype=torch.long))}

def named():
    return {"a": torch.ones(20, 2), "b": torch.ones(20, dtype=torch.long)}, torch.ones(20)

def several():
    return torch.ones(20, 1), {"label": torch.arange(20) % 3, "values": (torch.ones(20, 2), torch.ones(20))}

def uneven():
    return torch.ones(20, 1), {"label": torch.ones(20), "value": torch.ones(19)}

def nothing():
    return None

def wrong():
    return {"train": torch.ones(3)}

def beside():
    return {"train": pair(), "unsupervised": pair()}

def fails():
    return 1 / 0
"""


def test_functions(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    data = load_data("mine.py:pair", base=tmp_path)
    assert all_rows(data) == [(float(i), float(i % 3)) for i in range(20)]
    data = load_data("mine:splits", base=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 5)
    data = load_data("mine.py:named", base=tmp_path)
    inputs = data.test.take(slice(None)).inputs
    assert isinstance(inputs, dict) and inputs["b"].shape == (4,)
    assert data.classes == ()
    data = load_data("mine.py:several", base=tmp_path)
    targets = data.test.take(slice(None)).targets
    assert isinstance(targets, dict) and isinstance(targets["values"], tuple)
    assert targets["label"].dtype == torch.int64 and targets["values"][0].shape == (4, 2)
    assert data.classes == ()
    with pytest.raises(FileError, match=r"20 in targets\['label'\], 19 in targets\['value'\]"):
        load_data("mine.py:uneven", base=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "the data of mine.py:nothing are no examples with targets\n.*they are a NoneType"),
        ("wrong", "the train data of mine.py:wrong are no examples with targets\n.*they are a Tensor"),
        ("beside", "beside returns data called 'unsupervised'(.|\n)*known: test, train, validation"),
        ("fails", r"failed\n  where: .*mine.py:\d+\n  why:   ZeroDivisionError"),
        ("pairs", "has no 'pairs'(.|\n)*did you mean pair"),
    ],
)
def test_bad_functions(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    with pytest.raises(GrowError, match=message):
        load_data(f"mine.py:{name}", base=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, "4 in inputs, 3 in targets"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "there are no examples"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "its keys are a, b"),
        (
            {"x_train": np.zeros(3), "y_train": np.zeros(3), "x_test": np.zeros(3)},
            "its keys are x_test, x_train, y_train",
        ),
        ({"x_test": np.zeros(3), "y_test": np.zeros(3)}, "has no training data"),
        ({"x": np.zeros(9), "y": np.zeros(9), "x_train": np.zeros(9), "y_train": np.zeros(9)}, "belong to no split"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(2)}, "2 examples cannot be parted"),
        ({"x": np.zeros(9), "y": np.full(9, "a")}, "the targets are not numbers"),
        ({"x": np.zeros(9, complex), "y": np.zeros(9)}, "the inputs are complex"),
        ({"x": np.zeros(9), "y": np.full(9, None)}, "an array holds Python objects"),
        ({"x": np.zeros(9), "y": np.zeros(9, "i4,f4")}, "an array holds values of type"),
        ({"x": np.zeros(9), "y": np.zeros(9, "M8[s]")}, "an array holds values of type"),
        ({"x": np.zeros(9), "y": np.arange(9) + 2**40}, r"class number 1099511627784 is too large\n.*example 8 of"),
        ({"x": np.array([[0.0], [np.nan]] * 9), "y": np.zeros(18)}, r"inputs hold nan\n.*example \d+, position \[0\]"),
        ({"x": np.array([[0.0], [np.inf]] * 9), "y": np.zeros(18)}, r"inputs hold inf\n.*example \d+, position \[0\]"),
        ({"x": np.zeros(9), "y": np.arange(9) - 1}, "class numbers run from -1"),
        ({"x": np.zeros(9), "y": np.arange(9), "classes": np.array(["a", "b"])}, "there are 2 classes"),
        ({"x": np.zeros(9), "y": np.zeros(9), "classes": np.array(["a", "b"])}, "the targets are no class numbers"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(FileError, match=message):
        load_data("data.npz", base=tmp_path)


def test_test_data_have_to_look_like_training_data(tmp_path: Path) -> None:
    savez(tmp_path / "train.npz", x=np.zeros((9, 3)), y=np.arange(9) % 3)
    savez(tmp_path / "shape.npz", x=np.zeros((9, 4)), y=np.arange(9) % 3)
    savez(tmp_path / "labels.npz", x=np.zeros((9, 3)), y=np.arange(9))
    with pytest.raises(FileError, match="not shaped like those of the training data"):
        _ = load_data("train=train.npz, test=shape.npz", base=tmp_path).test
    with pytest.raises(FileError, match="class numbers run from 0 to 8, there are 3 classes"):
        _ = load_data("train=train.npz, test=labels.npz", base=tmp_path).test


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "no data 'digit'(.|\n)*did you mean digits"),
        ("missing.npz", "there is no file or folder .*missing.npz"),
        ("train=digits, test=missing.npz", "there is no file or folder .*missing.npz"),
        ("data.csv", "of no known kind"),
        ("damaged.npz", "damaged or not what it seems"),
        ("missing.py:function", "there is no file"),
        ("no_such_module_here:function", "there is no module"),
        ("train=digits, tets=digits", r"'tets=digits' is not a part of the data(.|\n)*did you mean test"),
        ("train=digits, train=digits", "is not a part of the data"),
        ("train=whole.npz", "whole.npz cannot be the train data(.|\n)*it is split itself, into train, test"),
        ("train=named.npz, test=other.npz", "the classes of other.npz are not those"),
    ],
)
def test_bad_specs(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "data.csv").write_text("1,2\n")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    pair = {"x": np.zeros((9, 2)), "y": np.arange(9) % 2}
    savez(tmp_path / "named.npz", **pair, classes=np.array(["a", "b"]))
    savez(tmp_path / "other.npz", **pair, classes=np.array(["a", "c"]))
    savez(tmp_path / "whole.npz", **{f"{k}_{s}": v for s in ("train", "test") for k, v in pair.items()})
    with pytest.raises(ArchirError, match=message):
        load_data(spec, base=tmp_path)


def test_classes_are_a_list_of_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32), y=np.zeros(4, np.int64), classes=np.array("one"))
    with pytest.raises(FileError, match="are no list of names"):
        load_data(str(tmp_path / "d.npz"))
