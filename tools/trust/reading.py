"""Reads `.npz` and IDX files once more, without the package, to compare what it makes of them."""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archir.growing.data import Dataset

_IDX = {8: "B", 9: "b", 11: "h", 12: "i", 13: "f", 14: "d"}
_NAMES = (("x", "y"), ("images", "labels"))
_CHANNELS = (1, 3, 4)

Rows = Counter[tuple[bytes, bytes]]
"""How often each example occurs: the bytes of its inputs and of its targets."""


def read_rows(path: Path) -> Rows | None:
    """Return the examples of a file or folder as its format says, None if it is of another kind.

    Args:
        path: a `.npz` of two arrays, or a folder with one IDX file of images and one of labels.
    """
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found = next(([file[n] for n in names] for names in _NAMES if sorted(file.files) == sorted(names)), None)
        return None if found is None else _rows(*found)
    files = sorted(path.iterdir()) if path.is_dir() else []
    pair = [p for kind in ("images", "labels") for p in files if kind in p.name and "ubyte" in p.name]
    return _rows(*map(_idx, pair)) if len(pair) == len(files) == 2 else None


def rows_of(dataset: Dataset) -> Rows:
    """Return the examples of all splits of data that are not standardised."""
    found: Rows = Counter()
    for read in (dataset.train, dataset.validation, dataset.test):
        split = read.take(slice(None))
        assert isinstance(split.inputs, torch.Tensor) and isinstance(split.targets, torch.Tensor)
        found += _pairs(split.inputs.numpy(), split.targets.numpy())
    return found


def _idx(path: Path) -> np.ndarray[Any, Any]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    _, _, kind, rank = struct.unpack(">BBBB", data[:4])
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    values = struct.iter_unpack(f">{_IDX[kind]}", data[4 + 4 * rank :])
    return np.array([v for (v,) in values], {"B": "u1", "f": "f4", "d": "f8"}.get(_IDX[kind], "i8")).reshape(shape)


def _rows(inputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> Rows:
    shape = inputs.shape
    if inputs.ndim == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS:
        inputs = np.moveaxis(inputs, 3, 1)
    if inputs.dtype == np.uint8:
        inputs = inputs.astype(np.float32) / np.float32(255)
    return _pairs(_plain(inputs), _plain(targets))


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _pairs(inputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> Rows:
    return Counter((x.tobytes(), y.tobytes()) for x, y in zip(inputs, targets, strict=True))
