"""Splits that are not in memory: examples are read from a data set, by their numbers, when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from archir.errors import ArchirError, FileError, GrowError
from archir.growing.collation import collated
from archir.growing.examples import Change, Examples, Part, Split
from archir.growing.reading import as_in_a_process_of_its_own, check_finite, explained, seed_all
from archir.ir.seeds import derived_seed
from archir.scoring.pairs import pair_of


class MapStyle(Protocol):
    """A data set that has a length and gives any of its examples by its number, as those of `torch.utils.data` do."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, number: int, /) -> Any:
        """Return an example."""


@dataclass(frozen=True, eq=False)
class Streamed(Split):
    """Examples of a data set, read when they are asked for.

    What a data set draws from the global generators of torch, NumPy and Python while it reads is seeded for every
    example of a batch, so that it is the same whichever process reads it, whatever was read before, and however many
    processes have parts of the batch. Generators of its own are not: what it draws from these may differ from run to
    run. What `collate` draws follows from the last example of the part it is given.

    Attributes:
        dataset: gives the examples.
        where: where they come from, for errors.
        collate: makes a batch of a list of examples: a pair (inputs, targets), or a mapping, see `pair_of`.
        workers: how many processes read ahead; 0 to read when a batch is asked for.
        numbers: which examples of the data set are those of the split, `[examples]`; all of them if not given.
        changes: what is done to every batch in turn.
        names: of arguments of the model that are given by name, see `pair_of`.

    Raises:
        FileError: there are no examples.
        GrowError: the data set has no length.
    """

    dataset: MapStyle
    where: str
    collate: Callable[[list[Any]], Any] = collated
    workers: int = 0
    numbers: torch.Tensor | None = None
    changes: tuple[Change, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self):
            raise FileError("there are no examples", where=self.where)

    def __len__(self) -> int:
        if self.numbers is not None:
            return len(self.numbers)
        with explained(f"the length of {self.where}"):
            return len(self.dataset)

    def __repr__(self) -> str:
        return f"Streamed({len(self)} examples from {self.where})"

    def take(self, examples: torch.Tensor | slice) -> Examples:
        """Return some of the examples, given as numbers or as a slice, in memory.

        Raises:
            FileError: they are damaged, differ in shape, are not finite, or there are none where they should be.
            GrowError: the data set, or what makes batches, fails.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        with as_in_a_process_of_its_own():
            return self.read(self._numbers(examples), 0, 0)

    def part(self, examples: torch.Tensor | slice) -> Streamed:
        """Return the split made of some of its examples, of which none is read."""
        return replace(self, numbers=torch.tensor(self._numbers(examples), dtype=torch.int64))

    def changed(self, change: Change) -> Streamed:
        """Return the split with its batches changed when they are read, by a function that can be pickled."""
        return replace(self, changes=(*self.changes, change))

    def batches(self, parts: Sequence[Part], *, pin: bool = False) -> Iterator[Examples]:
        """Yield batches of the examples in turn, read ahead where there are workers; a few are not worth starting them.

        Args:
            parts: what each is made of.
            pin: let the workers' batches be handed over in pinned memory.

        Raises:
            FileError: examples are damaged, differ in shape, are not finite, or there are none where they should be.
            GrowError: the data set, or what makes batches, fails, or a worker does.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        # Plain numbers: of every tensor that is sent to a process a file stays open.
        rows = ((self._numbers(examples), seed, first) for examples, seed, first in parts)
        if len(parts) < FEWEST * self.workers or not self.workers:
            for row in rows:
                with as_in_a_process_of_its_own():
                    batch = self.read(*row)
                yield batch
            return
        # The generator is one of its own, for the loader draws from it.
        reader: DataLoader[Any] = DataLoader(
            _Reader(self),
            batch_size=None,
            sampler=rows,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
            pin_memory=pin,
        )
        for found in _answers(reader, self.where):
            if isinstance(found, ArchirError):
                raise found
            yield found

    def _numbers(self, examples: torch.Tensor | slice) -> list[int]:
        """Return the numbers in the data set of examples of the split."""
        if self.numbers is not None:
            return _plain(self.numbers[examples])
        return list(range(*examples.indices(len(self)))) if isinstance(examples, slice) else _plain(examples)

    def read(self, numbers: Sequence[int], seed: int, first: int) -> Examples:
        """Return a batch of the data set; the global generators of random numbers are left as it leaves them.

        Args:
            numbers: of examples of the data set, not of the split.
            seed: of what is random when the batch is read.
            first: the place in the batch of the first of them.

        Raises:
            FileError: examples are damaged, differ in shape, are not finite, or there are none where they should be.
            GrowError: the data set, or what makes batches, fails.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        items = [self._item(number, derived_seed(seed, place)) for place, number in enumerate(numbers, first)]
        place = f"the batch of examples {_listed(numbers)} of {self.where}"
        with explained(place):
            found = self.collate(items)
        inputs, targets = pair_of(found, place, self.names)
        batch = Examples(inputs, targets, place)
        if len(batch) != len(numbers):
            raise GrowError(
                f"a batch of {len(numbers)} examples has {len(batch)} targets",
                where=place,
                why="what makes batches of examples has to keep their number" if self.collate is not collated else "",
            )
        for change in self.changes:
            batch = change(batch)
        batch = replace(batch, where=self.where)
        check_finite(batch, numbers)
        return batch

    def _item(self, number: int, seed: int) -> Any:
        seed_all(seed)
        with explained(f"example {number} of {self.where}", _TOO_LONG):
            return self.dataset[number]


@dataclass(frozen=True)
class _Reader(Dataset[Any]):
    """Reads batches in a worker, which gives back errors as they are: raised there, they would lose what they say."""

    split: Streamed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: tuple[list[int], int, int]) -> Examples | ArchirError:
        try:
            return self.split.read(*row)
        except ArchirError as error:
            error.__cause__ = None
            return error


def _plain(numbers: torch.Tensor) -> list[int]:
    return list(map(int, numbers.tolist()))


def _as_it_is(found: Any) -> Any:
    return found


def _answers(reader: DataLoader[Any], where: str) -> Iterator[Any]:
    """Yield what workers read; whatever goes wrong with the processes themselves is told as one error."""
    try:
        yield from reader
    except Exception as error:  # of the system, or of what could not be sent to a process or back
        raise GrowError(
            "a process that reads examples failed",
            where=where,
            why=f"{type(error).__name__}: {error}",
            hint="read with fewer workers, or with none: 0",
        ) from error


def _listed(numbers: Sequence[int]) -> str:
    """Return numbers as a message lists them, cut short."""
    return ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")


_TOO_LONG = "if there is no such example, let the length of the data set be the number of its examples"

FEWEST = 2
"""How many batches there are for each worker at least: processes are started anew for every pass, which takes time."""

SHOWN = 8
"""How many examples of a batch an error names."""
