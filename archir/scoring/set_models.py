"""Models of sets: what a set of candidates, which changes by one at a time, is predicted to do to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Protocol, Self

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


class FlippingSet(GrowingSet, Protocol):
    """A set that grows and shrinks: a flip adds a candidate, or drops it if it is a member.

    `estimates`, `doubts` and `judge` are about flips; what was judged is known until the set changes.
    """

    @property
    def exact(self) -> bool:
        """Whether estimates are as good as what is judged."""
        ...

    @property
    def flips(self) -> torch.Tensor:
        """About what each flip does to the loss; `[candidates]`."""
        ...

    def judge_pairs(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return what the change of the loss would be after both flips of each pair; `[pairs]`."""
        ...

    def between(self, few: torch.Tensor) -> torch.Tensor:
        """Return about what adding pairs of a few candidates does beyond what each does; `[few, few]`."""
        ...

    def flip(self, candidate: int) -> None:
        """Add a candidate, or drop it if it is a member."""
        ...

    def copy(self) -> Self:
        """Return the same set, apart from this one."""
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

    def start(self, more: torch.Tensor | None = None) -> FlippingSet:
        """Return the empty set.

        Args:
            more: added to what each candidate does, in nats: its price, say. There may be more numbers than candidates
                of the model: what further ones do, whatever the others; `[candidates and further ones]`.
        """
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

    def start(self, more: torch.Tensor | None = None) -> QuadraticSet:
        """Return the empty set."""
        return QuadraticSet(*self.quadratic, more)


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

    def start(self, more: torch.Tensor | None = None) -> QuadraticSet:
        """Return the empty set."""
        return QuadraticSet(*self.quadratic, more)


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

    def start(self, more: torch.Tensor | None = None) -> FlippingSet:
        """Return the empty set; that of the joint model where the outputs were too large to be kept."""
        found = self.refinement
        return LinearisedSet(found, more) if found.batches else Joint(found).start(more)


