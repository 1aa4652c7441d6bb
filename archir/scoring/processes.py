"""The processes among which the batches are shared out, sums over all of them, and what they tell each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from archir.errors import ProcessError


class Around(NamedTuple):
    """How many examples of the same batch other processes have before and after those of this one.

    What is random is drawn for the whole batch by every process, so that it does not depend on their number.
    """

    before: int = 0
    after: int = 0

    def cut(self, drawn: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """Return the part of this process of what was drawn for the whole batch, whose examples lie along an axis."""
        return drawn.narrow(axis, self.before, drawn.shape[axis] - self.before - self.after)


WHOLE = Around()
"""None: the batch is whole."""


@dataclass(frozen=True)
class Processes:
    """Processes that work on one graph together, each with batches, or parts of batches, of its own.

    All of them make the same calls in the same order, and get the same results.

    Attributes:
        group: the process group; None for one process alone.
        parts: whether they have parts of the same batches, cut by `part`; else each has batches of its own.

    Raises:
        ProcessError: by whatever is exchanged, if another process has ended or no longer answers.
    """

    group: ProcessGroup | None = None
    parts: bool = False

    @property
    def rank(self) -> int:
        """The number of this process among them."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many they are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def part(self, examples: int) -> slice:
        """Return which of so many examples are those of this process; parts differ by one at most."""
        return slice(examples * self.rank // self.size, examples * (self.rank + 1) // self.size)

    def around(self, examples: int) -> Around:
        """Return how many of so many examples are those of processes before and after this one."""
        part = self.part(examples)
        return Around(part.start, examples - part.stop)

    def sum(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Return tensors summed over all processes, on the device and in the element type they have.

        All are sent as one, in float64.
        """
        if self.group is None or not tensors:
            return list(tensors)
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        flat = torch.cat([t.detach().to(device, torch.float64).reshape(-1) for t in tensors])
        with exchanging():
            dist.all_reduce(flat, group=self.group)
        parts = torch.split(flat, [t.numel() for t in tensors])
        return [part.reshape(t.shape).to(t) for part, t in zip(parts, tensors, strict=True)]

    def total(self, *numbers: float) -> Sequence[float]:
        """Return numbers summed over all processes."""
        if self.group is None:
            return numbers
        found: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64))[0].tolist()
        return found

    def gather(self, rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
        """Return the rows of all processes, one process after another, and which are those of this one."""
        if self.group is None:
            return rows, slice(0, len(rows))
        counts = [int(n) for n in self.total(*(len(rows) * (r == self.rank) for r in range(self.size)))]
        start = sum(counts[: self.rank])
        place = slice(start, start + len(rows))
        found = rows.new_zeros(sum(counts), *rows.shape[1:])
        found[place] = rows.detach()
        return self.sum(found)[0], place

    def told(self, value: Any) -> Any:
        """Return the value that the first process gives; those of others are not looked at."""
        if self.group is None:
            return value
        values = [value if self.rank == 0 else None]
        with exchanging():
            dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def everyones(self, value: Any) -> list[Any]:
        """Return the values that all processes give, in order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        with exchanging():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def seed(self, seed: int) -> int:
        """Return a seed of what is drawn for batches.

        It is the same for all where they have parts of the same batches, which is drawn for whole (`Around`); else one
        of this process's own, so that no two draw the same samples.
        """
        return seed if self.parts else self.own_seed(seed)

    def own_seed(self, seed: int) -> int:
        """Return a seed of this process's own."""
        return seed + 1_000_003 * self.rank


ALONE = Processes()
"""One process."""


@contextmanager
def exchanging() -> Iterator[None]:
    """Exchange something with other processes within the block.

    Raises:
        ProcessError: one of them has ended, or no longer answers.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise lost(error) from error


def is_lost(error: BaseException) -> bool:
    """Say whether an error, of a backward pass perhaps, is that of a connection to another process."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def lost(error: BaseException) -> ProcessError:
    """Return what is told of an error of a connection to another process."""
    return ProcessError(
        "another process of the group has ended, or no longer answers",
        why=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no reason is given'}",
        hint="see what that process has said; a run that is kept goes on with --resume, with any number of processes",
    )
