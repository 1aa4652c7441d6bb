"""Examples of several sizes, such as sequences of several lengths: those of one size stand together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from archir.errors import FileError
from archir.growing.examples import Change, Examples, Part, Split
from archir.scoring.targets import tensors_of


@dataclass(frozen=True, eq=False)
class Ragged(Split):
    """Examples in memory of which not all have one shape; a batch of them holds those of one.

    Attributes:
        pieces: those of each shape, in order; there are two at least.
    """

    pieces: tuple[Examples, ...]
    where: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", self.pieces[0].where)

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} examples of {len(self.pieces)} shapes from {self.where or 'tensors'})"

    def part(self, examples: torch.Tensor | slice) -> Examples | Ragged:
        """Return the split made of some of its examples, piece by piece.

        Raises:
            FileError: there are none.
        """
        numbers = torch.arange(len(self))[examples]
        found, start = list[Examples](), 0
        for piece in self.pieces:
            own = numbers[(numbers >= start) & (numbers < start + len(piece))] - start
            found += [piece.take(own)] if len(own) else []
            start += len(piece)
        if not found:
            raise FileError("there are no examples", where=self.where)
        return found[0] if len(found) == 1 else Ragged(tuple(found))

    def take(self, examples: torch.Tensor | slice) -> Examples:
        """Return some of the examples as one.

        Raises:
            FileError: there are none, or they differ in shape.
        """
        found = self.part(examples)
        return found if isinstance(found, Examples) else together(list(found.pieces))

    def batches(self, parts: Sequence[Part], *, pin: bool = False) -> Iterator[Examples]:
        """Yield batches of the examples in turn; those of one are of one shape.

        Raises:
            FileError: they differ in shape.
        """
        return (self.take(examples) for examples, *_ in parts)

    def changed(self, change: Change) -> Ragged:
        """Return the split with its examples changed."""
        return Ragged(tuple(map(change, self.pieces)))


def are_alike(one: Examples, other: Examples) -> bool:
    """Say whether examples are of one shape, so that they fit into one batch."""
    return _shape(one) == _shape(other)


def differ_in_size(one: Examples, other: Examples) -> bool:
    """Say whether examples would fit into one batch but for the sizes of axes."""
    left, right = ([(name, t.dtype, len(shape)) for name, t, shape in _parts(part)] for part in (one, other))
    return left == right and not are_alike(one, other)


def _parts(examples: Examples) -> list[tuple[str, torch.Tensor, torch.Size]]:
    named = (*tensors_of(examples.inputs, "inputs"), *tensors_of(examples.targets))
    return [(name, tensor, tensor.shape[1:]) for name, tensor in named]


def _shape(examples: Examples) -> list[tuple[str, torch.dtype, torch.Size]]:
    return [(name, tensor.dtype, shape) for name, tensor, shape in _parts(examples)]


def joined(parts: Sequence[Examples]) -> Examples | Ragged:
    """Return examples one after the other, those of each shape together.

    Raises:
        FileError: they differ in more than the sizes of axes.
    """
    groups: list[list[Examples]] = []
    for part in parts:
        group = next((g for g in groups if are_alike(g[0], part)), None)
        if group is None and groups and not differ_in_size(groups[0][0], part):
            group = groups[0]  # what is wrong is told when they are put together
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    pieces = tuple(map(together, groups))
    return pieces[0] if len(pieces) == 1 else Ragged(pieces)


def together(parts: Sequence[Examples]) -> Examples:
    """Return examples one after the other, as one; a single part is returned as it is.

    Raises:
        FileError: they differ in shape, or in what they hold.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        inputs, targets = (_joined([getattr(part, name) for part in parts]) for name in ("inputs", "targets"))
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise FileError(
            "batches do not fit together",
            where=f"{parts[0].where}, and those after it",
            why=f"{type(error).__name__}: {error}",
            hint="bring all batches to one shape, for they are cut and joined to the batch_size of the run, or give a "
            "network whose inputs may have any size: archir.trace(model, (x,), dynamic=...)",
        ) from error
    return Examples(inputs, targets, parts[0].where)


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        if any(part.keys() != first.keys() for part in parts):
            raise ValueError("their entries have other names")
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(_joined(list(some)) for some in zip(*parts, strict=True))
    return torch.cat(parts)
