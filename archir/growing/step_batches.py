"""The batches of a growth step: what θ is learned on, candidates are scored on, and the chosen set is checked on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from archir.errors import GrowError, ScoreError
from archir.growing.batches import Batches, Drawn
from archir.growing.examples import Split
from archir.growing.given_batches import GivenBatches, unbound
from archir.growing.reading import each_batch
from archir.scoring.batches import AnyBatch, BoundBatch, bind_batches, cut_up, no_batches
from archir.scoring.objective import Objective
from archir.scoring.processes import Processes

SHARES = ("check", "selection", "learn", "learn")
"""What pieces of batches are dealt out to in turn."""


class StepBatches(ABC):
    """The batches of a growth step, of three kinds that share no example."""

    @abstractmethod
    def learned_on(self, seed: int, device: torch.device, processes: Processes) -> Drawn:
        """Return the batches that θ is learned on, in the order of a seed."""

    @abstractmethod
    def scored_on(self, device: torch.device, processes: Processes) -> Drawn:
        """Return the batches that candidates are scored on."""

    @abstractmethod
    def checked_on(self, device: torch.device, processes: Processes) -> Drawn:
        """Return the batches that the chosen set is checked on."""

    @property
    @abstractmethod
    def timed_on(self) -> Split | GivenBatches:
        """Where the example is taken from whose forward pass is timed."""


@dataclass(frozen=True)
class SplitBatches(StepBatches):
    """Batches drawn from splits, shared out among processes.

    Attributes:
        train: examples that θ is learned on.
        selection: held-out examples the candidates are scored on.
        check: other held-out examples the chosen set is checked on.
        size: examples of a batch at most.
    """

    train: Split
    selection: Split
    check: Split
    size: int

    def learned_on(self, seed: int, device: torch.device, processes: Processes) -> Batches:
        """Return the batches that θ is learned on, in the order of a seed."""
        return Batches(self.train, self.size, seed, None, device, processes)

    def scored_on(self, device: torch.device, processes: Processes) -> Batches:
        """Return the batches that candidates are scored on."""
        return Batches(self.selection, self.size, None, None, device, processes)

    def checked_on(self, device: torch.device, processes: Processes) -> Batches:
        """Return the batches that the chosen set is checked on."""
        return Batches(self.check, self.size, None, None, device, processes)

    @property
    def timed_on(self) -> Split:
        """Where the example is taken from whose forward pass is timed."""
        return self.check


@dataclass(frozen=True)
class DealtBatches(StepBatches):
    """Batches that were given, dealt out.

    Attributes:
        learn: those that θ is learned on.
        selection: those that candidates are scored on.
        check: those that the chosen set is checked on.
        one: a batch of one example, or of as few as can be.
    """

    learn: GivenBatches
    selection: GivenBatches
    check: GivenBatches
    one: GivenBatches

    def learned_on(self, seed: int, device: torch.device, processes: Processes) -> GivenBatches:
        """Return the batches that θ is learned on, in the order of a seed."""
        return replace(self.learn, seed=seed, device=device)

    def scored_on(self, device: torch.device, processes: Processes) -> GivenBatches:
        """Return the batches that candidates are scored on."""
        return replace(self.selection, device=device)

    def checked_on(self, device: torch.device, processes: Processes) -> GivenBatches:
        """Return the batches that the chosen set is checked on."""
        return replace(self.check, device=device)

    @property
    def timed_on(self) -> GivenBatches:
        """Where the example is taken from whose forward pass is timed."""
        return self.one


def deal(
    objective: Objective,
    batches: Iterable[AnyBatch],
    *,
    size: int,
    most: int,
    steps: int,
    learn: Iterable[AnyBatch] | None = None,
    check: Iterable[AnyBatch] | None = None,
) -> DealtBatches:
    """Deal batches out to learn, to score and to check on, so that no example is in two of these.

    They are gone through once, as far as is needed, and each is cut into pieces of `size` examples at most. The pieces
    are dealt out in turn, one to check on, one to score on, two to learn on, until each has enough. Batches are cut
    further where they would give too few pieces; they stay whole where their examples are coupled.

    Args:
        objective: the loss on top of the graph.
        batches: pairs of inputs and targets, or mappings, see `archir.scoring.pairs.pair_of`.
        size: examples of a piece at most.
        most: examples to score on, and to check on, that are enough.
        steps: pieces to learn on that are enough.
        learn: batches to learn on in place of some of `batches`.
        check: batches to check on in place of some of `batches`.

    Raises:
        GrowError: there are too few batches, which cannot be cut, or code of the user's that makes them fails.
        ScoreError: there are none, they cannot be iterated, or one is neither a pair nor a mapping with targets,
            or does not fit the graph.
    """
    program = objective.program
    every = each_batch(batches)
    given = {name: each_batch(b, name) for name, b in (("learn", learn), ("check", check)) if b is not None}
    kinds = [kind for kind in SHARES if kind not in given]
    dealt: dict[str, list[BoundBatch]] = {kind: [] for kind in SHARES}

    def is_full(kind: str) -> bool:
        found = dealt[kind]
        return len(found) >= steps if kind == "learn" else sum(piece.examples for piece in found) >= most

    for kind, its in given.items():
        for piece in _pieces(objective, its, size):
            dealt[kind].append(piece)
            if is_full(kind):  # told before the next one is asked for, which a stream of the user's would lose
                break
        if not dealt[kind]:
            raise ScoreError(f"there are no batches to {_TO[kind]}", where=f"{kind}=")
    turn = 0
    for piece in _pieces(objective, every, size, least=len(kinds)):
        open_to = [kind for kind in kinds[turn:] + kinds[:turn] if not is_full(kind)]
        dealt[open_to[0]].append(piece)
        turn = (turn + 1) % len(kinds)
        if all(is_full(kind) for kind in kinds):
            break
    if not any(dealt[kind] for kind in kinds):
        raise no_batches()
    if missing := [kind for kind in dict.fromkeys(SHARES) if not dealt[kind]]:
        raise GrowError(
            f"there are too few batches: none is left to {' and to '.join(_TO[kind] for kind in missing)}",
            why="no example may be in two of these, and batches whose examples are coupled are not cut",
            hint="give more batches" + "".join(f", or others as {kind}=" for kind in missing if kind != "selection"),
        )
    first = dealt["check"][0]
    parts = {kind: unbound(program, found) for kind, found in dealt.items()}
    return DealtBatches(**parts, one=unbound(program, cut_up(program, first, first.examples)[:1]))


_TO = {"learn": "learn on", "selection": "score on", "check": "check on"}


def _pieces(objective: Objective, batches: Iterable[AnyBatch], size: int, *, least: int = 1) -> Iterator[BoundBatch]:
    """Yield pieces of batches, `least` of them at least where that can be; no more batches are read than are used."""
    first: list[BoundBatch] = []
    many = False
    for batch in batches:
        (bound,) = bind_batches(objective.program, [batch])
        first.append(bound)
        if many := many or len(first) == least:
            for one in first:
                yield from _cut(objective, one, -(-one.examples // size))
            first = []
    for one in first:
        yield from _cut(objective, one, max(-(-one.examples // size), -(-least // len(first))))


def _cut(objective: Objective, batch: BoundBatch, count: int) -> list[BoundBatch]:
    return [batch] if objective.coupled else cut_up(objective.program, batch, min(count, batch.examples))
