"""Parts of batches that fit into memory: where it runs out, what was done is done again on halves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch

from archir.errors import ScoreError
from archir.ir.device_memory import attempt
from archir.scoring.batches import BoundBatch, cut_up, in_parts
from archir.scoring.objective import Objective

R = TypeVar("R")


class Parts:
    """Takes batches in parts, see `in_parts`, and of no more examples than memory was found to hold.

    Parts change no number but for rounding: what is drawn at random is drawn again as it was, example by example.
    """

    def __init__(self, objective: Objective, generator: torch.Generator | None = None) -> None:
        """Begin with batches as large as they come.

        Args:
            objective: says whether examples are coupled, and what one takes.
            generator: what the work on a part draws from, if it draws.
        """
        self._objective, self._generator = objective, generator
        self._most: int | None = None

    def each(self, batches: Iterable[BoundBatch], work: Callable[[BoundBatch], R]) -> Iterator[R]:
        """Yield what some work makes of the parts of batches, one after another.

        Args:
            batches: the batches.
            work: is called with a part, and leaves nothing behind where it fails.

        Raises:
            ScoreError: memory runs out on a part that cannot be halved.
        """
        for part in in_parts(self._objective, batches):
            yield from self._done(part, work)

    def _done(self, part: BoundBatch, work: Callable[[BoundBatch], R]) -> Iterator[R]:
        if self._most is not None and part.examples > self._most:
            for smaller in cut_up(self._objective.program, part, -(-part.examples // self._most)):
                yield from self._done(smaller, work)
            return
        state = None if self._generator is None else self._generator.get_state()
        found = attempt(partial(work, part))
        if found is not None:
            yield found[0]
            return
        if self._generator is not None and state is not None:
            self._generator.set_state(state)
        halves = [] if self._objective.coupled else cut_up(self._objective.program, part, min(2, part.examples))
        if len(halves) < 2:
            raise _no_room(self._objective, part)
        self._most = max(half.examples for half in halves)
        for half in halves:
            yield from self._done(half, work)


def _no_room(objective: Objective, part: BoundBatch) -> ScoreError:
    some = "an example" if part.examples == 1 else f"a batch of {part.examples} examples"
    if part.examples == 1:
        why, hint = "", "score on a device with more memory"
    elif objective.coupled:
        why, hint = "its examples depend on each other, so that it cannot be taken in parts", "score on smaller batches"
    else:
        why, hint = "an input does not run over its examples, so that it cannot be taken apart", "give smaller batches"
    return ScoreError(
        f"there is too little memory to score on {some}", where=f"on {objective.program.device}", why=why, hint=hint
    )
