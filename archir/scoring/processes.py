"""The processes among which the batches are shared out, and sums over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Processes:
    """Processes that score one graph together, each with batches of its own.

    All of them make the same calls in the same order, and get the same results.

    Attributes:
        group: the process group; None for one process alone.
    """

    group: ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """The number of this process among them."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def sum(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Return tensors summed over all processes, on the device and in the element type they have.

        All are sent as one, in float64.
        """
        if self.group is None or not tensors:
            return list(tensors)
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        flat = torch.cat([t.detach().to(device, torch.float64).reshape(-1) for t in tensors])
        dist.all_reduce(flat, group=self.group)
        parts = torch.split(flat, [t.numel() for t in tensors])
        return [part.reshape(t.shape).to(t) for part, t in zip(parts, tensors, strict=True)]

    def total(self, *numbers: float) -> Sequence[float]:
        """Return numbers summed over all processes."""
        if self.group is None:
            return numbers
        found: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64))[0].tolist()
        return found

    def seed(self, seed: int) -> int:
        """Return a seed of this process's own, so that no two draw the same samples."""
        return seed + 1_000_003 * self.rank
