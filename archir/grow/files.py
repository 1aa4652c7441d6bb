"""Readers of data files: `.npz`, JPEG bytes in `.npz`, IDX, and folders of class folders."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from archir.errors import FileError
from archir.grow.split import Split, make_split

Array = NDArray[np.generic]

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "t10k"),
}
"""What the splits are called in file names, folders and keys."""

PAIRS = (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "labels"), ("data", "target"), ("inputs", "targets"))
"""What inputs and targets are called in a `.npz`, alone or with a split before or after: `x_train`, `train_images`."""

JPEG = ("jpeg", "offsets", "labels")
"""Keys of a `.npz` of JPEG images: all bytes, where each image starts (and the last ends), class numbers."""

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


@dataclass(frozen=True)
class Source:
    """Splits that can be read; what can be checked without reading them has been.

    Attributes:
        readers: by name: `train`, `validation`, `test`, or `all` where they are not told apart.
        classes: names of the classes, empty if the source has none.
    """

    readers: Mapping[str, Callable[[], Split]]
    classes: tuple[str, ...] = ()


def open_path(path: Path) -> Source:
    """Return the source of a file or folder, by what it holds.

    Raises:
        FileError: it is missing, damaged, or of no known kind.
    """
    if not path.exists():
        raise FileError(f"there is no file or folder {path}")
    if path.is_dir():
        return _open_idx_folder(path) if any(path.glob("*images*idx*")) else _open_class_folders(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    if "idx" in path.name:
        return Source({"all": _idx_reader(path)})
    raise FileError(f"{path} is of no known kind", mend="data are .npz files, IDX files, or folders of class folders")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path} is damaged or not what it seems", why=f"{type(error).__name__}: {error}") from error


def _open_npz(path: Path) -> Source:
    with _reading(path), path.open("rb") as file, np.load(file) as arrays:
        keys = set(arrays.files)
        classes = tuple(map(str, arrays["classes"])) if "classes" in keys else ()
    if keys.issuperset(JPEG):
        return Source({"all": lambda: _read_jpeg(path)}, classes)
    found = {split: pair for split in ("all", *SPLITS) if (pair := _pair(keys, split))}
    used = {key for pair in found.values() for key in pair}
    known = {key for split in ("all", *SPLITS) for pair in _pairs(split) for key in pair}
    if not found or (keys & known) - used:
        raise FileError(
            f"{path} does not hold pairs of inputs and targets",
            why=f"its keys are {', '.join(sorted(keys))}",
            mend="name them x and y, images and labels, or x_train, y_train, x_test, y_test",
        )
    return Source({split: _npz_reader(path, pair) for split, pair in found.items()}, classes)


def _pairs(split: str) -> Iterator[tuple[str, str]]:
    if split == "all":
        yield from PAIRS
        return
    for name in SPLITS[split]:
        for inputs, targets in PAIRS:
            yield f"{inputs}_{name}", f"{targets}_{name}"
            yield f"{name}_{inputs}", f"{name}_{targets}"


def _pair(keys: set[str], split: str) -> tuple[str, str] | None:
    return next((pair for pair in _pairs(split) if keys.issuperset(pair)), None)


def _npz_reader(path: Path, pair: tuple[str, str]) -> Callable[[], Split]:
    def read() -> Split:
        with _reading(path), path.open("rb") as file, np.load(file) as arrays:
            inputs, targets = arrays[pair[0]], arrays[pair[1]]
        return make_split(inputs, targets, f"{path}, {pair[0]} and {pair[1]}")

    return read


def _read_jpeg(path: Path) -> Split:
    with _reading(path), path.open("rb") as file, np.load(file) as arrays:
        data, offsets, labels = (arrays[key] for key in JPEG)
    starts = [int(o) for o in offsets]
    if not starts or starts[0] != 0 or starts[-1] != len(data) or any(b <= a for a, b in pairwise(starts)):
        raise FileError(f"{path} is damaged", why="its offsets do not run from 0 to the end of its bytes")
    pictures = data.tobytes()
    named = ((f"{path}, image {i}", io.BytesIO(pictures[a:b])) for i, (a, b) in enumerate(pairwise(starts)))
    return make_split(_decode(named), labels, str(path))


def _decode(named: Iterable[tuple[str, Path | io.BytesIO]]) -> Array:
    """Return images as bytes `[n, h, w, 3]`, or `[n, h, w]` if every one is grey."""
    pictures: list[Image.Image] = []
    for name, source in named:
        try:
            with Image.open(source) as picture:
                picture.load()
                if picture.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are no bytes (mode {picture.mode})")
                pictures.append(picture.convert("L" if picture.mode in ("L", "1") else "RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise FileError(f"{name} is not an image that can be read", why=str(error)) from error
        if pictures[-1].size != pictures[0].size:
            sizes = " and ".join(f"{w}x{h}" for w, h in (pictures[0].size, pictures[-1].size))
            raise FileError(f"images differ in size: {sizes}", where=name, mend="bring them all to one size first")
    mode = "L" if all(p.mode == "L" for p in pictures) else "RGB"
    return np.stack([np.asarray(p if p.mode == mode else p.convert(mode)) for p in pictures])


def _open_idx_folder(folder: Path) -> Source:
    readers: dict[str, Callable[[], Split]] = {}
    for path in sorted(folder.glob("*images*idx*")):
        split = next((s for s, names in SPLITS.items() if path.name.startswith(names)), "all")
        if split in readers:
            raise FileError(f"{folder} has two files of {split} images", where=path.name)
        readers[split] = _idx_reader(path)
    return Source(readers)


def _idx_reader(path: Path) -> Callable[[], Split]:
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    stems = dict.fromkeys((name, name.removesuffix(".gz"), f"{name.removesuffix('.gz')}.gz"))
    labels = next((path.with_name(n) for n in stems if n != path.name and path.with_name(n).is_file()), None)
    if labels is None:
        raise FileError(f"the labels of {path} are missing", mend=f"they should be in {path.with_name(name)}")
    return lambda: make_split(read_idx(path), read_idx(labels), f"{path} and {labels.name}")


_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> Array:
    """Return the array in an IDX file, plain or gzipped.

    Raises:
        FileError: it is missing, damaged, cut short or too long.

    Source: the format of the MNIST files (LeCun, Cortes, Burges, 1998).
    """
    with _reading(path):
        content = path.read_bytes()
        data = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES or len(data) < 4 + 4 * data[3]:
        raise FileError(f"{path} is not an IDX file")
    kind, start = np.dtype(_IDX_TYPES[data[2]]), 4 + 4 * data[3]
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    wanted = math.prod(shape) * kind.itemsize
    if len(data) - start != wanted:
        raise FileError(f"{path} is damaged", why=f"it has {len(data) - start} bytes of data instead of {wanted}")
    values: Array = np.frombuffer(data, kind, offset=start).reshape(shape)
    return values.astype(kind.newbyteorder("="))


def _open_class_folders(folder: Path) -> Source:
    parts = {path.name: path for path in _visible(folder) if path.is_dir()}
    splits = {split: parts[name] for split, names in SPLITS.items() for name in names if name in parts}
    roots = splits if "train" in splits else {"all": folder}
    if len(roots) != len(parts) and "train" in splits:
        raise FileError(f"{folder} has folders beside its splits", where=", ".join(sorted(parts)))
    classes = {split: _class_names(root) for split, root in roots.items()}
    first = next(iter(classes.values()))
    for split, names in classes.items():
        if names != first:
            differing = ", ".join(sorted(set(names) ^ set(first)))
            raise FileError(f"the classes of {split} are not those of the training data", where=differing)
    return Source({split: _folder_reader(root, first) for split, root in roots.items()}, first)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    wrong = [p.name for p in _visible(folder) if not p.is_dir()]
    names = tuple(p.name for p in _visible(folder) if p.is_dir())
    if not names or wrong:
        why = f"{', '.join(wrong[:5])} {'is no folder' if len(wrong) == 1 else 'are no folders'}" if wrong else "empty"
        raise FileError(f"{folder} is not a folder of class folders", why=why)
    return names


def _folder_reader(folder: Path, classes: Sequence[str]) -> Callable[[], Split]:
    files = [(label, path) for label, name in enumerate(classes) for path in _visible(folder / name)]
    for _, path in files:
        if path.suffix.lower() not in IMAGES:
            raise FileError(f"{path} is not an image", mend="a class folder holds image files only")
    if not files:
        raise FileError(f"{folder} has no images")

    def read() -> Split:
        return make_split(_decode((str(path), path) for _, path in files), [label for label, _ in files], str(folder))

    return read
