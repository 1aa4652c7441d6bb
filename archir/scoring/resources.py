"""What is limited in a set of candidates, by kinds of candidates that cost the same: its amount is 1 at the limit.

Numbers are kept as arrays of NumPy, which takes a fraction of the time of PyTorch where there are few of them.
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Wholes = NDArray[np.int64]


class Resource(Protocol):
    """A resource as a set uses it; the set changes by one candidate of some kind at a time."""

    @property
    def used(self) -> float:
        """What the set uses, and a penalty above the limit; 1 at the limit."""
        ...

    @property
    def amount(self) -> float:
        """What the set uses; 1 at the limit."""
        ...

    @property
    def added(self) -> Floats:
        """What one more candidate of each kind adds to it; `[kinds]`."""
        ...

    @property
    def dropped(self) -> Floats:
        """What one candidate less of each kind adds to it; `[kinds]`."""
        ...

    def cross(self, kinds: Wholes) -> Floats:
        """Return about what pairs of candidates of some kinds use together beyond what each adds; `[kinds, kinds]`."""
        ...

    def move(self, kind: int, count: int) -> None:
        """Add candidates of a kind, or drop them if the count is negative."""
        ...

    def shifted(self, by: float) -> Self:
        """Return the same with so much more used, apart from this one."""
        ...


class QuadraticResource:
    """A resource of which a set uses `start + Σ_c alone + Σ_c<d between`: parameters and FLOPs, say."""

    def __init__(self, start: float, alone: torch.Tensor | Floats, between: torch.Tensor | Floats) -> None:
        """Start with the empty set.

        Args:
            start: what is used without any candidate.
            alone: what a candidate of each kind adds alone; `[kinds]`.
            between: what two candidates of some kinds add together beyond that; `[kinds, kinds]`.
        """
        self.used, self.added, self._between = start, np.asarray(alone), np.asarray(between)
        self._own = self._between.diagonal()

    @property
    def amount(self) -> float:
        """What the set uses; 1 at the limit."""
        return self.used

    @property
    def dropped(self) -> Floats:
        """What one candidate less of each kind adds to it; `[kinds]`."""
        found: Floats = self._own - self.added
        return found

    def cross(self, kinds: Wholes) -> Floats:
        """Return what pairs of candidates of some kinds use together beyond what each adds; `[kinds, kinds]`."""
        found: Floats = self._between[kinds][:, kinds]
        return found

    def move(self, kind: int, count: int) -> None:
        """Add candidates of a kind, or drop them if the count is negative."""
        own = float(self._own[kind])
        self.used += count * float(self.added[kind]) + own * (count * count - count) / 2
        self.added = self.added + count * self._between[kind]

    def shifted(self, by: float) -> QuadraticResource:
        """Return the same with so much more used, apart from this one."""
        return QuadraticResource(self.used + by, self.added, self._between)


class PeakResource:
    """A resource that is used over time and limited at each moment: bytes that are alive at once.

    Above the limit the mean excess of the moments that were above it at first is added to the peak, so that whatever
    frees some of them is seen to help.
    """

    def __init__(self, alive: torch.Tensor | Floats, alone: torch.Tensor | Floats, moments: int | None = None) -> None:
        """Start with the empty set.

        Args:
            alive: what is used at each moment without any candidate; `[moments]`.
            alone: what a candidate of each kind adds at each moment; `[kinds, moments]`.
            moments: the number of moments the excess is averaged over; those above the limit if None.
        """
        self._alive, self._alone = np.asarray(alive), np.asarray(alone)
        self._moments = max(int((self._alive > 1).sum()), 1) if moments is None else moments
        self._look()

    @property
    def amount(self) -> float:
        """What the set uses at most; 1 at the limit."""
        return float(self._alive.max())

    def cross(self, kinds: Wholes) -> Floats:
        """Return nothing: what pairs of candidates use together is about what each adds."""
        return np.zeros((len(kinds), len(kinds)))

    def move(self, kind: int, count: int) -> None:
        """Add candidates of a kind, or drop them if the count is negative."""
        self._alive = self._alive + count * self._alone[kind]
        self._look()

    def shifted(self, by: float) -> PeakResource:
        """Return the same with so much more used, apart from this one."""
        return PeakResource(self._alive + by, self._alone, None if by else self._moments)

    def _look(self) -> None:
        self.used = float(self._amount(self._alive))
        self.added = self._amount(self._alive + self._alone) - self.used
        self.dropped = self._amount(self._alive - self._alone) - self.used

    def _amount(self, alive: Floats) -> Floats:
        found: Floats = alive.max(-1) + np.maximum(alive - 1, 0).sum(-1) / self._moments
        return found
