"""Splits that can only be iterated: read on and on, or pass by pass, in batches that are cut and joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from archir.errors import GrowError, UnnumberedError
from archir.growing.examples import LOOKED_AT, Change, Examples, Part, Split
from archir.growing.iterables import Reiterable
from archir.growing.ragged import are_alike, together
from archir.growing.reading import check_finite

Position = tuple[int, int, int]
"""What is read next: the number of a pass, that of a batch in it, as the user gives them, and of an example in that."""

START: Position = (0, 0, 0)

LONGEST = 2**24
"""The most examples of a pass that is to be read to its end; one that has more is taken to have none."""


class _Reading:
    """Examples from a position on, in batches; it holds those that were read and not given yet."""

    def __init__(
        self, parts: Iterator[tuple[Position, Examples]], position: Position, *, endless: bool, varies: bool
    ) -> None:
        self._parts, self._endless, self._varies = parts, endless, varies
        self._held = deque[tuple[Position, Examples]]()
        self._count, self._after = 0, position

    @property
    def position(self) -> Position:
        """What is given next."""
        return self._held[0][0] if self._held else self._after

    def next(self, size: int) -> Examples | None:
        """Return so many examples; at the end, the last two batches differ by one at most. None if there are no more.

        Where sizes vary there are fewer if the next are of others.

        Raises:
            ArchirError: they cannot be read, or do not fit together.
        """
        least = size if self._endless else 2 * size
        while self._count < least and (found := next(self._parts, None)) is not None:
            self._held.append(found)
            self._count += len(found[1])
        if not self._count:
            return None
        wanted = size if self._count >= least else self._count if self._count <= size else -(-self._count // 2)
        pieces = list[Examples]()
        while wanted and not (pieces and self._varies and not are_alike(pieces[0], self._held[0][1])):
            (number, batch, example), part = self._held.popleft()
            if len(part) > wanted:
                self._held.appendleft(((number, batch, example + wanted), part.take(slice(wanted, None))))
                part = part.take(slice(wanted))
            pieces.append(part)
            wanted -= len(part)
            self._count -= len(part)
            self._after = number, batch + 1, 0
        return together(pieces)


@dataclass
class _Place:
    """Where a split is read on.

    Attributes:
        position: what comes next, where nothing is being read.
        seed: of what the data draw.
        reading: what is being read, if anything.
    """

    position: Position = START
    seed: int = 0
    reading: _Reading | None = None


@dataclass(frozen=True, eq=False)
class Iterated(Split):
    """Examples of what can only be iterated, which have neither a length nor numbers.

    They are read on and on, pass after pass: whoever asks for the next batches gets those that come then. Batches have
    the size that is asked for: those that the user gives are cut, and joined, over the end of a pass, too. A pass that
    is to be read by itself, as evaluations do, ends with two batches of nearly equal size. One thing is iterated at a
    time: where a pass is read by itself, what was being read on begins again afterwards and is brought to where it was.

    Attributes:
        source: what is iterated.
        where: what it is, for errors.
        changes: what is done to every batch of the user's in turn.
        varies: whether batches may have different sizes, such as sequences of several lengths. A batch then has those
            of one size, and fewer examples than are asked for where the next ones are of another.
    """

    source: Reiterable
    where: str
    changes: tuple[Change, ...] = ()
    varies: bool = False
    _place: _Place = field(default_factory=_Place, repr=False)

    def __repr__(self) -> str:
        return f"Iterated({self.where})"

    @property
    def count(self) -> None:
        """Not known."""
        return

    def __len__(self) -> int:
        raise self._unnumbered("no length")

    def part(self, examples: torch.Tensor | slice) -> Split:
        """Raise an error: they have no numbers.

        Raises:
            UnnumberedError: always.
        """
        raise self._unnumbered("no numbers")

    def batches(self, parts: Sequence[Part], *, pin: bool = False) -> Iterator[Examples]:
        """Raise an error: they have no numbers.

        Raises:
            UnnumberedError: always.
        """
        raise self._unnumbered("no numbers")

    def changed(self, change: Change) -> Iterated:
        """Return the split with its batches changed when they are read; it is read on from the beginning."""
        return replace(self, changes=(*self.changes, change), _place=_Place())

    @cached_property
    def first(self) -> Examples:
        """The first examples of the first pass, which stand for all where all would have to be read; `LOOKED_AT`.

        Raises:
            FileError: there are none, or they are no batches, hold no finite numbers, or differ in shape.
            GrowError: code of the user's that gives them fails.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        return replace(_changed(self.source.first[0], self.changes), where=self.where)

    def take(self, examples: torch.Tensor | slice) -> Examples:
        """Return some of the first pass, counted from its beginning, in memory; those before them are read, too.

        They are of one size: those before the first of another, where sizes vary.

        Raises:
            FileError: they are no batches, hold no finite numbers, or differ in shape.
            GrowError: code of the user's that gives them fails.
            UnnumberedError: all are asked for.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        most = examples.stop if isinstance(examples, slice) else int(examples.max()) + 1
        if most is None or most < 0:
            raise self._unnumbered("no length")
        if most <= len(self.first) or self.varies or not self.source.first[2]:
            return self.first.take(examples)
        parts, found = list[Examples](), 0
        self.go_to(self.position, self._place.seed)
        for batch in replace(self, varies=True, _place=_Place()).one_pass(LOOKED_AT):
            if parts and not are_alike(parts[0], batch):
                break
            parts.append(batch)
            found += len(batch)
            if found >= most:
                break
        return together(parts).take(examples)

    @property
    def position(self) -> Position:
        """What is read on next."""
        place = self._place
        return place.position if place.reading is None else place.reading.position

    def go_to(self, position: Position, seed: int) -> None:
        """Read on from a position, from now on.

        Args:
            position: what comes next.
            seed: of what the data draw from generators that are seeded for them.
        """
        self._place.position, self._place.seed, self._place.reading = position, seed, None

    def following(self, size: int, most: int | None) -> Iterator[tuple[Position, Examples]]:
        """Yield the batches that come next, each of so many examples, and where it began; pass after pass.

        Args:
            size: examples of a batch.
            most: how many batches are wanted; without end if not given.

        Raises:
            FileError: they are no batches, hold no finite numbers, or differ in shape.
            GrowError: code of the user's that gives them fails, or gives nothing when it is iterated again.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        place, given = self._place, 0
        while most is None or given < most:
            if place.reading is None:
                parts = _parts(self.source, self.changes, place.position, place.seed, endless=True)
                place.reading = _Reading(parts, place.position, endless=True, varies=self.varies)
            position = place.reading.position
            try:
                batch = place.reading.next(size)
            except BaseException:
                place.position, place.reading = position, None
                raise
            assert batch is not None  # there is always another pass
            yield position, replace(batch, where=self.where)
            given += 1

    def one_pass(self, size: int) -> Iterator[Examples]:
        """Yield all examples of the first pass, in batches of so many; the last two are as large but for one.

        Raises:
            FileError: they are no batches, hold no finite numbers, or differ in shape.
            GrowError: there is no end, or code of the user's that gives them fails.
            ScoreError: a batch is neither a pair nor a mapping with targets.
        """
        self.go_to(self.position, self._place.seed)
        parts = _parts(self.source, self.changes, START, 0, endless=False)
        reading, given = _Reading(parts, START, endless=False, varies=self.varies), 0
        while (batch := reading.next(size)) is not None:
            given += len(batch)
            if given > LONGEST:
                raise GrowError(
                    f"{self.where} do not end",
                    why=f"they are to be read to their end, and have given {LONGEST:,} examples",
                    hint="end them: let the function return itertools.islice(batches, 100), say",
                )
            yield replace(batch, where=self.where)

    def _unnumbered(self, what: str) -> UnnumberedError:
        return UnnumberedError(
            f"{self.where} can only be iterated, and have {what}",
            hint="give arrays, or a data set with a length that gives any example by its number",
        )


