"""IDX files and `.npz` archives: what they hold, and what damage, bombs and pickles get."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archir.errors import FileError
from archir.growing.arrays import read_idx
from archir.growing.data import load_data
from archir.growing.examples import make_split
from archir.ir import room
from tests.growing.data_files import (
    Array,
    all_rows,
    as_floats,
    random_images,
    rows,
    savez,
    write_folders,
)


def _write_idx(path: Path, array: Array, kind: int = 8) -> None:
    big = array.astype(array.dtype.newbyteorder(">"))
    content = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path: Path, suffix: str) -> None:
    for name, count in (("train", 20), ("t10k", 5)):
        _write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", random_images(count, 4, 3))
        _write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", (np.arange(count) % 5).astype(np.uint8))
    data = load_data(str(tmp_path), normalise=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 5)
    assert rows(data.test) == rows(as_floats(make_split(random_images(5, 4, 3), np.arange(5), "")))


def test_idx_file_alone(tmp_path: Path) -> None:
    _write_idx(tmp_path / "my-images.idx3-ubyte", random_images(20, 4, 3))
    _write_idx(tmp_path / "my-labels.idx1-ubyte.gz", (np.arange(20) % 5).astype(np.uint8))
    assert len(load_data("my-images.idx3-ubyte", base=tmp_path).test) == 4
    (tmp_path / "my-labels.idx1-ubyte.gz").unlink()
    with pytest.raises(FileError, match=r"labels of .* are missing\n  hint: .*my-labels.idx1-ubyte"):
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


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.victim, "pwned")


def test_objects_in_an_array_are_not_unpickled(tmp_path: Path) -> None:
    savez(tmp_path / "data.npz", x=np.zeros(9), y=np.array([Payload(tmp_path / "victim")] * 9))
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
    write_folders(folders, random_images(2, 5, 4, 3))
    (tmp_path / "big.png").rename(folders / "ant" / "000.png")
    for spec in ("bomb.npz", "folders"):
        with pytest.raises(FileError, match="too large") as caught:
            load_data(spec, base=tmp_path)
        assert "there are 977 KiB of memory" in str(caught.value)
    with pytest.raises(FileError, match=r"too large\n.*\[1000000000\]"):
        read_idx(tmp_path / "bomb-idx")


def test_what_arrays_become_has_to_fit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes become numbers of four bytes, and other whole numbers of eight."""
    monkeypatch.setattr(room, "free_memory", lambda: 2500)
    monkeypatch.setattr(room, "LITTLE", 0)
    savez(tmp_path / "bytes.npz", x=np.zeros((100, 3, 3), np.uint8), y=np.zeros(100, np.int8))
    with pytest.raises(FileError, match="inputs are too large as numbers"):
        load_data("bytes.npz", base=tmp_path)
    savez(tmp_path / "tokens.npz", x=np.zeros((100, 9), np.int16), y=np.zeros(100, np.int8))
    with pytest.raises(FileError, match=r"the inputs are too large\n.*tokens.npz(.|\n)*7.03 KiB"):
        load_data("tokens.npz", base=tmp_path)


def test_a_small_idx_file_is_not_unpacked_beyond_what_it_says(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(50_000_000))
    (tmp_path / "bomb-idx").write_bytes(bomb)
    with pytest.raises(FileError, match="more than 5 bytes of data"):
        read_idx(tmp_path / "bomb-idx")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("spec", ["data.npz", "data-images-idx3-ubyte", "."])
def test_pipes_and_devices_are_no_data(tmp_path: Path, spec: str, make: Callable[[Path], object]) -> None:
    """Opening the one would wait for ever, reading the other would never end."""
    make(tmp_path / ("data-images-idx3-ubyte" if spec == "." else spec))
    _write_idx(tmp_path / "data-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(FileError, match="it is no regular file"):
        load_data(spec, base=tmp_path)


def test_a_link_to_data_is_data(tmp_path: Path) -> None:
    savez(tmp_path / "there.npz", x=np.zeros((9, 2)), y=np.arange(9) % 2)
    (tmp_path / "here.npz").symlink_to(tmp_path / "there.npz")
    assert all_rows(load_data("here.npz", base=tmp_path)) == all_rows(load_data("there.npz", base=tmp_path))


def test_one_number_is_no_target_for_each_example(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((4, 3), np.float32), y=np.int64(1))
    with pytest.raises(FileError, match="the targets are one number, not one for each example"):
        load_data("one.npz", base=tmp_path)
