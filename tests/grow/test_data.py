"""Data sets: every kind of source on small files made here, splits, standardisation, and what bad input gets."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from archir.errors import ArchirError, FileError, GrowError
from archir.grow.arrays import read_idx
from archir.grow.data import Dataset, load_data
from archir.grow.split import Split, make_split
from archir.ir import room

Array = NDArray[Any]


def _images(count: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def _savez(path: Path, **arrays: Array) -> None:
    np.savez(path, allow_pickle=True, **arrays)


def _tensor(split: Split) -> torch.Tensor:
    assert isinstance(split.inputs, torch.Tensor)
    return split.inputs


def _wanted(split: Split) -> torch.Tensor:
    assert isinstance(split.targets, torch.Tensor)
    return split.targets


def _rows(*splits: Split) -> list[tuple[float, ...]]:
    """Return the examples of splits, target included, in a fixed order."""
    pairs = ((x, t) for s in splits for x, t in zip(_tensor(s), _wanted(s), strict=True))
    return sorted((*map(float, x.flatten()), float(t)) for x, t in pairs)


def _everything(data: Dataset) -> list[tuple[float, ...]]:
    return _rows(data.train, data.validation, data.test)


def test_digits_are_all_there_and_standardised() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 144, 359)
    assert _tensor(data.train).shape == (1294, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert _wanted(data.train).dtype == torch.int64
    assert _tensor(data.train).mean().item() == pytest.approx(0, abs=1e-6)
    assert _tensor(data.train).std(correction=0).item() == pytest.approx(1, abs=1e-6)
    raw = load_data("digits", normalise=False)
    digits = load_digits()
    assert _everything(raw) == _rows(make_split(digits.images[:, None] / 16, digits.target, ""))


def test_the_seed_draws_the_validation_data_and_never_the_test_data() -> None:
    one, same, other = (load_data("digits", seed=s, normalise=False) for s in (1, 1, 2))
    assert torch.equal(_tensor(one.train), _tensor(same.train))
    assert not torch.equal(_wanted(one.validation), _wanted(other.validation))
    assert torch.equal(_tensor(one.test), _tensor(other.test))


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
    _savez(tmp_path / "data.npz", **{inputs: values, targets: labels})
    data = load_data("data.npz", base=tmp_path, normalise=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    assert data.classes == ("0", "1", "2", "3")
    assert _everything(data) == _rows(make_split(values, labels, ""))


@pytest.mark.parametrize("pattern", ["{}_train {}_val {}_test", "train_{} valid_{} test_{}"])
def test_npz_of_splits(tmp_path: Path, pattern: str) -> None:
    arrays: dict[str, Array] = {}
    for i, name in enumerate(pattern.split()):
        arrays[name.format("images")] = _images(10 + i, 4, 5, seed=i)
        arrays[name.format("labels")] = (np.arange(10 + i, dtype=np.uint8) % 3)[:, None]
    _savez(tmp_path / "data.npz", **arrays, classes=np.array(["cat", "dog", "eel"]))
    data = load_data("data.npz", base=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [10, 11, 12]
    assert _tensor(data.test).shape == (12, 1, 4, 5)
    assert _wanted(data.validation).tolist() == [i % 3 for i in range(11)]
    assert data.classes == ("cat", "dog", "eel")


def test_standardisation_uses_the_training_data_of_each_channel(tmp_path: Path) -> None:
    train, test = _images(30, 6, 6, 3), _images(10, 6, 6, 3, seed=1)
    train[..., 2] = 7
    labels = np.arange(30) % 2
    _savez(
        tmp_path / "d.npz", x_train=train, y_train=labels, x_val=train, y_val=labels, x_test=test, y_test=labels[:10]
    )
    data = load_data("d.npz", base=tmp_path)
    mean = train.reshape(-1, 3).astype(np.float64).mean(0) / 255
    deviation = train.reshape(-1, 3).astype(np.float64).std(0) / 255
    deviation[2] = 1
    expected = ((test / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    assert np.allclose(_tensor(data.test).numpy(), expected, atol=1e-5)
    assert np.array_equal(
        _tensor(load_data("d.npz", base=tmp_path, normalise=False).test).numpy(),
        (test / np.float32(255)).transpose(0, 3, 1, 2),
    )


def test_tokens_and_values_are_left_as_they_are(tmp_path: Path) -> None:
    tokens, values = np.arange(60).reshape(20, 3), np.linspace(0, 1, 20)
    _savez(tmp_path / "data.npz", x=tokens, y=values)
    data = load_data("data.npz", base=tmp_path)
    assert _tensor(data.train).dtype == torch.int64
    assert _wanted(data.train).dtype == torch.float32
    assert data.classes == ()
    assert _everything(data) == _rows(make_split(tokens, values, ""))


def test_test_data_are_read_once_when_they_are_asked_for(tmp_path: Path) -> None:
    labels = np.arange(10) % 2
    _savez(tmp_path / "train.npz", x=_images(10, 3, 3), y=labels)
    _savez(tmp_path / "test.npz", x=_images(4, 3, 3), y=labels[:4])
    data = load_data("train=train.npz, test = test.npz", base=tmp_path)
    first = data.test
    (tmp_path / "test.npz").unlink()
    assert data.test is first and len(first) == 4
    assert len(data.train) + len(data.validation) == 10


def _jpeg_npz(path: Path, images: Array, labels: Array, **changes: Array) -> list[Array]:
    """Write images as JPEG bytes in a `.npz`, and return them as they decode."""
    pictures, offsets, decoded = b"", [0], []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=75)
        decoded.append(np.asarray(Image.open(buffer)))
        pictures += buffer.getvalue()
        offsets.append(len(pictures))
    arrays = {"jpeg": np.frombuffer(pictures, np.uint8), "offsets": np.array(offsets), "labels": labels}
    _savez(path, **{**arrays, "classes": np.array(["a", "b"]), **changes})
    return decoded


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6)])
def test_jpeg_bytes_in_npz(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.arange(10, dtype=np.uint8) % 2
    train = _jpeg_npz(tmp_path / "train.npz", _images(10, *shape), labels)
    test = _jpeg_npz(tmp_path / "test.npz", _images(4, *shape, seed=1), labels[:4])
    data = load_data("train=train.npz,test=test.npz", base=tmp_path, normalise=False)
    assert data.classes == ("a", "b")
    assert _rows(data.test) == _rows(_floats(make_split(np.stack(test), labels[:4], "")))
    assert _rows(data.train, data.validation) == _rows(_floats(make_split(np.stack(train), labels, "")))


def _floats(split: Split) -> Split:
    return Split(_tensor(split).float() / 255, split.targets)


def test_damaged_jpeg_archives(tmp_path: Path) -> None:
    images, labels = _images(4, 8, 8, 3), np.arange(4, dtype=np.uint8) % 2
    _jpeg_npz(tmp_path / "offsets.npz", images, labels, offsets=np.array([0, 5, 4, 9, 20]))
    with pytest.raises(FileError, match="its offsets do not run"):
        load_data("offsets.npz", base=tmp_path)
    _jpeg_npz(tmp_path / "labels.npz", images, labels[:3])
    with pytest.raises(FileError, match="4 in inputs, 3 in targets"):
        load_data("labels.npz", base=tmp_path)
    _jpeg_npz(tmp_path / "bytes.npz", images, labels, jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 2, 4, 6, 9]))
    with pytest.raises(FileError, match=r"bytes.npz, image 0 is not an image"):
        load_data("bytes.npz", base=tmp_path)


def _write_idx(path: Path, array: Array, kind: int = 8) -> None:
    big = array.astype(array.dtype.newbyteorder(">"))
    content = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path: Path, suffix: str) -> None:
    for name, count in (("train", 20), ("t10k", 5)):
        _write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", _images(count, 4, 3))
        _write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", (np.arange(count) % 5).astype(np.uint8))
    data = load_data(str(tmp_path), normalise=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 5)
    assert _rows(data.test) == _rows(_floats(make_split(_images(5, 4, 3), np.arange(5), "")))


def test_idx_file_alone(tmp_path: Path) -> None:
    _write_idx(tmp_path / "my-images.idx3-ubyte", _images(20, 4, 3))
    _write_idx(tmp_path / "my-labels.idx1-ubyte.gz", (np.arange(20) % 5).astype(np.uint8))
    assert len(load_data("my-images.idx3-ubyte", base=tmp_path).test) == 4
    (tmp_path / "my-labels.idx1-ubyte.gz").unlink()
    with pytest.raises(FileError, match=r"labels of .* are missing\n  mend: .*my-labels.idx1-ubyte"):
        load_data("my-images.idx3-ubyte", base=tmp_path)


@pytest.mark.parametrize(("kind", "dtype"), [(8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8")])
def test_idx_element_types(tmp_path: Path, kind: int, dtype: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    _write_idx(tmp_path / "a.idx", values, kind)
    assert np.array_equal(read_idx(tmp_path / "a.idx"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file"),
        (b"\0\0\x07\x01\0\0\0\x01\0", "is not an IDX file"),
        (b"\0\0\x08\x02\0\0\0\x01\0", "is not an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x03\0\0", "2 bytes of data instead of 3"),
        (b"\0\0\x08\x01\0\0\0\x01\0\0", "more than 1 bytes of data instead of 1"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01\0", mtime=0)[:-3], "is damaged or not what it seems"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_idx(tmp_path / "a.idx")


def _write_folders(root: Path, images: Array, names: tuple[str, ...] = ("ant", "bee")) -> None:
    for i, image in enumerate(images):
        folder = root / names[i % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03d}.png")


def test_class_folders(tmp_path: Path) -> None:
    images = _images(20, 5, 4, 3)
    _write_folders(tmp_path, images)
    (tmp_path / ".hidden").write_text("")
    data = load_data(str(tmp_path), normalise=False)
    assert data.classes == ("ant", "bee")
    assert _everything(data) == _rows(_floats(make_split(images, np.arange(20) % 2, "")))


def test_class_folders_of_splits(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        _write_folders(tmp_path / split, _images(6 + 2 * i, 5, 4, seed=i))
    data = load_data(str(tmp_path))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [6, 8, 10]
    assert _tensor(data.train).shape == (6, 1, 5, 4)


def test_grey_and_coloured_images_together_are_coloured(tmp_path: Path) -> None:
    _write_folders(tmp_path, _images(10, 5, 4, 3))
    Image.fromarray(_images(1, 5, 4)[0]).save(tmp_path / "ant" / "grey.png")
    assert _tensor(load_data(str(tmp_path)).train).shape[1:] == (3, 5, 4)


def test_bad_class_folders(tmp_path: Path) -> None:
    _write_folders(tmp_path / "a", _images(10, 5, 4))
    Image.fromarray(_images(1, 6, 4)[0]).save(tmp_path / "a" / "bee" / "odd.png")
    with pytest.raises(FileError, match=r"images differ in size: 4x5 and 4x6\n  where: .*odd.png"):
        load_data("a", base=tmp_path)
    (tmp_path / "a" / "bee" / "odd.png").write_bytes(b"nothing")
    with pytest.raises(FileError, match=r"odd.png is not an image that can be read"):
        load_data("a", base=tmp_path)
    (tmp_path / "a" / "bee" / "odd.png").rename(tmp_path / "a" / "bee" / "notes.txt")
    with pytest.raises(FileError, match=r"notes.txt is not an image"):
        load_data("a", base=tmp_path)
    (tmp_path / "a" / "bee" / "notes.txt").rename(tmp_path / "a" / "notes.txt")
    with pytest.raises(FileError, match=r"not a folder of class folders\n  why:   notes.txt is no folder"):
        load_data("a", base=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty"):
        load_data("empty", base=tmp_path)
    (tmp_path / "hollow" / "ant").mkdir(parents=True)
    with pytest.raises(FileError, match="has no images"):
        load_data("hollow", base=tmp_path)
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(tmp_path / "hollow" / "ant" / "deep.png")
    with pytest.raises(FileError, match="its pixels are no bytes"):
        load_data("hollow", base=tmp_path)


def test_classes_have_to_be_the_same_in_every_split(tmp_path: Path) -> None:
    _write_folders(tmp_path / "train", _images(6, 5, 4))
    _write_folders(tmp_path / "test", _images(6, 5, 4), ("ant", "bug"))
    with pytest.raises(FileError, match=r"classes of test are not those .*\n  where: bee, bug"):
        load_data(str(tmp_path))
    _write_folders(tmp_path / "extra", _images(6, 5, 4))
    with pytest.raises(FileError, match="has folders beside its splits"):
        load_data(str(tmp_path))


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

def fails():
    return 1 / 0
"""


