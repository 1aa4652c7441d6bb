"""Limits of what finding the types of results may take: a file can ask for sizes no network has.

Running an operator on meta tensors costs next to nothing, whatever their sizes, unless it loops over its operands
(`block_diag`) or makes a tensor of every part (`unbind`). Both are refused beyond these limits, which count operators
and results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archir.errors import GraphError


class NotInferable(GraphError):
    """An operator whose result types cannot be found on meta tensors."""


STEPS = 10_000
"""The most operators that finding the types of one call may run."""

ORDINARY = 100
"""Operators that any call of a graph may run, besides what the whole graph may."""

RESULTS = 4
"""Results of a call that take as long as one operator it runs."""

PARTS = 2**16
"""The most tensors one operator may make, and the most integers it may be called with."""

_PART_COUNTS = ("chunks", "sections")
"""Arguments that say how many tensors are made."""


@dataclass(slots=True)
class Room:
    """What finding the types of the calls of one graph may take; counted, as no answer depends on the machine.

    Attributes:
        left: operators that may still be run, beyond `ORDINARY` ones for each call; results count a `RESULTS`th.
    """

    left: int = 5 * STEPS

    def take(self, op: str, steps: int) -> None:
        """Count what a call took.

        Raises:
            GraphError: there is no room left for it.
        """
        self.left -= max(0, steps - ORDINARY)
        if self.left < 0:
            raise GraphError(
                f"the calls of the graph take too long on meta tensors, up to a call of {op}",
                why="together they loop over too many axes, or make too many results",
            )


def check_numbers(op: str, arguments: Mapping[str, object]) -> None:
    """Check what an operator is to be called with on meta tensors.

    Args:
        op: its name.
        arguments: what it is called with, by name.

    Raises:
        NotInferable: it would make too many tensors.
    """
    numbers = sum(1 for a in arguments.values() for _ in _numbers(a))
    if numbers > PARTS:
        raise NotInferable(f"{op} is called with {numbers:,} numbers", why=f"more than {PARTS:,} are refused")
    counts = [n for name in _PART_COUNTS if isinstance(n := arguments.get(name), int)]
    if max(counts, default=0) > PARTS:
        raise NotInferable(f"{op} makes more than {PARTS:,} tensors")


def _numbers(argument: object) -> Iterator[int]:
    if isinstance(argument, torch.Tensor):
        yield from argument.shape
    elif isinstance(argument, int):
        yield abs(argument)
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _numbers(part)


class Watch(TorchDispatchMode):
    """Sees every operator that another is made of, and lets none run that would compute on real tensors.

    Attributes:
        steps: how many there were.
    """

    def __init__(self, op: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._op = op
        self.steps = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        given = kwargs or {}
        self.steps += 1
        if self.steps > STEPS:
            raise NotInferable(f"{self._op} takes too long on meta tensors", why="it loops over a long axis")
        if not _is_on_meta(args, given):
            raise NotInferable(f"{self._op} computes on more than meta tensors", why=f"it calls {func}")
        count = _COUNTS.get(func.overloadpacket)
        if count is not None and count(*args, **given) > PARTS:
            raise NotInferable(f"{self._op} makes more than {PARTS:,} tensors")
        return func(*args, **given)


def _is_on_meta(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Say whether an operator makes meta tensors: of others, or because it is told to."""
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "meta"
    return any(tensor.is_meta for argument in (*args, *kwargs.values()) for tensor in _tensors(argument))


def _tensors(argument: object) -> Iterator[torch.Tensor]:
    if isinstance(argument, torch.Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _tensors(part)


def _split(x: torch.Tensor, size: int | list[int], dim: int = 0) -> int:
    return len(size) if isinstance(size, list) else -(-x.shape[dim] // max(1, size))


def _unbind(x: torch.Tensor, dim: int = 0) -> int:
    return x.shape[dim]


_COUNTS: dict[object, Callable[..., int]] = {
    **dict.fromkeys((torch.ops.aten.split, torch.ops.aten.unsafe_split, torch.ops.aten.split_copy), _split),
    **dict.fromkeys((torch.ops.aten.unbind, torch.ops.aten.unbind_copy), _unbind),
}
"""How many tensors an operator makes that makes one of every part."""
