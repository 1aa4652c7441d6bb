"""Data sets: read from where a configuration says, in memory or not, split, and standardised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits

from archir.errors import FileError, GrowError, suggest
from archir.growing.examples import Change, Examples, Inputs, Split, make_split, sample
from archir.growing.files import SPLITS, Source, open_path
from archir.growing.given import split_of
from archir.growing.importing import invoke, load_object
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
    train: Split
    validation: Split
    classes: tuple[str, ...]
    read_test: Callable[[], Split] = field(repr=False)

    @cached_property
    def test(self) -> Split:
        """What the final model is judged on; read when it is first asked for.

        Raises:
            FileError: the test data are damaged, or do not look like the training data.
        """
        return self.read_test()

    def changed(self, change: Change) -> Dataset:
        """Return the data with the examples of every split changed, see `Split.changed`."""
        train, validation = self.train.changed(change), self.validation.changed(change)
        return replace(self, train=train, validation=validation, read_test=lambda: self.test.changed(change))


def load_data(
    spec: str,
    *,
    base: Path = Path(),
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    normalise: bool = True,
    workers: int | None = None,
    names: Sequence[str] = (),
) -> Dataset:
    """Return the data set a spec names.

    A spec is one of:

    - `digits`: scikit-learn's 1,797 digits, `[n, 1, 8, 8]`;
    - a `.npz` with `x` and `y`, `images` and `labels`, `x_train`, `y_train`, `x_test`, `y_test` and the like,
      or with JPEG images (`jpeg`, `offsets`, `labels`);
    - an IDX file of images (or a folder of them) with the labels beside, plain or gzipped;
    - a folder of class folders of images, or of such folders called `train`, `validation`, `test`; where these would
      take more than half a gibibyte as numbers they are not kept in memory, but decoded when they are asked for;
    - `module:function` or `file.py:function`, which returns examples, or a dictionary of such by split: a pair of
      arrays, a data set with a length, a `DataLoader`, and all else that `archir.growing.given.split_of` takes; one
      that returns a generator, or another iterator, is called again for every pass. They are not standardised, and
      read batch by batch unless they are arrays in memory. Of what can only be iterated no part can be held out: its
      validation and test data have to be given, too, in a dictionary or as below;
    - `train=SPEC, test=SPEC, validation=SPEC`, with test and validation optional.

    Bytes are intensities, brought to numbers from 0 to 1.

    Test data that are not given are a random part of all data, the same for every seed; validation data that
    are not given are a random part of the training data, drawn by the seed.

    Args:
        spec: where the data are.
        base: folder that relative paths start from.
        validation: part of the training data to validate on, if no validation data are given.
        test: part of the data to test on, if no test data are given.
        seed: seed of the draw of the validation data.
        limit: use only the first `limit` examples for training and, if drawn from them, validation.
        normalise: standardise each channel (axis 1) by its mean and deviation over the training data, or over some of
            those that are not in memory.
        workers: how many processes read examples that are not in memory; as many as a DataLoader says, or none, if
            not given. What is read does not depend on it, unless a data set draws from generators of its own.
        names: of the arguments of the model that are given by name, if they are known: an entry of a mapping that has
            one of them is that argument, and not the first, though it is the only one.

    Raises:
        FileError: data are missing, damaged, of different lengths, or of no known kind.
        GrowError: the spec or an option makes no sense, or the user's function fails or returns no examples.
        ScoreError: examples that are mappings have no entry of targets.
    """
    if workers is not None and workers < 0:
        raise GrowError(f"workers is {workers}, not a number of processes")
    for name, part in (("validation", validation), ("test", test)):
        if not 0 < part < 1:
            raise GrowError(f"{name} is {part}, not a part of the data", hint="give a number between 0 and 1")
    source = _open(spec, base, names)
    main, readers = _main(source, spec)
    given = [_matching(readers["validation"](), main)] if "validation" in readers else []
    classes = source.classes or _classes(main, *given)
    for split in (main, *given):
        _with_labels(split, classes)
    if "test" not in readers:
        main, held = _carve(main, test, seed=0)
        readers["test"] = _holding(held)
    if limit is not None:
        if main.count is None:
            hint = "let the function end: return itertools.islice(batches, 100), say"
            raise GrowError("a limit is one of examples that have numbers", why=_ONLY_ITERATED.format(spec), hint=hint)
        main = main.part(slice(_checked_limit(limit, main.count)))
    train, held_out = (main, given[0]) if given else _carve(main, validation, seed)
    standardise = _standardiser(train) if normalise and not _is_function(spec) else _as_floats

    def finished(split: Split) -> Split:
        return split_of(split.changed(standardise), split.where, workers=workers)

    def read_test() -> Split:
        return finished(_with_labels(_matching(readers["test"](), main), classes))

    return Dataset(spec, finished(train), finished(held_out), classes, read_test)


def _open(spec: str, base: Path, names: Sequence[str]) -> Source:
    if re.match(r"\s*\w+\s*=", spec):
        return _open_parts(spec, base, names)
    if spec == "digits":
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        return Source({"all": _holding(make_split(images, digits.target, spec))}, tuple(map(str, range(10))))
    if _is_function(spec):
        return _from_function(load_object(spec, base=base), spec, names)
    path = base / Path(spec).expanduser()
    if not path.exists() and re.fullmatch(r"\w+", spec):
        raise FileError(f"there are no data {spec!r}", where=str(path), hint=suggest(spec, ["digits"]))
    return open_path(path)


def _is_function(spec: str) -> bool:
    return "=" not in spec and re.search(r":[A-Za-z_][\w.]*$", spec) is not None


def _open_parts(spec: str, base: Path, names: Sequence[str]) -> Source:
    readers: dict[str, Callable[[], Split]] = {}
    classes: tuple[str, ...] = ()
    for part in spec.split(","):
        name, _, place = (s.strip() for s in part.partition("="))
        if name not in SPLITS or not place or name in readers:
            raise GrowError(f"{part.strip()!r} is not a part of the data", where=spec, hint=suggest(name, SPLITS))
        source = _open(place, base, names)
        if set(source.readers) != {"all"}:
            held = ", ".join(source.readers)
            raise FileError(f"{place} cannot be the {name} data", why=f"it is split itself, into {held}", where=spec)
        if classes and source.classes and source.classes != classes:
            raise FileError(f"the classes of {place} are not those of the other data", where=spec)
        readers[name], classes = source.readers["all"], classes or source.classes
    return Source(readers, classes)


def _from_function(function: Any, spec: str, names: Sequence[str]) -> Source:
    result = invoke(function, spec)
    parts = {"all": function if isinstance(result, Iterator) else result}
    if isinstance(result, Mapping) and "train" in result:
        wrong = sorted(set(map(str, result)) - set(SPLITS))
        if wrong:
            raise GrowError(f"{spec} returns data called {wrong[0]!r:.80}", hint=suggest(wrong[0], SPLITS))
        parts = dict(result)
    found = {}
    for name, part in parts.items():
        where = f"the data of {spec}" if name == "all" else f"the {name} data of {spec}"
        found[name] = _holding(split_of(part, where, names=names).changed(_in_form))
    return Source(found)


def _in_form(examples: Examples) -> Examples:
    """Return examples in the form models take."""
    return make_split(examples.inputs, examples.targets, examples.where, truths=True)


_ONLY_ITERATED = "{} can only be iterated"


def _holding(split: Split) -> Callable[[], Split]:
    return lambda: split


def _main(source: Source, spec: str) -> tuple[Split, dict[str, Callable[[], Split]]]:
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


def _carve(split: Split, part: float, seed: int) -> tuple[Split, Split]:
    """Return the rest and a random part of a split."""
    if split.count is None:
        raise GrowError(
            "no validation or test data can be held out",
            why=_ONLY_ITERATED.format(split.where),
            hint="give them, too: return a dictionary of train, validation and test, or name a function for each",
        )
    count = round(len(split) * part)
    if not 0 < count < len(split):
        raise FileError(f"{len(split)} examples cannot be parted {1 - part:g} : {part:g}", where=split.where)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.part(order[count:].sort().values), split.part(order[:count].sort().values)


def _matching(split: Split, train: Split) -> Split:
    """Return the split, which must have examples of the training data's shapes; the first of each are compared."""

    def shapes(found: Split) -> dict[str, tuple[int, ...]]:
        one = found.take(slice(1))
        inputs: Inputs = one.inputs
        named = {"inputs": inputs} if isinstance(inputs, torch.Tensor) else inputs
        return {name: tuple(t.shape[1:]) for name, t in {**named, **dict(tensors_of(one.targets))}.items()}

    if shapes(split) != shapes(train):
        raise FileError(
            "examples are not shaped like those of the training data",
            where=split.where,
            why=f"{shapes(split)} instead of {shapes(train)}",
        )
    return split


