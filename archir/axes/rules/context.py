"""What an axis rule is given: the node, the axes of its operands, and ways to say what follows from the operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from archir.axes.terms import Atom, Term, add_role, freeze, unify
from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Argument, Node, Value
from archir.ir.types import TensorType

SizeOf = Callable[[Term], int]
"""The size a term will have after a rewrite."""


@dataclass(frozen=True)
class Spelling:
    """The arguments of a call that follow from the sizes of axes.

    Attributes:
        arguments: new values of those arguments.
        op: another operator that can say what this one cannot (`chunk` becomes `split_with_sizes`).
        drop: arguments the other operator does not have.
    """

    arguments: Mapping[str, Argument]
    op: str | None = None
    drop: frozenset[str] = frozenset()


Speller = Callable[[SizeOf], Spelling]


@dataclass(slots=True)
class Room:
    """What the calls of one graph may move together.

    Attributes:
        left: elements of index arrays that may still be made.
    """

    left: int = 2**29


@dataclass(slots=True)
class Context:
    """One call while its axes are inferred.

    Attributes:
        graph: the graph.
        node: the call.
        axes: the axes of the results of every node so far, as they were inferred; None for a number.
        sizes: sizes of each result, run-time sizes replaced by large primes; empty for numbers.
        spellers: filled by `spell`.
        room: what running calls on index arrays may take.
    """

    graph: Graph
    node: Node
    axes: Mapping[int, Sequence[tuple[Term, ...] | None]]
    sizes: Sequence[tuple[int, ...]]
    spellers: dict[int, Speller]
    room: Room

    def axes_of(self, argument: Argument) -> tuple[Term, ...]:
        """Return the axes of an argument that is a tensor; none if it is anything else."""
        return (self.axes[argument.node][argument.index] or ()) if isinstance(argument, Value) else ()

    def operand(self, name: str) -> tuple[Term, ...]:
        """Return the axes of a tensor argument; none if it is not given or is a number."""
        value = self.node.arguments.get(name)  # `axes_of` written out: this is called for every operand
        return (self.axes[value.node][value.index] or ()) if isinstance(value, Value) else ()

    def operands(self, name: str) -> list[tuple[Term, ...]]:
        """Return the axes of each tensor of a list argument."""
        argument = self.node.argument(name)
        parts = argument if isinstance(argument, tuple) else (argument,)
        return [self.axes_of(p) for p in parts if isinstance(p, Value)]

    def is_stored(self, value: Value) -> bool:
        """Say whether a value is a stored tensor."""
        return self.graph.node(value.node).op == PARAMETER

    def contraction(self, *operands: str) -> str:
        """Return the role of an axis that is summed over in some operands: against a stored weight, or activations."""
        values = (self.node.arguments.get(name) for name in operands)
        return "contracted" if any(isinstance(v, Value) and self.is_stored(v) for v in values) else "matched"

    def is_mask(self, value: Value) -> bool:
        """Say whether a value is a tensor of truth values."""
        type_ = self.graph.type_of(value)
        return isinstance(type_, TensorType) and type_.dtype == torch.bool

    def integer(self, name: str) -> int:
        """Return an integer argument."""
        argument = self.node.argument(name)
        if not isinstance(argument, int):
            raise Unknown(f"{name} is not a constant")
        return argument

    def integers(self, name: str) -> tuple[int, ...]:
        """Return an argument that is an integer or a list of them."""
        argument = self.node.argument(name)
        parts = argument if isinstance(argument, tuple) else (argument,)
        found = tuple(p for p in parts if isinstance(p, int))
        if len(found) != len(parts):
            raise Unknown(f"{name} is not constant")
        return found

    def unify_all(self, left: Sequence[Term], right: Sequence[Term]) -> None:
        """Unify two lists of axes one by one."""
        for a, b in zip(left, right, strict=True):
            unify(a, b)

    def fresh(self, reason: str, result: int = 0) -> list[Term]:
        """Return new frozen axes for a result."""
        return [Atom(n, reason) for n in self.sizes[result]]

    def units(self, result: int) -> list[Term]:
        """Return new axes for a result whose units are all alike; those of run-time size are frozen."""
        shape = self.node.tensor_type(result).shape
        reasons = ["" if isinstance(size, int) else "a run-time size" for size in shape]
        return [Atom(n, reason) for n, reason in zip(self.sizes[result], reasons, strict=True)]

    def broadcast(self, *operands: Sequence[Term]) -> tuple[Term, ...]:
        """Unify the axes of operands as broadcasting does: aligned at the end, axes of size one couple to nothing."""
        longest = max(operands, key=len, default=())
        result = list(longest)
        for operand in operands:
            if operand is longest:
                continue
            for place, axis in enumerate(operand, len(longest) - len(operand)):
                if axis.size != 1:
                    known = result[place]
                    if known.size == 1:
                        result[place] = axis
                    else:
                        unify(known, axis)
        return tuple(result)

    def freeze(self, axes: Sequence[Term], reason: str) -> None:
        """Forbid axes to change."""
        for axis in axes:
            freeze(axis, reason)

    def role(self, axes: Sequence[Term], role: str) -> None:
        """Note what the operator does along axes."""
        for axis in axes:
            add_role(axis, role)

    def spell(self, speller: Speller) -> None:
        """Say which arguments of the call follow from sizes of axes."""
        self.spellers[self.node.id] = speller


class Unknown(Exception):
    """Raised by a rule that does not cover a call: everything the call touches is frozen with this reason."""


class Rule(Protocol):
    """The axes of the results of a call; couples the axes of its operands on the way."""

    def __call__(self, c: Context) -> Sequence[Sequence[Term]]:
        """Return one list of axes for each result."""
        ...
