"""A split of a data set: inputs and targets, example by example; in memory, or read when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from archir.errors import FileError
from archir.ir.room import too_large
from archir.scoring.targets import Targets, map_tensors, tensors_of

Inputs = torch.Tensor | Mapping[str, torch.Tensor]
"""What a model is called with: one tensor, or several by argument name; the first axis runs over the examples."""


Part = tuple[torch.Tensor, int, int]
"""The numbers of the examples of a batch or of a part of it, `[examples]`; the seed of what is random when a batch is
read; and the place of the first of them in the batch."""


Change = Callable[["Examples"], "Examples"]
"""What is done to examples when they are read."""


class Split(ABC):
    """Examples with their targets, a known number of them, of which any can be had by their numbers.

    Those that can only be iterated (`archir.growing.iterated`) have neither, and raise an UnnumberedError where a
    length or a number is asked for, but for the first ones.

    Attributes:
        where: where they come from, for errors.
    """

    where: str

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def count(self) -> int | None:
        """How many there are, None where that is not known."""
        return len(self)

    @abstractmethod
    def take(self, examples: torch.Tensor | slice) -> Examples:
        """Return some of the examples, given as numbers or as a slice, in memory.

        Raises:
            FileError: they cannot be read.
            GrowError: code of the user's that reads them fails.
            ScoreError: they are neither pairs nor mappings with targets.
        """

    @abstractmethod
    def part(self, examples: torch.Tensor | slice) -> Split:
        """Return the split made of some of its examples, of which none is read."""

    @abstractmethod
    def batches(self, parts: Sequence[Part], *, pin: bool = False) -> Iterator[Examples]:
        """Yield batches of the examples in turn; no more of them are in memory than are asked for, or read ahead.

        Args:
            parts: what each is made of.
            pin: let processes that read ahead hand batches over in pinned memory, from which they go to a GPU.

        Raises:
            FileError: they cannot be read.
            GrowError: code of the user's that reads them fails.
            ScoreError: they are neither pairs nor mappings with targets.
        """

    @abstractmethod
    def changed(self, change: Change) -> Split:
        """Return the split with its examples changed, each by itself: here and now, or when they are read."""


@dataclass(frozen=True, eq=False)
class Examples(Split):
    """Examples with their targets, in memory.

    Attributes:
        inputs: `[examples, ...]`, or a mapping of such tensors by argument name.
        targets: `[examples, ...]`: class numbers (int64) or values (float); or a tuple or mapping of such tensors,
            which losses that are callables get as they are.
        where: where they come from, for errors.
    """

    inputs: Inputs
    targets: Targets
    where: str = ""

    def __post_init__(self) -> None:
        parts = self.inputs.values() if isinstance(self.inputs, Mapping) else (self.inputs,)
        if not parts or not all(isinstance(t, torch.Tensor) for t in parts):
            raise FileError("there are no inputs, or they are no tensors", where=self.where)
        tensors = {"inputs": self.inputs} if isinstance(self.inputs, torch.Tensor) else self.inputs
        wanted = dict(tensors_of(self.targets))
        if not wanted or not all(isinstance(t, torch.Tensor) for t in wanted.values()):
            raise FileError("there are no targets, or they are no tensors", where=self.where)
        lengths = {name: len(t) if t.dim() else 0 for name, t in {**tensors, **wanted}.items()}
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{n} in {name}" for name, n in lengths.items())
            raise FileError(f"the numbers of examples differ: {found}", where=self.where)
        if not len(self):
            raise FileError("there are no examples", where=self.where)

    def __len__(self) -> int:
        return next(len(t) for _, t in tensors_of(self.targets))

    def __repr__(self) -> str:
        return f"Examples({len(self)} examples from {self.where or 'tensors'})"

    def take(self, examples: torch.Tensor | slice) -> Examples:
        """Return the split made of some of its examples, given as numbers or as a slice."""
        inputs, targets = (map_tensors(lambda t: t[examples], part) for part in (self.inputs, self.targets))
        return Examples(inputs, targets, self.where)

    part = take

    def batches(self, parts: Sequence[Part], *, pin: bool = False) -> Iterator[Examples]:
        """Yield batches of the examples in turn; nothing about them is random, and nobody reads ahead."""
        return (self.take(examples) for examples, *_ in parts)

    def changed(self, change: Change) -> Examples:
        """Return the split with its examples changed."""
        return change(self)

    def pin_memory(self) -> Examples:
        """Return the same examples in pinned memory; a DataLoader asks for it by this name."""
        inputs, targets = (map_tensors(torch.Tensor.pin_memory, part) for part in (self.inputs, self.targets))
        return Examples(inputs, targets, self.where)


LOOKED_AT = 256
"""How many examples of a split that is not in memory stand for all of it where all would have to be read."""


AT_ONCE = 8
"""How many of them are in memory at once where they are only looked at."""


def sample(split: Split) -> Examples:
    """Return the examples of a split that are in memory, or some evenly spaced ones of those that are not.

    Of what can only be iterated they are the first ones.

    Raises:
        FileError: they cannot be read.
        GrowError: code of the user's that reads them fails.
        ScoreError: they are neither pairs nor mappings with targets.
    """
    if isinstance(split, Examples):
        return split
    return split.take(slice(LOOKED_AT) if split.count is None else _evenly_spaced(split.count))


def looked_at(split: Split) -> Iterator[tuple[Examples, torch.Tensor]]:
    """Yield the examples of a split that are in memory all at once, or a sample of others, a few at a time.

    Yields:
        Examples, and their numbers in the split, `[examples]`.

    Raises:
        FileError: they cannot be read.
        GrowError: code of the user's that reads them fails.
        ScoreError: they are neither pairs nor mappings with targets.
    """
    if isinstance(split, Examples) or split.count is None:
        found = sample(split)
        yield found, torch.arange(len(found))
        return
    numbers = _evenly_spaced(len(split))
    for some in numbers.tensor_split(-(-len(numbers) // AT_ONCE)):
        yield split.take(some), some


def _evenly_spaced(count: int) -> torch.Tensor:
    most = min(LOOKED_AT, count)
    return torch.arange(most) * count // most


def make_split(inputs: Any, targets: Any, where: str, *, truths: bool = False) -> Examples:
    """Return a split made of arrays, tensors or nested lists, brought into the form models take.

    Bytes are intensities, and those of images are given channel axes: `[n, h, w]` and `[n, h, w, c]`
    become `[n, c, h, w]`. Floats become float32, other integers int64. Targets lose a trailing axis of size 1
    if they are integers; they may be a mapping of arrays, or a tuple of arrays or tensors.

    Args:
        inputs: an array, or a mapping of arrays by argument name.
        targets: an array, or several.
        where: where they come from, for errors.
        truths: whether truth values of inputs stay what they are, such as masks; else they are integers.

    Raises:
        FileError: the arrays are not numeric, are empty, or differ in length.
    """
    if isinstance(inputs, Mapping):
        found: Inputs = {str(name): _numbers(array, name, where, truths=truths) for name, array in inputs.items()}
    else:
        found = _channels_first(_numbers(inputs, "inputs", where, intensities=True, truths=truths))
    return Examples(found, _targets(targets, "targets", where), where)


def _targets(given: Any, name: str, where: str) -> Targets:
    if isinstance(given, Mapping):
        return {str(key): _targets(part, f"{name}[{key!r}]", where) for key, part in given.items()}
    if isinstance(given, tuple) and all(isinstance(part, torch.Tensor | np.ndarray) for part in given):
        return tuple(_targets(part, f"{name}[{i}]", where) for i, part in enumerate(given))
    values = _numbers(given, name, where)
    return values[:, 0] if values.dim() == 2 and values.shape[1] == 1 and not values.is_floating_point() else values


def _numbers(array: Any, name: str, where: str, *, intensities: bool = False, truths: bool = False) -> torch.Tensor:
    try:
        tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))
    except (TypeError, ValueError) as error:
        raise FileError(f"the {name} are not numbers", where=where, why=str(error)) from error
    if tensor.dim() == 0:
        raise FileError(f"the {name} are one number, not one for each example", where=where)
    if tensor.is_complex():
        raise FileError(f"the {name} are complex numbers", where=where)
    if tensor.is_floating_point():
        return _converted(tensor, torch.float32, name, where)
    kept = (intensities and tensor.dtype is torch.uint8) or (truths and tensor.dtype is torch.bool)
    return tensor if kept else _converted(tensor, torch.int64, name, where)


def _converted(tensor: torch.Tensor, dtype: torch.dtype, name: str, where: str) -> torch.Tensor:
    """Return the numbers as another type, where there is room for them."""
    why = too_large(tensor.numel() * dtype.itemsize) if tensor.dtype != dtype else ""
    if why:
        raise FileError(f"the {name} are too large", where=where, why=why)
    return tensor.to(dtype)


def _channels_first(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 3 and tensor.dtype is torch.uint8:
        return tensor[:, None]
    channels = (1, 3, 4)
    if tensor.dim() == 4 and tensor.shape[3] in channels and tensor.shape[1] not in channels:
        return tensor.movedim(3, 1).contiguous()
    return tensor