def _labels(split: Split) -> torch.Tensor | None:
    """Return the targets if they are class numbers in memory, `[examples]`."""
    found = split.targets if isinstance(split, Examples) else None
    return found if isinstance(found, torch.Tensor) and found.dim() == 1 and not found.is_floating_point() else None


MOST_CLASSES = 2**20
"""The most classes there are where they are counted by the largest class number; a larger one is a mistake."""


def _classes(*splits: Split) -> tuple[str, ...]:
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


def _with_labels(split: Split, classes: tuple[str, ...]) -> Split:
    """Return the split, whose class numbers must be in range; those that are not in memory are checked in a run."""
    if not classes or not isinstance(split, Examples):
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


@dataclass(frozen=True)
class _Standardise:
    """Takes a mean from every channel, and divides it by a scale; a class, for it is sent to other processes."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __call__(self, split: Examples) -> Examples:
        values = _as_floats(split).inputs
        return (
            replace(split, inputs=(values - self.mean).div_(self.scale)) if isinstance(values, torch.Tensor) else split
        )


def _standardiser(train: Split) -> Change:
    """Return the map that gives every channel of the training data mean 0 and deviation 1."""
    inputs = _as_floats(sample(train)).inputs
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
    return _Standardise(mean, torch.where(deviation > 0, deviation, torch.ones(())))
