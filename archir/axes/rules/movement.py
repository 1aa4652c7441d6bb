"""Types operators that only move data, and have no rule, by running them on index arrays.

An operator moves data if every element of its result is one element of its operand, whatever the values. Running it
on the numbers of the elements then says where each comes from; only operators known to do nothing else are run, on few
elements, after their types were found without data. An axis of the operand is carried if its coordinate is
a digit of one axis of the result, `(i // inner) % size`, and still is when the axis has another size. Everything else
is frozen.

Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from archir.axes.rules.context import Context, Unknown
from archir.axes.terms import Atom, Product, Term
from archir.errors import GraphError
from archir.ir.execute import compile_call
from archir.ir.node import Argument, Node, Value
from archir.ir.operators.operator import Movement
from archir.ir.ops import infer_types
from archir.ir.registry import operator_of
from archir.ir.types import TensorType

LARGEST = 1_000_000
"""Most elements of an index array, and of what is made of it."""

POSITIONS = "its units have positions"


@dataclass(frozen=True)
class _Digit:
    """Where an axis of the operand lies in an axis of the result: `(i // inner) % size`."""

    axis: int
    inner: int


def data_movement(c: Context, shape: Sequence[int], others: Mapping[Value, object]) -> list[tuple[Term, ...]]:
    """Return the axes of the results of an operator that only moves the data of its one tensor.

    Args:
        c: the call.
        shape: sizes of the operand to run it with.
        others: values of the run-time numbers it uses.

    Raises:
        Unknown: it does more than move data, or too much of it.
    """
    if operator_of(c.node.op).moves in (None, Movement.CAST):
        raise Unknown("it has no axis rule")
    (operand,) = {v for v in c.node.values if isinstance(c.graph.type_of(v), TensorType)}
    terms = c.axes_of(operand)
    sources = _sources(c, operand, shape, others)
    if sources is None:
        raise Unknown("it has no axis rule")
    digits: dict[int, _Digit] = {}
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        found = [_digit(source, shape, axis) for source in sources]
        digit = found[0]
        if digit and found.count(digit) == len(found) and _follows(c, operand, shape, others, axis, digit):
            digits[axis] = digit
        else:
            where = f" ({c.node.location})" if c.node.location else ""
            c.freeze([terms[axis]], f"{c.node.op.removesuffix('.default')}: it moves its units{where}")
    return [_result_axes(source, terms, shape, digits) for source in sources]


def _sources(
    c: Context, operand: Value, shape: Sequence[int], others: Mapping[Value, object]
) -> list[torch.Tensor] | None:
    """Return for each result the number of the element each of its elements comes from, or None."""
    node, count = c.node, math.prod(shape)
    if not 0 < count <= LARGEST or any(v != operand and v not in others for v in node.values):
        return None
    made = count + _elements(node, operand, shape, others)
    c.room.left -= 3 * made
    if made > 2 * LARGEST or c.room.left < 0:
        return None
    call = compile_call(node)

    def run(values: torch.Tensor) -> list[torch.Tensor] | None:
        tensor = values.reshape(list(shape))
        try:
            found = call(lambda v: tensor if v == operand else others[v])
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return None
        return [r for r in found if isinstance(r, torch.Tensor)]

    generator = torch.Generator().manual_seed(0)
    numbers = run(torch.arange(count, dtype=torch.float64))
    if numbers is None or any(r.dtype != torch.float64 or not r.numel() for r in numbers):
        return None
    for _ in range(2):
        values = torch.randn(count, generator=generator, dtype=torch.float64)
        moved = run(values)
        if moved is None or len(moved) != len(numbers):
            return None
        for found, index in zip(moved, numbers, strict=True):
            whole = (index == index.round()) & (index >= 0) & (index < count)
            if not bool(whole.all()) or not torch.equal(found, values[index.long()]):
                return None
    return [r.long() for r in numbers]


def _elements(node: Node, operand: Value, shape: Sequence[int], others: Mapping[Value, object]) -> int:
    """Return how many elements the results have; more than may be if that cannot be told."""

    def typed(argument: Argument) -> object:
        if isinstance(argument, tuple):
            return tuple(map(typed, argument))
        if isinstance(argument, Value):
            return TensorType(torch.float64, tuple(shape)) if argument == operand else others[argument]
        return argument

    try:
        types = infer_types(node.op, {name: typed(argument) for name, argument in node.arguments.items()})
    except GraphError:
        return 2 * LARGEST
    return sum(math.prod(map(int, t.shape)) for t in types if isinstance(t, TensorType))


def _digit(source: torch.Tensor, shape: Sequence[int], axis: int) -> _Digit | None:
    """Return where an axis lies in the result, if it is a digit of one of its axes."""
    coordinate = (source // math.prod(shape[axis + 1 :])) % shape[axis]
    for k, size in enumerate(source.shape):
        line = coordinate.movedim(k, 0).reshape(size, -1)
        if size == 1 or not bool((line == line[:, :1]).all()):
            continue
        changes = (line[1:, 0] != line[:-1, 0]).nonzero()
        inner = int(changes[0]) + 1 if len(changes) else 0
        if inner and size % (inner * shape[axis]) == 0:
            expected = (torch.arange(size) // inner) % shape[axis]
            if torch.equal(line[:, 0], expected):
                return _Digit(k, inner)
    return None


def _follows(
    c: Context, operand: Value, shape: Sequence[int], others: Mapping[Value, object], axis: int, digit: _Digit
) -> bool:
    """Say whether the axis is the same digit when it has another size, with the same arguments."""
    for factor in (2, 3):
        larger = [n * factor if d == axis else n for d, n in enumerate(shape)]
        sources = _sources(c, operand, larger, others)
        if sources is None or any(_digit(s, larger, axis) != digit for s in sources):
            return False
    return True


def _result_axes(
    source: torch.Tensor, terms: Sequence[Term], shape: Sequence[int], digits: Mapping[int, _Digit]
) -> tuple[Term, ...]:
    """Assemble each axis of a result from the digits that lie in it; what is between them has positions."""
    axes: list[Term] = []
    for k, size in enumerate(source.shape):
        parts: list[Term] = []
        reached = 1
        for inner, axis in sorted((d.inner, axis) for axis, d in digits.items() if d.axis == k):
            if inner % reached:
                raise Unknown("the axes it merges overlap")
            parts += [Atom(inner // reached, POSITIONS), terms[axis]]
            reached = inner * shape[axis]
        if size % reached:
            raise Unknown("the axes it merges do not fill the result")
        parts.append(Atom(size // reached, POSITIONS))
        axes.append(Product(reversed(parts)))
    return tuple(axes)