def test_functions(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    data = load_data("mine.py:pair", base=tmp_path)
    assert _everything(data) == [(float(i), float(i % 3)) for i in range(20)]
    data = load_data("mine:splits", base=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 5)
    data = load_data("mine.py:named", base=tmp_path)
    assert isinstance(data.test.inputs, dict) and data.test.inputs["b"].shape == (4,)
    assert data.classes == ()
    data = load_data("mine.py:several", base=tmp_path)
    targets = data.test.targets
    assert isinstance(targets, dict) and isinstance(targets["values"], tuple)
    assert targets["label"].dtype == torch.int64 and targets["values"][0].shape == (4, 2)
    assert data.classes == ()
    with pytest.raises(FileError, match=r"20 in targets\['label'\], 19 in targets\['value'\]"):
        load_data("mine.py:uneven", base=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returns NoneType, not data"),
        ("wrong", "the train data of .* are not a pair"),
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
    _savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(FileError, match=message):
        load_data("data.npz", base=tmp_path)


def test_test_data_have_to_look_like_training_data(tmp_path: Path) -> None:
    _savez(tmp_path / "train.npz", x=np.zeros((9, 3)), y=np.arange(9) % 3)
    _savez(tmp_path / "shape.npz", x=np.zeros((9, 4)), y=np.arange(9) % 3)
    _savez(tmp_path / "labels.npz", x=np.zeros((9, 3)), y=np.arange(9))
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
    _savez(tmp_path / "named.npz", **pair, classes=np.array(["a", "b"]))
    _savez(tmp_path / "other.npz", **pair, classes=np.array(["a", "c"]))
    _savez(tmp_path / "whole.npz", **{f"{k}_{s}": v for s in ("train", "test") for k, v in pair.items()})
    with pytest.raises(ArchirError, match=message):
        load_data(spec, base=tmp_path)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.victim, "pwned")


def test_objects_in_an_array_are_not_unpickled(tmp_path: Path) -> None:
    _savez(tmp_path / "data.npz", x=np.zeros(9), y=np.array([Payload(tmp_path / "victim")] * 9))
    with pytest.raises(FileError, match="holds Python objects"):
        load_data("data.npz", base=tmp_path)
    assert not (tmp_path / "victim").exists()


def _npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


SHAPE = b"{'descr': '|u1', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x09" + bytes(90),
        _npy(b""),
        _npy(b"{"),
        _npy(b"__import__('os').system('x')"),
        _npy(b"[" * 9000),
        _npy(SHAPE % b"(9,)", bytes(8)),
        _npy(SHAPE % b"(9,)", bytes(10)),
        _npy(SHAPE % b"(1000000000000000,)", bytes(9)),
        _npy(SHAPE % b"(3, -3)", bytes(9)),
        _npy(SHAPE % (b"(" + b"9" * 5000 + b",)"), bytes(9)),
        _npy(b"{'descr': 'O', 'fortran_order': False, 'shape': (9,)}", bytes(72)),
        _npy(b"{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (9,)}", bytes(72)),
    ],
)
def test_damaged_headers_of_npz(tmp_path: Path, content: bytes) -> None:
    np.savez(tmp_path / "good.npz", x=np.zeros(9), y=np.zeros(9))
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", _npy(SHAPE % b"(9,)", bytes(9)))
    with pytest.raises(FileError):
        load_data("data.npz", base=tmp_path)
    for cut in (10, 100, 400):
        (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-cut])
        with pytest.raises(FileError):
            load_data("cut.npz", base=tmp_path)


