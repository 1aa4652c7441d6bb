"""What fresh units need to hold to keep the function: zero, the mean of the others, or anything.

A fresh unit may be anything where what sums over it holds zero for it, and zero where that does not; which of the two
it is in each place follows from the calls, as exponents of repeated units do. Where a normalisation runs over the width
it must change neither the mean nor the sum of squared deviations besides. Under a layer norm it carries the mean of the
others, from wherever these are made: rows of weights, biases, tables and tokens that are means of rows make units that
are means of units. Under an RMS norm, or any other mean over the width, it is zero. That there are more units then
changes scales, which `archir.rewrite.scales` makes up for.

Source: Wang et al. 2024 (LEMON) for units that carry the mean; zeros, and that any wiring is followed, are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from archir.axes.widths import Width, Widths
from archir.ir.node import Value
from archir.rewrite.equations import Equations, Variable, propagate
from archir.rewrite.means import Place, stored_means
from archir.rewrite.miss import Miss
from archir.rewrite.multiplicity import relate
from archir.rewrite.remembered import remembered
from archir.rewrite.scales import Scales, find_scales


@dataclass(frozen=True)
class FreshUnits:
    """How fresh units of one width are to be stored.

    Attributes:
        zeros: the occurrences in stored tensors where they hold zero.
        means: the axes of stored tensors along which they hold the mean of the other units.
        scales: by what powers of the part of the units that is not fresh other things are multiplied.
    """

    zeros: frozenset[Variable]
    means: frozenset[Place]
    scales: Scales

    @property
    def acts_on_others(self) -> bool:
        """Whether they change what the other units do as soon as they hold something else."""
        return bool(self.scales.stored or self.scales.numbers)

    def zero(self, value: Value, axis: int) -> frozenset[int]:
        """Return the occurrences along an axis of a stored tensor where they hold zero."""
        return self._zeros.get((value, axis), frozenset())

    @cached_property
    def _zeros(self) -> Mapping[Place, frozenset[int]]:
        found: dict[Place, set[int]] = {}
        for value, axis, occurrence in self.zeros:
            found.setdefault((value, axis), set()).add(occurrence)
        return {place: frozenset(occurrences) for place, occurrences in found.items()}


@remembered
def solve_fresh(widths: Widths, width: Width) -> FreshUnits | Miss:
    """Find out how fresh units can be added to a width with the function kept.

    Args:
        widths: the widths of the graph.
        width: one of its free widths.

    Returns:
        What they hold in all stored tensors, or the reason why there can be none.
    """
    graph, equations = widths.graph, relate(widths, width, adding=True)
    blocked = equations.miss or equations.uniform or equations.fresh
    if blocked is not None:
        return blocked
    stored = {v for v in widths.values(width) if graph.node(v.node).parameter}
    known = _zeros(equations, stored)
    if isinstance(known, Miss):
        return known
    zeros = frozenset(v for v, zero in known.items() if zero and v[0] in stored)
    centred = [node for id_ in equations.norms if not (node := graph.node(id_)).op.startswith("aten.rms_norm")]
    normalised = [equations.operand(node, "input") for node in centred]
    means = stored_means(widths, width, [(x, equations.rank(x) - 1) for x in normalised])
    if isinstance(means, Miss):
        return means
    scales = find_scales(graph, equations.norms, equations.means)
    if isinstance(scales, Miss):
        return scales
    return FreshUnits(zeros, means, scales)


def _zeros(q: Equations, stored: set[Value]) -> dict[Variable, int] | Miss:
    """Say of every occurrence whether fresh units are zero there: one where they are.

    What is determined comes first; then, for each sum over the width that sees fresh units still, what comes out of a
    normalisation, a stored tensor, or another factor is made zero, in this order; all else need not be.
    """
    by_variable, by_factor, known = q.by_variable(), dict[Variable, list[int]](), dict[Variable, int]()
    for i, (made, factors, _) in enumerate(q.any_of):
        for variable in filter(None, (made, *factors)):
            by_factor.setdefault(variable, []).append(i)

    def settle(rows: Sequence[int], products: Iterable[int]) -> tuple[list[Variable], int | None]:
        """Fill in what is determined; return what was, and a node that cannot be satisfied, or None."""
        new: list[Variable] = []
        while rows or products:
            found: list[Variable] = []
            failed = propagate(q, by_variable, known, rows, found)
            new += found
            if failed is not None:
                return new, q.rows[failed][2]
            touched = sorted({*products, *(i for v in found for i in by_factor.get(v, ()))})
            rows, products = [], []
            for i in touched:
                determined = _product(*q.any_of[i][:2], known)
                if determined is None:
                    return new, q.any_of[i][2]
                for variable, zero in determined.items():
                    known[variable] = zero
                    new.append(variable)
                    rows += by_variable.get(variable, ())
                    products += by_factor.get(variable, ())
        return new, None

    def assume(variable: Variable, zero: int) -> int | None:
        """Take a variable for zero or not; take it back, and return the node, where that cannot be."""
        known[variable] = zero
        new, failed = settle(by_variable.get(variable, ()), by_factor.get(variable, ()))
        if failed is not None:
            for each in (variable, *new):
                del known[each]
        return failed

    _, failed = settle(range(len(q.rows)), range(len(q.any_of)))
    if failed is not None:
        return _contradiction(q, failed)
    for made, factors, id_ in q.any_of:
        if made is not None or any(known.get(v) for v in factors):
            continue
        choices = sorted(
            (v for v in factors if v not in known), key=lambda v: (v[0].node not in q.norms, v[0] not in stored)
        )
        if all(assume(choice, 1) is not None for choice in choices):
            return _contradiction(q, id_)
    for variable in sorted({*by_variable, *by_factor}):
        if variable not in known:
            failed = assume(variable, 0)
            if failed is not None:
                return _contradiction(q, failed)
    return known


def _product(
    made: Variable | None, factors: Sequence[Variable], known: Mapping[Variable, int]
) -> dict[Variable, int] | None:
    """Return what a product determines; None if it cannot be satisfied."""
    wanted = 1 if made is None else known.get(made)
    open_ = [v for v in factors if v not in known]
    zero = any(known.get(v) for v in factors)
    if (zero and wanted == 0) or (not zero and not open_ and wanted == 1):
        return None
    if wanted is None and made is not None and (zero or not open_):
        return {made: int(zero)}
    if wanted == 0:
        return dict.fromkeys(open_, 0)
    return {open_[0]: 1} if wanted == 1 and not zero and len(open_) == 1 else {}


def _contradiction(q: Equations, id_: int) -> Miss:
    node = q.widths.graph.node(id_)
    where = f" ({node.location})" if node.location else ""
    return Miss(f"{node.op.removesuffix('.default')}{where} would see fresh units, whatever is zero for them", (id_,))
