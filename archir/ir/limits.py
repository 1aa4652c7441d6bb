"""Limits of what finding the types of results may take: a file can ask for sizes no network has.

Running an operator on meta tensors costs next to nothing, whatever their sizes, unless it loops over an axis (a
recurrent layer over its steps) or makes a tensor of every part (`unbind`). Both are refused beyond these limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archir.errors import GraphError


class NotInferable(GraphError):
    """An operator whose result types cannot be found on meta tensors."""


SECONDS = 20.0
"""The longest time one operator may take on meta tensors."""

STEPS = 100_000
"""The most operators one operator may be made of."""

PARTS = 2**16
"""The most tensors one operator may make, and the most integers it may be called with."""

_LARGE = 2**12
"""An operator without a larger size or number is not watched, unless it is known to loop over one."""

_PART_COUNTS = ("chunks", "sections")
"""Arguments that say how many tensors are made."""

_LOOPS = ("gru", "lstm", "rnn_")


def limited(op: str, arguments: Mapping[str, object]) -> AbstractContextManager[object]:
    """Return a context in which an operator may be run on meta tensors.

    Args:
        op: its name.
        arguments: what it is called with, by name.

    Raises:
        NotInferable: on entry, or inside: it would make too many tensors, or takes too long.
    """
    numbers = [n for a in arguments.values() for n in _numbers(a)]
    if len(numbers) > PARTS:
        raise NotInferable(f"{op} is called with {len(numbers):,} numbers", why=f"more than {PARTS:,} are refused")
    counts = [n for name in _PART_COUNTS if isinstance(n := arguments.get(name), int)]
    if max(counts, default=0) > PARTS:
        raise NotInferable(f"{op} makes more than {PARTS:,} tensors")
    if max(numbers, default=0) <= _LARGE and not op.partition(".")[2].startswith(_LOOPS):
        return nullcontext()
    return _Watch(op)


def _numbers(argument: object) -> Iterator[int]:
    if isinstance(argument, torch.Tensor):
        yield from argument.shape
    elif isinstance(argument, int):
        yield abs(argument)
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _numbers(part)


class _Watch(TorchDispatchMode):
    """Sees every operator that another is made of."""

    def __init__(self, op: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._op = op
        self._end = time.monotonic() + SECONDS
        self._steps = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        self._steps += 1
        if self._steps > STEPS or time.monotonic() > self._end:
            raise NotInferable(f"{self._op} takes too long on meta tensors", why="it loops over a long axis")
        count = _COUNTS.get(func.overloadpacket)
        if count is not None and count(*args, **(kwargs or {})) > PARTS:
            raise NotInferable(f"{self._op} makes more than {PARTS:,} tensors")
        return func(*args, **(kwargs or {}))


def _split(x: torch.Tensor, size: int | list[int], dim: int = 0) -> int:
    return len(size) if isinstance(size, list) else -(-x.shape[dim] // max(1, size))


def _unbind(x: torch.Tensor, dim: int = 0) -> int:
    return x.shape[dim]


_COUNTS: dict[object, Callable[..., int]] = {
    **dict.fromkeys((torch.ops.aten.split, torch.ops.aten.unsafe_split, torch.ops.aten.split_copy), _split),
    **dict.fromkeys((torch.ops.aten.unbind, torch.ops.aten.unbind_copy), _unbind),
}
"""How many tensors an operator makes that makes one of every part."""
