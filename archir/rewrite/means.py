"""Where stored tensors have to hold means of units for a value to hold the mean of its units.

Followed back from the value: a sum of means is the mean of a sum, what moves units does so with means, and a layer
makes the mean of its units of rows of weights that are means of rows.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from archir.axes.positions import mixes, occurrences
from archir.axes.widths import Width, Widths
from archir.ir.node import INPUT, PARAMETER, Node, Value
from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of
from archir.ir.types import is_float
from archir.rewrite.miss import Miss
from archir.rewrite.relations import convolution, movement
from archir.rewrite.relations.convolution import counts_groups

Place = tuple[Value, int]
"""A value and one of its axes."""


def stored_means(widths: Widths, width: Width, places: Iterable[Place]) -> frozenset[Place] | Miss:
    """Return the axes of stored tensors that have to hold the mean of the units of a width for some values to do so.

    Args:
        widths: the widths of the graph.
        width: the width.
        places: the values, and the axis along which the width stands in each.

    Returns:
        The axes, or what makes one of the values and does not make means of means.
    """
    graph, found, waiting = widths.graph, set[Place](), list(places)
    seen = set(waiting)
    while waiting:
        value, axis = waiting.pop()
        node, term = graph.node(value.node), widths.axes[value][axis]
        if occurrences(term, width.atom) != 1 or mixes(term, width.atom):
            return Miss("what a layer norm runs over is concatenated somewhere on its way", (node.id,))
        if node.op == PARAMETER and is_float(graph.type_of(value)):
            found.add((value, axis))
            continue
        makers = None if node.op == INPUT else MAKERS.get(node.op.rpartition(".")[0].removeprefix("aten."))
        before = None if makers is None else list(makers(_Step(widths, width, node, value, axis)))
        if not before:
            what = node.op.removesuffix(".default")
            return Miss(f"a layer norm runs over it, and {what} makes no means of means", (node.id,))
        waiting += [p for p in before if p not in seen]
        seen.update(before)
    return frozenset(found)


class _Step:
    """A call, one of its results and the axis of it along which the units stand."""

    def __init__(self, widths: Widths, width: Width, node: Node, made: Value, axis: int) -> None:
        self.widths, self.width, self.node = widths, width, node
        self.made, self.axis, self.back = made, axis, axis - len(widths.axes[made])

    def carries(self, value: Value, axis: int) -> bool:
        """Say whether the width stands along an axis of a value."""
        terms = self.widths.axes.get(value, ())
        return -len(terms) <= axis < len(terms) and occurrences(terms[axis], self.width.atom) > 0

    def places(self, value: Value) -> list[Place]:
        """Return the axes of a value along which the width stands."""
        return [(value, axis) for axis in range(len(self.widths.axes[value])) if self.carries(value, axis)]

    def aligned(self, *names: str) -> list[Place]:
        """Return the axes of operands that lie along that of the result and carry the width."""
        values = [v for n in names if isinstance(v := self.node.arguments.get(n), Value)]
        return [(v, len(self.widths.axes[v]) + self.back) for v in values if self.carries(v, self.back)]


Maker = Callable[[_Step], Iterator[Place]]
"""Yields the places that have to hold means; nothing where that does not do."""


def _sum(step: _Step) -> Iterator[Place]:
    """`add`, `sub`: what does not carry the width adds the same to all units."""
    yield from step.aligned("self", "other")


def _scale(step: _Step) -> Iterator[Place]:
    """`mul`, `div`: by what is the same for all units."""
    found = step.aligned("self", "other")
    divided = "div" not in step.node.op or step.aligned("self") == found
    if len(found) == 1 and divided and step.node.arguments.get("rounding_mode") is None:
        yield from found


def _move(step: _Step) -> Iterator[Place]:
    """What moves units, or treats each like the others and linearly."""
    first = next(v for v in step.node.values if v in step.widths.axes)
    found = step.places(first)
    if len(found) == 1 and is_float(step.widths.graph.type_of(step.made)):
        yield from found


def _join(step: _Step) -> Iterator[Place]:
    """`cat`, `stack`: along another axis."""
    found = [step.places(v) for v in step.node.values if v in step.widths.axes]
    if all(len(places) == 1 for places in found):
        yield from (place for places in found for place in places)


def _embed(step: _Step) -> Iterator[Place]:
    """`embedding`: rows of the table."""
    if step.back == -1:
        yield step.node.operand("weight"), 1


def _apply(step: _Step) -> Iterator[Place]:
    """`linear`: rows of the weight, and the bias."""
    if step.back == -1 and len(step.widths.axes[step.node.operand("weight")]) == 2:
        yield step.node.operand("weight"), 0
        yield from step.aligned("bias")


def _multiply(step: _Step) -> Iterator[Place]:
    """`matmul`, `addmm`: columns of the right operand, and what is added."""
    right = [v for v in step.node.values if v in step.widths.axes][-1]
    if step.back == -1 and len(step.widths.axes[right]) > 1 and step.carries(right, -1):
        yield right, len(step.widths.axes[right]) - 1
        if "addmm" in step.node.op:
            yield from step.aligned("self")


def _convolve(step: _Step) -> Iterator[Place]:
    """Convolutions: output channels of the weight, and the bias."""
    weight, bias = step.node.operand("weight"), step.node.arguments.get("bias")
    rank = len(step.widths.axes[weight])
    if step.back == 1 - rank and not counts_groups(step.widths, step.width, step.node):
        transposed = operator_of(step.node.op).kind is Kind.TRANSPOSED or bool(step.node.arguments.get("transposed"))
        yield weight, int(transposed)
        if isinstance(bias, Value):
            yield bias, 0


MAKERS: Mapping[str, Maker] = {
    **dict.fromkeys((name for name in movement.RELATIONS if "max" not in name), _move),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _join),
    **dict.fromkeys(("add", "sub", "subtract"), _sum),
    **dict.fromkeys(("mul", "multiply", "div", "divide", "true_divide"), _scale),
    **dict.fromkeys(("mean", "sum"), _move),
    **dict.fromkeys(convolution.RELATIONS, _convolve),
    **dict.fromkeys(("matmul", "mm", "addmm"), _multiply),
    "embedding": _embed,
    "linear": _apply,
}