class QuadraticSet:
    """A set under a quadratic model: the sum of its members alone, and of what pairs of them do beyond that.

    Attributes:
        change: the predicted change of the loss.
        doubts: zero: estimates are exact.
    """

    exact = True

    def __init__(self, alone: torch.Tensor, gram: torch.Tensor, more: torch.Tensor | None = None) -> None:
        """Start with the empty set.

        Args:
            alone: what each candidate does alone; `[candidates]`.
            gram: what pairs of the first candidates do beyond that, `[first candidates, first candidates]`; the
                diagonal counts for nothing.
            more: see `SetModel.start`.
        """
        self._marginal = _padded(alone, more) if more is None else _padded(alone, more) + more
        self._sign, self._cross = torch.ones_like(self._marginal), gram.clone().fill_diagonal_(0)
        self.change, self.doubts = 0.0, torch.zeros_like(self._marginal)

    @property
    def flips(self) -> torch.Tensor:
        """What each flip does to the loss; `[candidates]`."""
        return self._sign * self._marginal

    @property
    def estimates(self) -> torch.Tensor:
        """What the change would be after each flip; `[candidates]`."""
        return self.change + self.flips

    def judge(self, few: Sequence[int]) -> torch.Tensor:
        """Return what the change would be after each of a few flips; `[few]`."""
        return self.estimates[list(few)]

    def judge_pairs(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return what the change would be after both flips of each pair; `[pairs]`."""
        flips, sign, cross = self.flips.numpy(), self._sign.numpy(), self._cross.numpy()
        found = []
        for one, other in pairs:
            both = float(cross[one, other]) if max(one, other) < len(cross) else 0.0
            found.append(self.change + float(flips[one] + flips[other]) + float(sign[one] * sign[other]) * both)
        return torch.tensor(found, dtype=torch.float64)

    def between(self, few: torch.Tensor) -> torch.Tensor:
        """Return what adding pairs of a few candidates does beyond what each does; `[few, few]`."""
        return _block(self._cross, few)

    def flip(self, candidate: int) -> None:
        """Add a candidate, or drop it if it is a member."""
        # One number at a time is read and written many times faster where NumPy does it, in the same memory.
        signs, marginal, cross = self._sign.numpy(), self._marginal.numpy(), self._cross.numpy()
        sign = float(signs[candidate])
        self.change += sign * float(marginal[candidate])
        if candidate < len(cross):
            marginal[: len(cross)] += sign * cross[candidate]
        signs[candidate] = -sign

    def add(self, candidate: int, change: float) -> None:
        """Add a candidate; what was judged of it is the change from now on."""
        self.flip(candidate)
        self.change = change

    def copy(self) -> QuadraticSet:
        """Return the same set, apart from this one."""
        found = copy(self)
        found._marginal, found._sign = self._marginal.clone(), self._sign.clone()
        return found


class LinearisedSet:
    """A set under the linearised network: its outputs, moved, and about what each flip would make of the loss.

    For a candidate that moves the outputs by u that is `±g·u`, with g the gradient of the loss at the outputs as they
    are now, and what this left out when the flip was judged last: half of `uᵀHu` until it was.
    """

    exact = False

    def __init__(self, refinement: Refinement, more: torch.Tensor | None = None) -> None:
        """Start with the empty set; `more` is that of `SetModel.start`."""
        self._objective, self._batches, self._gram = refinement.objective, refinement.batches, refinement.gram
        self._moved = tuple(b.flat for b in self._batches)
        self._rest = self._half = _padded(refinement.gram.diagonal() / 2, more)
        self._more, self._paid = torch.zeros_like(self._rest) if more is None else more, 0.0
        self._sign = torch.ones_like(self._rest)
        self._here: tuple[float, torch.Tensor] | None = 0.0, _padded(refinement.first_order, more)
        before = [self._means(b, b.flat[None]) * len(b.flat) for b in self._batches]
        self._before = float(torch.stack(before).sum())

    @property
    def change(self) -> float:
        """The change of the loss."""
        return self._at[0] + self._paid

    @property
    def flips(self) -> torch.Tensor:
        """About what each flip does to the loss; `[candidates]`."""
        return self._sign * (self._at[1] + self._more) + self._rest

    @property
    def estimates(self) -> torch.Tensor:
        """About what the change would be after each flip; `[candidates]`."""
        return self.change + self.flips

    @property
    def doubts(self) -> torch.Tensor:
        """By about what part of this an estimate may be wrong; `[candidates]`."""
        return self._rest.abs()

    def judge(self, few: Sequence[int]) -> torch.Tensor:
        """Return what the change would be after each of a few flips; `[few]`."""
        index = torch.tensor(few, dtype=torch.long)
        found = self._after([(c,) for c in few])
        linear = self._sign * (self._at[1] + self._more)
        self._rest = self._rest.index_copy(0, index, found - self.change - linear[index])
        return found

    def judge_pairs(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return what the change would be after both flips of each pair; `[pairs]`."""
        return self._after(pairs)

    def between(self, few: torch.Tensor) -> torch.Tensor:
        """Return about what adding pairs of a few candidates does beyond what each does; `[few, few]`."""
        return _block(self._gram, few)

    def flip(self, candidate: int) -> None:
        """Add a candidate, or drop it if it is a member."""
        sign = float(self._sign[candidate])
        if candidate < len(self._gram):
            self._moved = tuple(m + sign * b.pushed[candidate] for m, b in zip(self._moved, self._batches, strict=True))
            self._here = None
        self._paid += sign * float(self._more[candidate])
        self._sign, self._rest = self._sign.clone(), self._rest.clone()
        self._sign[candidate], self._rest[candidate] = -sign, self._half[candidate]

    def add(self, candidate: int, change: float) -> None:
        """Add a candidate; what was judged of it is the change from now on."""
        self.flip(candidate)

    def copy(self) -> LinearisedSet:
        """Return the same set, apart from this one."""
        return copy(self)

    @property
    def _at(self) -> tuple[float, torch.Tensor]:
        """The change of the loss of the linearised network, and `g·u` of each candidate."""
        if self._here is None:
            self._here = self._look()
        return self._here

    @torch.no_grad()
    def _look(self) -> tuple[float, torch.Tensor]:
        slopes, total, examples = torch.zeros(len(self._gram), dtype=torch.float64), -self._before, 0
        for batch, moved in zip(self._batches, self._moved, strict=True):
            outputs = self._objective.split(moved, batch.outputs)
            _, gradient = self._objective.gradient(outputs, batch.targets)
            slopes += (batch.pushed.flatten(1) @ gradient.flatten()).to("cpu", torch.float64)
            total += float(self._means(batch, moved[None])) * len(moved)
            examples += len(moved)
        (slopes,) = self._objective.processes.sum(slopes)
        total, every = self._objective.processes.total(total, examples)
        return total / every, _padded(slopes / every, self._more)

    @torch.no_grad()
    def _after(self, flips: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the change of the loss after each of several choices of flips, all of as many; `[choices]`."""
        chosen = torch.tensor(flips, dtype=torch.long).reshape(len(flips), -1)
        signs = self._sign[chosen] * (chosen < len(self._gram))
        paid = self._paid + (self._sign[chosen] * self._more[chosen]).sum(1)
        chosen = chosen.clamp(max=len(self._gram) - 1)
        total, examples = torch.zeros(len(flips), dtype=torch.float64) - self._before, 0
        for batch, moved in zip(self._batches, self._moved, strict=True):
            room = AT_ONCE_ON_GPU if moved.is_cuda else AT_ONCE_ON_CPU
            losses = []
            size = max(1, room // moved.numel())
            for part, way in zip(torch.split(chosen, size), torch.split(signs, size), strict=True):
                after = moved
                for number, sign in zip(part.mT, way.mT.to(moved), strict=True):
                    after = after + batch.pushed[number] * sign[:, None, None]
                losses.append(self._means(batch, after))
            total += torch.cat(losses) * len(moved)
            examples += len(moved)
        (total,), (every,) = self._objective.processes.sum(total), self._objective.processes.total(examples)
        return total / every + paid

    def _means(self, batch: LinearBatch, flat: torch.Tensor) -> torch.Tensor:
        return self._objective.means(flat, batch.outputs, batch.targets).to("cpu", torch.float64)


def _padded(of: torch.Tensor, more: torch.Tensor | None) -> torch.Tensor:
    """Return numbers of the candidates of a model with zeros for the further ones."""
    return of.clone() if more is None else torch.cat([of, torch.zeros(len(more) - len(of), dtype=torch.float64)])


def _block(gram: torch.Tensor, few: torch.Tensor) -> torch.Tensor:
    """Return what pairs of a few candidates do together; nothing where one is not among the first; `[few, few]`."""
    joint = few < len(gram)
    if not bool(joint.any()):
        return torch.zeros(len(few), len(few), dtype=torch.float64)
    inside = few.clamp(max=len(gram) - 1)
    return gram[inside][:, inside] * (joint[:, None] & joint)
