"""Memory that runs out: what makes a tensor of more numbers than there is room for is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from archir.scoring import batches

KINDS: dict[str, Callable[[], Exception]] = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    "CPU": lambda: RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
}


class Scarce(TorchDispatchMode):
    """Refuses tensors of more than so many numbers, as a device does whose memory is used up.

    Where operators are given, it refuses theirs alone.

    Attributes:
        refused: how often it has.
        largest: the numbers of the largest tensor that was made.
    """

    def __init__(self, most: float = math.inf, kind: str = "GPU", only: Collection[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refused: int = 0
        self.largest: int = 0
        self._most, self._kind, self._only = most, kind, frozenset(only)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._only and func._schema.name not in self._only:
            return out
        made: list[Any] = pytree.tree_leaves(out)
        size = max((t.numel() for t in made if isinstance(t, torch.Tensor)), default=0)
        self.largest = max(self.largest, size)
        if size > self._most:
            self.refused += 1
            raise KINDS[self._kind]()
        return out


def take_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every batch be taken in as many parts as one is taken in at most."""
    monkeypatch.setattr(batches, "SMALLEST_PART", 0)
    monkeypatch.setattr(batches, "PER_STORED", 0)
