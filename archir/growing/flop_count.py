"""Counts the FLOPs of the parts of a growth step that run a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.flop_counter import FlopCounterMode


class FlopCount:
    """A sum of FLOPs, added to by the blocks that are counted.

    Attributes:
        total: FLOPs so far; a multiply-add is two.
    """

    def __init__(self) -> None:
        self.total = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is run within the block, even if it fails.

        PyTorch's counter takes longer over an operation than one on a few hundred numbers does, so that no more than
        what runs a network is to be within: a solver of sets would be slower several times over, and adds no FLOPs.
        """
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                yield
        finally:
            self.total += counter.get_total_flops()
