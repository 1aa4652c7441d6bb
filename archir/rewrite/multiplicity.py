"""What a repeated unit needs to keep the function: exponents.

Let unit `j` of a width be repeated `m[j]` times. In every value that carries the width, each copy holds the old unit
times `m[j] ** -e`, where the exponent `e` belongs to the place where the width stands in that value. Every operator
says how exponents are related: a sum keeps them equal, a product adds them, a contraction over the width needs them to
add up to one, a non-linear operator needs zero. Stored tensors are free to take any; solving the equations says
which stored tensors are divided. A tied embedding, for example, cannot be divided, so the division moves into the
affine parameters of the last normalisation.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from archir.axes.widths import Width, Widths
from archir.ir.node import Node, Value
from archir.ir.types import TensorType
from archir.rewrite.equations import Equations, Relation, Variable, solve
from archir.rewrite.miss import Miss
from archir.rewrite.relations import (
    arithmetic,
    attention,
    convolution,
    movement,
    normalisation,
    product,
    recurrent,
    reduction,
)
from archir.rewrite.remembered import remembered

RELATIONS: Mapping[str, Relation] = {
    f"aten.{name}": relation
    for family in (arithmetic, attention, convolution, movement, normalisation, product, recurrent, reduction)
    for name, relation in family.RELATIONS.items()
}
"""How each operator, all its overloads alike, relates exponents; any other wants copies to be exact."""


@dataclass(frozen=True)
class Exponents:
    """How repeated and fresh units of one width are to be stored.

    Attributes:
        stored: the exponent of every occurrence in stored tensors.
        uniform: a node that keeps the function only if all units repeat equally, and why; None if there is none.
    """

    stored: Mapping[Variable, int]
    uniform: Miss | None

    def of(self, value: Value, axis: int) -> list[int]:
        """Return the exponents of the occurrences along one axis of a stored tensor, in order."""
        return self._along.get((value, axis), [])

    @cached_property
    def _along(self) -> Mapping[tuple[Value, int], list[int]]:
        found: dict[tuple[Value, int], list[int]] = {}
        for value, axis, occurrence in sorted(self.stored):
            found.setdefault((value, axis), []).append(self.stored[value, axis, occurrence])
        return found


def relate(widths: Widths, width: Width, *, adding: bool = False) -> Equations:
    """Return the equations between the exponents of a width, from every call it touches.

    Args:
        widths: the widths of the graph.
        width: one of its free widths.
        adding: whether fresh units are added, and not units repeated.
    """
    graph = widths.graph
    equations = Equations(widths, width, adding)
    for id_ in sorted(widths.nodes(width)):
        node = graph.node(id_)
        if node.is_call and not _only_asks_sizes(node):
            relation = RELATIONS.get(node.op.rpartition(".")[0], Equations.exact)
            relation(equations, node)
    return equations


def _only_asks_sizes(node: Node) -> bool:
    """Say whether a call makes no tensor and reads none, such as `sym_size`."""
    makes_tensor = any(isinstance(t, TensorType) for t in node.results)
    return not makes_tensor and (not node.results or node.op.startswith("aten.sym_"))


@remembered
def solve_exponents(widths: Widths, width: Width) -> Exponents | Miss:
    """Find out how units of a width can be repeated with the function kept.

    Args:
        widths: the widths of the graph.
        width: one of its free widths.

    Returns:
        The exponents of all stored tensors, or the reason why there are none.
    """
    equations = relate(widths, width)
    if equations.miss:
        return equations.miss
    carrying = widths.values(width)
    stored = {v for v in carrying if widths.graph.node(v.node).parameter}
    solution = solve(equations, stored)
    if isinstance(solution, Miss):
        return solution
    every = [v for value in carrying if value in stored for v in equations.variables(value)]
    return Exponents({v: solution.get(v, 0) for v in every}, equations.uniform)