def _parts(
    source: Reiterable, changes: Sequence[Change], position: Position, seed: int, *, endless: bool
) -> Iterator[tuple[Position, Examples]]:
    """Yield the batches of the user's from a position on, each with its own: of one pass, or of all.

    It holds no split: one that held what reads it would be freed by the garbage collector alone, in which the processes
    of a loader take seconds to end.
    """
    number, batch, example = position
    while True:
        for found in source.begin(number, seed, batch):
            changed = _changed(found, changes)
            yield (number, batch, example), changed.take(slice(example, None)) if example else changed
            batch, example = batch + 1, 0
        if not endless:
            return
        number, batch, example = number + 1, 0, 0


def _changed(batch: Examples, changes: Sequence[Change]) -> Examples:
    for change in changes:
        batch = change(batch)
    check_finite(batch, range(len(batch)))
    return batch


def of_any_size(split: Split) -> Split:
    """Return a split whose batches may have different sizes, if it can only be iterated; others as they are."""
    return replace(split, varies=True, _place=_Place()) if isinstance(split, Iterated) else split


def position_of(split: Split) -> Position | None:
    """Return what is read on next of a split that can only be iterated; None of others."""
    return split.position if isinstance(split, Iterated) else None


def go_to(split: Split, position: Sequence[int] | None, seed: int) -> None:
    """Read a split that can only be iterated on from a position, or from the beginning; others have none.

    Args:
        split: the split.
        position: what comes next.
        seed: of what the data draw from generators that are seeded for them.
    """
    if isinstance(split, Iterated):
        number, batch, example = START if position is None else position
        split.go_to((number, batch, example), seed)
