"""Readers of data files: `.npz`, JPEG bytes in `.npz`, IDX, and folders of class folders."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from archir.errors import FileError
from archir.growing.arrays import npz_keys, read_idx, read_npz
from archir.growing.examples import LOOKED_AT, Examples, Split, make_split
from archir.growing.images import FORMATS, decode_images, look_at
from archir.growing.streamed import Streamed

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
"""How the names of images end."""

LARGE = 2**29
"""The bytes that the images of a folder may take as numbers; of a larger one they are read when they are asked for."""


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
    raise FileError(f"{path} is of no known kind", hint="data are .npz files, IDX files, or folders of class folders")


def _open_npz(path: Path) -> Source:
    keys = npz_keys(path)
    classes = _class_list(path) if "classes" in keys else ()
    if keys.issuperset(JPEG):
        return Source({"all": lambda: _read_jpeg(path)}, classes)
    found = {split: pair for split in ("all", *SPLITS) if (pair := _pair(keys, split))}
    used = {key for pair in found.values() for key in pair}
    known = {key for split in ("all", *SPLITS) for pair in _pairs(split) for key in pair}
    if not found or (keys & known) - used:
        raise FileError(
            f"{path} does not hold pairs of inputs and targets",
            why=f"its keys are {', '.join(sorted(keys))}",
            hint="name them x and y, images and labels, or x_train, y_train, x_test, y_test",
        )
    return Source({split: _npz_reader(path, pair) for split, pair in found.items()}, classes)


def _class_list(path: Path) -> tuple[str, ...]:
    """Return the names of the classes that a `.npz` holds."""
    (names,) = read_npz(path, ("classes",))
    if names.ndim != 1:
        raise FileError(f"the classes in {path} are no list of names", why=f"their shape is {list(names.shape)}")
    return tuple(map(str, names))


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


def _npz_reader(path: Path, pair: tuple[str, str]) -> Callable[[], Examples]:
    def read() -> Examples:
        inputs, targets = read_npz(path, pair)
        return make_split(inputs, targets, f"{path}, {pair[0]} and {pair[1]}")

    return read


def _read_jpeg(path: Path) -> Examples:
    data, offsets, labels = read_npz(path, JPEG)
    if data.dtype != np.uint8 or data.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        raise FileError(f"{path} is damaged", why="its images are no row of bytes with whole numbers as offsets")
    starts = [int(o) for o in offsets]
    if not starts or starts[0] != 0 or starts[-1] != len(data) or any(b <= a for a, b in pairwise(starts)):
        raise FileError(f"{path} is damaged", why="its offsets do not run from 0 to the end of its bytes")
    pictures = data.tobytes()
    named = [(f"{path}, image {i}", io.BytesIO(pictures[a:b])) for i, (a, b) in enumerate(pairwise(starts))]
    return make_split(decode_images(named, ("JPEG",)), labels, str(path))


def _open_idx_folder(folder: Path) -> Source:
    readers: dict[str, Callable[[], Examples]] = {}
    for path in sorted(folder.glob("*images*idx*")):
        split = next((s for s, names in SPLITS.items() if path.name.startswith(names)), "all")
        if split in readers:
            raise FileError(f"{folder} has two files of {split} images", where=path.name)
        readers[split] = _idx_reader(path)
    return Source(readers)


def _idx_reader(path: Path) -> Callable[[], Examples]:
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    stems = dict.fromkeys((name, name.removesuffix(".gz"), f"{name.removesuffix('.gz')}.gz"))
    labels = next((path.with_name(n) for n in stems if n != path.name and path.with_name(n).is_file()), None)
    if labels is None:
        raise FileError(f"the labels of {path} are missing", hint=f"they should be in {path.with_name(name)}")
    return lambda: make_split(read_idx(path), read_idx(labels), f"{path} and {labels.name}")


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
            raise FileError(f"{path} is not an image", hint="a class folder holds image files only")
    if not files:
        raise FileError(f"{folder} has no images")

    def read() -> Split:
        pictures = look_at(files, LOOKED_AT)
        if pictures.size > LARGE:
            return Streamed(pictures, str(folder))
        named = [(str(path), path) for _, path in files]
        return make_split(decode_images(named, FORMATS), [label for label, _ in files], str(folder))

    return read