def test_what_unpacks_to_more_than_there_is_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the headers say, before anything is unpacked."""
    monkeypatch.setattr(room, "free_memory", lambda: 10**6)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((9, 10**6), np.uint8), y=np.zeros(9))
    assert (tmp_path / "bomb.npz").stat().st_size < 50_000
    (tmp_path / "bomb-idx").write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 10**9)))
    Image.new("RGB", (2000, 2000)).save(tmp_path / "big.png")
    folders = tmp_path / "folders"
    _write_folders(folders, _images(2, 5, 4, 3))
    (tmp_path / "big.png").rename(folders / "ant" / "000.png")
    for spec in ("bomb.npz", "folders"):
        with pytest.raises(FileError, match="too large") as caught:
            load_data(spec, base=tmp_path)
        assert "there are 977 KiB of memory" in str(caught.value)
    with pytest.raises(FileError, match=r"too large\n.*\[1000000000\]"):
        read_idx(tmp_path / "bomb-idx")


def test_a_small_idx_file_is_not_unpacked_beyond_what_it_says(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(50_000_000))
    (tmp_path / "bomb-idx").write_bytes(bomb)
    with pytest.raises(FileError, match="more than 5 bytes of data"):
        read_idx(tmp_path / "bomb-idx")


def test_images_that_could_start_programs_are_not_opened(tmp_path: Path) -> None:
    """Whatever they are called: Pillow hands EPS to Ghostscript."""
    _write_folders(tmp_path, _images(4, 5, 4, 3))
    Image.fromarray(_images(1, 5, 4, 3)[0]).save(tmp_path / "ant" / "000.png", "EPS")
    with pytest.raises(FileError, match=r"000\.png is not an image that can be read"):
        load_data(".", base=tmp_path)


def test_images_as_large_as_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    _write_folders(tmp_path, _images(4, 5, 4, 3))
    with pytest.raises(FileError, match="decompression bomb"):
        load_data(".", base=tmp_path)


def test_classes_are_a_list_of_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32), y=np.zeros(4, np.int64), classes=np.array("one"))
    with pytest.raises(FileError, match="are no list of names"):
        load_data(str(tmp_path / "d.npz"))
