"""Models of sets: what a set of candidates, which grows by one at a time, is predicted to do to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from archir.scoring.refine import LinearBatch, Refinement

AT_ONCE_ON_CPU, AT_ONCE_ON_GPU = 2**16, 2**24
"""How many numbers the outputs of the sets may have that are judged at once: as many as fit into a CPU's cache."""


class GrowingSet(Protocol):
    """A set that grows by one candidate at a time; candidates are given by their numbers."""

    @property
    def change(self) -> float:
        """The predicted change of the loss, in nats for likelihoods."""
        ...

    @property
    def estimates(self) -> torch.Tensor:
        """About what it would be with each candidate added, `[candidates]`: says which are worth judging."""
        ...

    @property
    def doubts(self) -> torch.Tensor:
        """By about what part of this an estimate may be wrong; `[candidates]`."""
        ...

    def judge(self, few: Sequence[int]) -> torch.Tensor:
        """Return what it would be with each of a few candidates added; `[few]`."""
        ...

    def add(self, candidate: int, change: float) -> None:
        """Add a candidate; what was judged of it is the change from now on."""
        ...


class SetModel(Protocol):
    """Predicts the change of the loss for sets of candidates, which are given by their numbers."""

    @property
    def quadratic(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each candidate does alone, `[candidates]`, and what pairs do beyond that; `[candidates, candidates]`."""
        ...

    def predict(self, chosen: Sequence[int]) -> float:
        """Return the change of the loss for a set, in nats for likelihoods."""
        ...

    def start(self) -> GrowingSet:
        """Return the empty set."""
        ...


@dataclass(frozen=True)
class Additive:
    """Predicts for a set the sum of what each candidate is predicted to do alone.

    Attributes:
        alone: predicted change of the loss for each candidate; `[candidates]`.
    """

    alone: torch.Tensor

    @property
    def quadratic(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each candidate does alone, and no more."""
        return self.alone, torch.zeros(0, 0, dtype=torch.float64)

    def predict(self, chosen: Sequence[int]) -> float:
        """Return the change of the loss for a set."""
        return float(self.alone[list(chosen)].sum())

    def start(self) -> GrowingSet:
        """Return the empty set."""
        return _OnGram(*self.quadratic)


@dataclass(frozen=True)
class Joint:
    """Predicts for a set `Σ a + ½ Σ G` over all pairs of its candidates.

    Attributes:
        refinement: the linearised effects of the candidates.
    """

    refinement: Refinement = field(repr=False)

    @property
    def quadratic(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`a + G/2` of each candidate, and G."""
        return self.refinement.quadratic

    def predict(self, chosen: Sequence[int]) -> float:
        """Return the change of the loss for a set."""
        return self.refinement.joint(chosen)

    def start(self) -> GrowingSet:
        """Return the empty set."""
        return _OnGram(*self.quadratic)


@dataclass(frozen=True)
class Linearised:
    """Predicts for a set the change of the linearised network's exact loss.

    Attributes:
        refinement: the linearised effects of the candidates.
    """

    refinement: Refinement = field(repr=False)

    @property
    def quadratic(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`a + G/2` of each candidate, and G."""
        return self.refinement.quadratic

    def predict(self, chosen: Sequence[int]) -> float:
        """Return the change of the loss for a set."""
        return self.refinement.linearised(chosen)

    def start(self) -> GrowingSet:
        """Return the empty set; that of the joint model where the outputs were too large to be kept."""
        return _OnOutputs(self.refinement) if self.refinement.batches else Joint(self.refinement).start()


class _OnGram:
    """A set under a quadratic model: the sum of its members alone, and of G over its pairs."""

    def __init__(self, alone: torch.Tensor, gram: torch.Tensor) -> None:
        self.change, self.estimates, self._gram = 0.0, alone, gram
        self.doubts = torch.zeros_like(alone)

    def judge(self, few: Sequence[int]) -> torch.Tensor:
        return self.estimates[list(few)]

    def add(self, candidate: int, change: float) -> None:
        self.estimates = self.estimates + (change - self.change)
        if len(self._gram):
            self.estimates += self._gram[candidate]
        self.change = change


class _OnOutputs:
    """A set under the linearised network: its outputs, moved, and about what each candidate would make of the loss.

    For a candidate that moves the outputs by u that is `g·u`, with g the gradient of the loss at the outputs as they
    are now, and what `g·u` left out when the candidate was judged last: half of `uᵀHu` until it was.
    """

    def __init__(self, refinement: Refinement) -> None:
        self.change, self._objective, self._batches = 0.0, refinement.objective, refinement.batches
        self._moved = [b.flat for b in self._batches]
        self._slopes, self._rest = refinement.first_order, refinement.gram.diagonal() / 2
        before = [self._means(b, b.flat[None]) * len(b.flat) for b in self._batches]
        self._before = float(torch.stack(before).sum())

    @property
    def estimates(self) -> torch.Tensor:
        return self.change + self._slopes + self._rest

    @property
    def doubts(self) -> torch.Tensor:
        return self._rest.abs()

    @torch.no_grad()
    def judge(self, few: Sequence[int]) -> torch.Tensor:
        total, examples = torch.zeros(len(few), dtype=torch.float64) - self._before, 0
        for batch, moved in zip(self._batches, self._moved, strict=True):
            room = AT_ONCE_ON_GPU if moved.is_cuda else AT_ONCE_ON_CPU
            size = max(1, room // moved.numel())
            parts = [list(few[i : i + size]) for i in range(0, len(few), size)]
            losses = [self._means(batch, moved + batch.pushed[part]) for part in parts]
            total += torch.cat(losses) * len(moved)
            examples += len(moved)
        (total,), (every,) = self._objective.processes.sum(total), self._objective.processes.total(examples)
        found = total / every
        self._rest = self._rest.index_copy(0, torch.tensor(few), found - self.change - self._slopes[list(few)])
        return found

    @torch.no_grad()
    def add(self, candidate: int, change: float) -> None:
        slopes, examples = torch.zeros_like(self._slopes), 0
        for i, batch in enumerate(self._batches):
            self._moved[i] = moved = self._moved[i] + batch.pushed[candidate]
            outputs = self._objective.split(moved, batch.outputs)
            _, gradient = self._objective.gradient(outputs, batch.targets)
            slopes += (batch.pushed.flatten(1) @ gradient.flatten()).to("cpu", torch.float64)
            examples += len(moved)
        (slopes,), (every,) = self._objective.processes.sum(slopes), self._objective.processes.total(examples)
        self.change, self._slopes = change, slopes / every

    def _means(self, batch: LinearBatch, flat: torch.Tensor) -> torch.Tensor:
        return self._objective.means(flat, batch.outputs, batch.targets).to("cpu", torch.float64)
