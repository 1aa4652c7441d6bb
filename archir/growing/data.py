"""Data sets: read from where a configuration says, split, and standardised."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits

from archir.errors import FileError, GrowError, suggest
from archir.growing.examples import Examples, Inputs, make_split
from archir.growing.files import SPLITS, Source, open_path
from archir.growing.importing import call_object
from archir.ir.room import too_large
from archir.scoring.targets import tensors_of


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test data.

    Attributes:
        name: what they were loaded from.
        train: what weights are trained on.
        validation: what decisions are taken on.
        classes: names of the classes; empty if the targets are not class numbers.
        read_test: reads the test data.
    """

    name: str
    train: Examples
    validation: Examples
    classes: tuple[str, ...]
    read_test: Callable[[], Examples] = field(repr=False)

    @cached_property
    def test(self) -> Examples:
        """What the final model is judged on; read when it is first asked for.

        Raises:
            FileError: the test data are damaged, or do not look like the training data.
        """
        return self.read_test()


def load_data(
    spec: str,
    *,
    base: Path = Path(),
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    normalise: bool = True,
) -> Dataset:
    """Return the data set a spec names.

    A spec is one of:

    - `digits`: scikit-learn's 1,797 digits, `[n, 1, 8, 8]`;
    - a `.npz` with `x` and `y`, `images` and `labels`, `x_train`, `y_train`, `x_test`, `y_test` and the like,
      or with JPEG images (`jpeg`, `offsets`, `labels`);
    - an IDX file of images (or a folder of them) with the labels beside, plain or gzipped;
    - a folder of class folders of images, or of such folders called `train`, `validation`, `test`;
    - `module:function` or `file.py:function`, which returns `(inputs, targets)` or a dictionary of such pairs by split;
      these are taken as they are, not standardised; inputs may be a mapping of arrays, targets a mapping or tuple;
    - `train=SPEC, test=SPEC, validation=SPEC`, with test and validation optional.

    Test data that are not given are a random part of all data, the same for every seed; validation data that
    are not given are a random part of the training data, drawn by the seed.

    Args:
        spec: where the data are.
        base: folder that relative paths start from.
        validation: part of the training data to validate on, if no validation data are given.
        test: part of the data to test on, if no test data are given.
        seed: seed of the draw of the validation data.
        limit: use only the first `limit` examples for training and, if drawn from them, validation.
        normalise: standardise each channel (axis 1) by its mean and deviation over the training data.

    Raises:
        FileError: data are missing, damaged, of different lengths, or of no known kind.
        GrowError: the spec or an option makes no sense, or the user's function fails.
    """
    for name, part in (("validation", validation), ("test", test)):
        if not 0 < part < 1:
            raise GrowError(f"{name} is {part}, not a part of the data", hint="give a number between 0 and 1")
    source = _open(spec, base)
    main, readers = _main(source, spec)
    given = [_matching(readers["validation"](), main)] if "validation" in readers else []
    classes = source.classes or _classes(main, *given)
    for split in (main, *given):
        _with_labels(split, classes)
    if "test" not in readers:
        main, held = _carve(main, test, seed=0)
        readers["test"] = _holding(held)
    if limit is not None:
        main = main.take(slice(_checked_limit(limit, len(main))))
    train, held_out = (main, given[0]) if given else _carve(main, validation, seed)
    standardise = _standardiser(train) if normalise and not _is_function(spec) else _as_floats

    def read_test() -> Examples:
        return standardise(_with_labels(_matching(readers["test"](), main), classes))

    return Dataset(spec, standardise(train), standardise(held_out), classes, read_test)


def _open(spec: str, base: Path) -> Source:
    if re.match(r"\s*\w+\s*=", spec):
        return _open_parts(spec, base)
    if spec == "digits":
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        return Source({"all": _holding(make_split(images, digits.target, spec))}, tuple(map(str, range(10))))
    if _is_function(spec):
        return _from_function(call_object(spec, base=base), spec)
    path = base / Path(spec).expanduser()
    if not path.exists() and re.fullmatch(r"\w+", spec):
        raise FileError(f"there are no data {spec!r}", where=str(path), hint=suggest(spec, ["digits"]))
    return open_path(path)


def _is_function(spec: str) -> bool:
    return "=" not in spec and re.search(r":[A-Za-z_][\w.]*$", spec) is not None


def _open_parts(spec: str, base: Path) -> Source:
    readers: dict[str, Callable[[], Examples]] = {}
    classes: tuple[str, ...] = ()
    for part in spec.split(","):
        name, _, place = (s.strip() for s in part.partition("="))
        if name not in SPLITS or not place or name in readers:
            raise GrowError(f"{part.strip()!r} is not a part of the data", where=spec, hint=suggest(name, SPLITS))
        source = _open(place, base)
        if set(source.readers) != {"all"}:
            held = ", ".join(source.readers)
            raise FileError(f"{place} cannot be the {name} data", why=f"it is split itself, into {held}", where=spec)
        if classes and source.classes and source.classes != classes:
            raise FileError(f"the classes of {place} are not those of the other data", where=spec)
        readers[name], classes = source.readers["all"], classes or source.classes
    return Source(readers, classes)


