"""Calls of operators on random tensors, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archir.ir import ops
from archir.ir.builder import parse_tensor_type as tensor_type
from archir.ir.operators.operator import Operator
from archir.ir.operators.table import TABLE
from archir.ir.registry import operator_of
from tests.axes.calls import Call


@dataclass(frozen=True)
class Made:
    """A call of an operator.

    Attributes:
        op: its name.
        arguments: by name, those at their defaults left out; lists are tuples.
    """

    op: str
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The key of its row in the table."""
        rest = self.op.removeprefix("aten.")
        return rest if rest in TABLE else rest.partition(".")[0]

    @property
    def row(self) -> Operator:
        """What is known of it."""
        return operator_of(self.op)

    @property
    def operands(self) -> dict[tuple[str, int], Tensor]:
        """Its floating operands, by the name of the argument and the place in it; not those of a nested list."""
        found: dict[tuple[str, int], Tensor] = {}
        for name, argument in self.arguments.items():
            for i, part in enumerate(argument if isinstance(argument, tuple) else (argument,)):
                if isinstance(part, Tensor) and part.is_floating_point():
                    found[name, i] = part
        return found

    def with_operands(self, changed: Mapping[tuple[str, int], Tensor | None], **arguments: Any) -> Made:
        """Return the call with other operands, and with other arguments."""
        new = dict(self.arguments) | arguments
        for (name, i), tensor in changed.items():
            old = new[name]
            new[name] = (*old[:i], tensor, *old[i + 1 :]) if isinstance(old, tuple) else tensor
        return Made(self.op, new)

    def __call__(self) -> tuple[Any, ...]:
        """Return the results, under the same chance every time."""
        names = ops.schema(self.op)
        keyword = {n: _thaw(a) for n, a in self.arguments.items() if n in names.names[names.keyword_from :]}
        torch.manual_seed(7)
        out = ops.function(self.op)(*map(_thaw, ops.positional(self.op, self.arguments)), **keyword)
        return tuple(out) if isinstance(out, list | tuple) else (out,)

    def real(self) -> list[Tensor]:
        """Return the floating results that hold anything."""
        return [r for r in self() if isinstance(r, Tensor) and r.is_floating_point() and r.numel()]


def make(call: Call, seed: int = 0) -> Made:
    """Return a call with random tensors for the types in it: indices are permutations along the last axis."""
    op, args, kwargs = call
    generator = torch.Generator().manual_seed(seed)

    def tensor(text: str) -> Tensor:
        type_ = tensor_type(text)
        shape = [s for s in type_.shape if isinstance(s, int)]
        if type_.dtype == torch.bool:
            return torch.rand(shape, generator=generator) > 0.5
        if not type_.dtype.is_floating_point:
            return torch.rand(shape, generator=generator).argsort(-1).to(type_.dtype)
        return torch.rand(shape, generator=generator, dtype=type_.dtype) + 0.1

    return Made(op, ops.normalise(op, *_made(args, kwargs, tensor)))


def _made(args: Any, kwargs: Any, tensor: Callable[[str], Tensor]) -> tuple[list[Any], dict[str, Any]]:
    def place(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(place, argument))
        return tensor(argument) if isinstance(argument, str) and argument.endswith("]") else argument

    return [place(a) for a in args], {n: place(a) for n, a in kwargs.items()}


def _thaw(argument: Any) -> Any:
    return [_thaw(a) for a in argument] if isinstance(argument, tuple) else argument
