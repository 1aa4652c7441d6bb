"""Reads arrays from `.npz` and IDX files: numbers only, and no more than the file holds and memory has room for."""

from __future__ import annotations

import gzip
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from archir.errors import FileError
from archir.ir.files import open_regular
from archir.ir.room import too_large

Array = NDArray[Any]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        # A pipe would be waited for, and a device read, for ever.
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        yield
    except (
        OSError,
        EOFError,
        ValueError,  # of a header that is no header, or an encoding
        SyntaxError,
        tokenize.TokenError,
        TypeError,
        KeyError,
        OverflowError,
        RecursionError,
        NotImplementedError,  # a compression that zipfile does not have
        RuntimeError,  # an encrypted member
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise FileError(f"{path} is damaged or not what it seems", why=f"{type(error).__name__}: {error}") from error


def npz_keys(path: Path) -> set[str]:
    """Return the names of the arrays in a `.npz`.

    Raises:
        FileError: it is missing or damaged.
    """
    with _reading(path), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def read_npz(path: Path, keys: Sequence[str]) -> list[Array]:
    """Return arrays of a `.npz`; objects, which would be unpickled, are refused.

    Raises:
        FileError: the file is missing or damaged, a header does not fit what follows it, an array is of no numbers or
            text, or there is no room for them.
    """
    with _reading(path), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = [archive.getinfo(f"{key}.npy") for key in keys]
        # A member cannot give more bytes than the archive says it has: zipfile stops there.
        why = too_large(sum(member.file_size for member in members))
        if why:
            raise FileError(f"{path} is too large", where=", ".join(keys), why=why)
        found = []
        for key, member in zip(keys, members, strict=True):
            with archive.open(member) as packed:
                found.append(_read_npy(packed, member.file_size, f"{path}, {key}"))
        return found


def _read_npy(file: IO[bytes], size: int, where: str) -> Array:
    version = npy.read_magic(file)
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"its arrays are of version {version}")
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        hint = "save numbers: objects are pickled, and what unpickles them runs what they say"
        raise FileError("an array holds Python objects", where=where, hint=hint)
    if dtype.kind not in "biufcUS":
        raise FileError(f"an array holds values of type {dtype!s:.60}", where=where, hint="save numbers")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != size - file.tell():
        raise ValueError(f"{where} says it has the shape {shape!s:.80}, but has {size - file.tell()} bytes of data")
    # Asked for that many bytes, zipfile unpacks no more, whatever the archive holds.
    values: Array = np.frombuffer(file.read(count * dtype.itemsize), dtype, count) if count else np.empty(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> Array:
    """Return the array in an IDX file, plain or gzipped.

    Raises:
        FileError: it is missing, damaged, cut short or too long, or there is no room for it.

    Source: the format of the MNIST files (LeCun, Cortes, Burges, 1998).
    """
    with _reading(path), open_regular(path) as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        return _read_idx(cast(IO[bytes], gzip.GzipFile(fileobj=plain)) if packed else plain, path)


def _read_up_to(file: IO[bytes], most: int, step: int = 2**20) -> bytes:
    """Return what a file holds, or its first bytes; memory is taken for what is there, not for what might be."""
    parts: list[bytes] = []
    while most > 0 and (part := file.read(min(most, step))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def _read_idx(file: IO[bytes], path: Path) -> Array:
    start = file.read(4)
    sizes = file.read(4 * start[3]) if len(start) == 4 else b""
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES or len(sizes) < 4 * start[3]:
        raise FileError(f"{path} is not an IDX file")
    kind = np.dtype(_IDX_TYPES[start[2]])
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    wanted = math.prod(shape) * kind.itemsize
    why = too_large(wanted)
    if why:
        raise FileError(f"{path} is too large", where=f"its shape is {list(shape)}", why=why)
    # One byte more than there should be, and no more: a small file may unpack to any length.
    data = _read_up_to(file, wanted + 1)
    if len(data) != wanted:
        many = f"{len(data)} bytes" if len(data) < wanted else f"more than {wanted} bytes"
        raise FileError(f"{path} is damaged", why=f"it has {many} of data instead of {wanted}")
    values: Array = np.frombuffer(data, kind).reshape(shape)
    return values.astype(kind.newbyteorder("="))