def _from_function(result: Any, spec: str) -> Source:
    if isinstance(result, tuple) and len(result) == 2:
        pairs: Mapping[str, Any] = {"all": result}
    elif isinstance(result, Mapping) and result and set(result) <= set(SPLITS):
        pairs = result
    else:
        raise GrowError(
            f"{spec} returns {type(result).__name__}, not data",
            hint="return (inputs, targets), or a dictionary of such pairs with keys train, validation, test",
        )
    for name, pair in pairs.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise GrowError(f"the {name} data of {spec} are not a pair (inputs, targets)")
    return Source({name: _holding(make_split(x, y, f"{spec}, {name}")) for name, (x, y) in pairs.items()})


def _holding(split: Examples) -> Callable[[], Examples]:
    return lambda: split


def _main(source: Source, spec: str) -> tuple[Examples, dict[str, Callable[[], Examples]]]:
    """Return the data to train on, and the readers of the other splits."""
    readers = dict(source.readers)
    name = "train" if "train" in readers else "all"
    if name not in readers:
        raise FileError(f"{spec} has no training data", why=f"it has {', '.join(readers)}")
    if name == "train" and "all" in readers:
        raise FileError(f"{spec} has data that belong to no split beside its training data")
    return readers.pop(name)(), readers


def _checked_limit(limit: int, count: int) -> int:
    if not 0 < limit <= count:
        raise GrowError(f"limit is {limit}, the data have {count} examples to train on")
    return limit


def _carve(split: Examples, part: float, seed: int) -> tuple[Examples, Examples]:
    """Return the rest and a random part of a split."""
    count = round(len(split) * part)
    if not 0 < count < len(split):
        raise FileError(f"{len(split)} examples cannot be parted {1 - part:g} : {part:g}", where=split.where)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.take(order[count:].sort().values), split.take(order[:count].sort().values)


def _matching(split: Examples, train: Examples) -> Examples:
    """Return the split, which must have examples of the training data's shapes."""

    def shapes(found: Examples) -> dict[str, tuple[int, ...]]:
        inputs: Inputs = found.inputs
        named = {"inputs": inputs} if isinstance(inputs, torch.Tensor) else inputs
        return {name: tuple(t.shape[1:]) for name, t in {**named, **dict(tensors_of(found.targets))}.items()}

    if shapes(split) != shapes(train):
        raise FileError(
            "examples are not shaped like those of the training data",
            where=split.where,
            why=f"{shapes(split)} instead of {shapes(train)}",
        )
    return split


def _labels(split: Examples) -> torch.Tensor | None:
    """Return the targets if they are class numbers, `[examples]`."""
    found = split.targets
    return found if isinstance(found, torch.Tensor) and found.dim() == 1 and not found.is_floating_point() else None


MOST_CLASSES = 2**20
"""The most classes there are where they are counted by the largest class number; a larger one is a mistake."""


def _classes(*splits: Examples) -> tuple[str, ...]:
    if _labels(splits[0]) is None:
        return ()
    found = [(int(labels.max()), labels, s) for s in splits if (labels := _labels(s)) is not None]
    most, labels, split = max(found, key=lambda one: one[0])
    if most >= MOST_CLASSES:
        raise FileError(
            f"the class number {most} is too large",
            where=f"example {int(labels.argmax())} of {split.where}",
            hint=f"class numbers start at 0 and are below {MOST_CLASSES}; targets that are values are floats",
        )
    return tuple(map(str, range(most + 1)))


def _with_labels(split: Examples, classes: tuple[str, ...]) -> Examples:
    """Return the split, whose class numbers must be in range."""
    if not classes:
        return split
    labels = _labels(split)
    if labels is None:
        raise FileError(f"there are {len(classes)} classes, but the targets are no class numbers", where=split.where)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        first = int(((labels < 0) | (labels >= len(classes))).nonzero()[0])
        raise FileError(
            f"class numbers run from {low} to {high}, there are {len(classes)} classes",
            where=f"{split.where}, example {first}",
        )
    return split


def _as_floats(split: Examples) -> Examples:
    """Return the split with intensities from 0 to 1 in place of bytes."""
    if isinstance(split.inputs, torch.Tensor) and split.inputs.dtype is torch.uint8:
        why = too_large(4 * split.inputs.numel())
        if why:
            raise FileError("the inputs are too large as numbers from 0 to 1", where=split.where, why=why)
        return replace(split, inputs=split.inputs.float().div_(255))
    return split


def _standardiser(train: Examples) -> Callable[[Examples], Examples]:
    """Return the map that gives every channel of the training data mean 0 and deviation 1."""
    inputs = _as_floats(train).inputs
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        return _as_floats
    if not bool(torch.isfinite(inputs).all()):
        place = (~torch.isfinite(inputs)).nonzero()[0].tolist()
        raise FileError(
            f"the inputs hold {float(inputs[tuple(place)])}",
            where=f"{train.where}, example {place[0]}, position {place[1:]}",
            hint="leave such examples out, or put numbers in their place",
        )
    axes = [d for d in range(inputs.dim()) if d != 1]
    deviation, mean = torch.std_mean(inputs, dim=axes, correction=0, keepdim=True)
    scale = torch.where(deviation > 0, deviation, torch.ones(()))

    def standardise(split: Examples) -> Examples:
        values = _as_floats(split).inputs
        return replace(split, inputs=(values - mean).div_(scale)) if isinstance(values, torch.Tensor) else split

    return standardise
