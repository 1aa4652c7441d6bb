"""Linear equations between the exponents of one width, and their solution."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from archir.axes.positions import mixes, occurrences
from archir.axes.widths import Width, Widths
from archir.errors import GraphError
from archir.ir.node import Node, Value
from archir.ir.registry import operator_of
from archir.ir.types import TensorType
from archir.rewrite.miss import Miss
from archir.rewrite.zeros import keeps_zero

Variable = tuple[Value, int, int]
"""One occurrence of a width: the value, its axis, and the number of the occurrence within the axis."""


@dataclass
class Equations:
    """Linear equations between exponents: `Σ coefficient * variable = constant`.

    Attributes:
        widths: the widths of the graph.
        width: the width whose exponents these are.
        rows: terms, constant and node of each equation.
        choices: rows that say that exponents add up to one.
        ends: nodes and operands in which the width is summed over.
        uniform: why all units must repeat equally, if they must.
        fresh: why fresh units would change the function, if they would.
        mixed: why units act on each other, if they do.
        miss: why units cannot be repeated at all, if they cannot.
        adding: whether these are the exponents of fresh units, which are zero where one is positive.
        any_of: where fresh units are added, products: the occurrence in the result, None where it is summed over, those
            in the factors, of which one being zero is enough, and the node.
        norms: normalisations over the width to which fresh units may be added that change no sum of squares.
        means: means over the width to which fresh units may be added that are zero.
    """

    widths: Widths
    width: Width
    adding: bool = False
    rows: list[tuple[list[tuple[Variable, int]], int, int]] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    ends: dict[tuple[int, Value], None] = field(default_factory=dict)
    uniform: Miss | None = None
    fresh: Miss | None = None
    mixed: Miss | None = None
    miss: Miss | None = None
    any_of: list[tuple[Variable | None, list[Variable], int]] = field(default_factory=list)
    norms: list[int] = field(default_factory=list)
    means: list[int] = field(default_factory=list)

    def value(self, node: Node, name: str) -> Value | None:
        """Return an argument of a call if it is a tensor."""
        found = node.arguments.get(name)
        return found if isinstance(found, Value) and found in self.widths.axes else None

    def operand(self, node: Node, name: str) -> Value:
        """Return an argument of a call that has to be a tensor.

        Raises:
            GraphError: it is not.
        """
        found = self.value(node, name)
        if found is None:
            raise GraphError(f"{name} of {node.op} is not a tensor", where=str(node.location or ""))
        return found

    def operands(self, node: Node) -> list[Value]:
        """Return every tensor a call uses, in order."""
        return [v for v in node.values if v in self.widths.axes]

    def results(self, node: Node) -> list[Value]:
        """Return every tensor a call makes, in order."""
        return [v for v in node.made if v in self.widths.axes]

    def rank(self, value: Value) -> int:
        """Return the number of axes of a tensor."""
        return len(self.widths.axes[value])

    def variables(self, value: Value | None, axis: int | None = None) -> list[Variable]:
        """Return the occurrences of the width in a value, or along one axis of it, in order."""
        if value is None or value not in self.widths.axes:
            return []
        terms = self.widths.axes[value]
        chosen = range(len(terms)) if axis is None else [axis % len(terms)] if terms else []
        return [(value, d, i) for d in chosen for i in range(occurrences(terms[d], self.width.atom))]

    def by_variable(self) -> dict[Variable, list[int]]:
        """Return the rows that each variable stands in."""
        found: dict[Variable, list[int]] = {}
        for i, (terms, _, _) in enumerate(self.rows):
            for variable, _ in terms:
                found.setdefault(variable, []).append(i)
        return found

    def add(self, node: Node, constant: int, *terms: tuple[Variable, int]) -> None:
        """Add one equation on behalf of a node."""
        self.rows.append((list(terms), constant, node.id))

    def zero(self, node: Node, variables: Sequence[Variable]) -> None:
        """Copies must be exact."""
        for v in variables:
            self.add(node, 0, (v, 1))

    def equal(self, node: Node, left: Sequence[Variable], right: Sequence[Variable]) -> None:
        """Equate occurrences one by one, or all of them where their numbers differ."""
        if len(left) == len(right):
            for a, b in zip(left, right, strict=True):
                self.add(node, 0, (a, 1), (b, -1))
        elif left and right:
            for v in (*left[1:], *right):
                self.add(node, 0, (left[0], 1), (v, -1))
        else:
            self.zero(node, [*left, *right])

    def total(self, node: Node, result: Sequence[Variable], *factors: Sequence[Variable]) -> None:
        """The exponents of a product are the sums of those of its factors."""
        present = [f for f in factors if f]
        if len(present) == 1:
            self.equal(node, result, present[0])
        elif all(len(f) == len(result) for f in present):
            for i, r in enumerate(result):
                if self.adding:
                    self.any_of.append((r, [f[i] for f in present], node.id))
                else:
                    self.add(node, 0, (r, 1), *((f[i], -1) for f in present))
        else:
            self.zero(node, [*result, *(v for f in present for v in f)])

    def exact(self, node: Node) -> None:
        """Copies must be exact in everything a call uses and makes; fresh units may be zero where it keeps zeros."""
        operands = self.operands(node)
        if self.adding and operator_of(node.op).pointwise and len(operands) == 1:
            type_ = self.widths.graph.type_of(operands[0])
            assert isinstance(type_, TensorType)
            if keeps_zero(node, type_.dtype):
                self.align(node, operands)
                return
        for value in (*operands, *self.results(node)):
            self.zero(node, self.variables(value))

    def align(self, node: Node, operands: Sequence[Value]) -> None:
        """Equate the exponents of a result with those of operands that are broadcast to it and add up to it."""
        out = Value(node.id)
        for value in operands:
            for back in range(1, self.rank(out) + 1):
                present = self.variables(value, -back) if back <= self.rank(value) else []
                self.equal(node, self.variables(out, -back), present)

    def contract(self, node: Node, *factors: Sequence[Variable]) -> None:
        """Exponents of axes that are summed over against each other add up to one."""
        present = [f for f in factors if f]
        if len({len(f) for f in present}) > 1:
            self.miss = self.miss or Miss(f"{node.op} sums over it in a way that cannot be corrected", (node.id,))
            return
        self.end(node, *present)
        for parts in zip(*present, strict=True):
            if self.adding:
                self.any_of.append((None, list(parts), node.id))
            else:
                self.choices.append(len(self.rows))
                self.add(node, 1, *((v, 1) for v in parts))

    def sum_over(self, node: Node, variables: Sequence[Variable]) -> None:
        """Exponents of axes that are summed over against exact copies are one."""
        for v in variables:
            self.add(node, 1, (v, 1))

    def end(self, node: Node, *factors: Sequence[Variable]) -> None:
        """Note that the width ends in operands of a node: it is summed over there."""
        self.ends.update(dict.fromkeys((node.id, v[0]) for f in factors for v in f))

    def average(self, node: Node, value: Value, axes: Iterable[int], what: str) -> None:
        """Statistics over some axes of a value keep theirs if all units there repeat equally, if they are all there is.

        Args:
            node: the call that takes them.
            value: what it takes them of.
            axes: the axes they run over.
            what: what they are, `"a mean"`.
        """
        terms = self.widths.axes[value]
        present = [terms[axis] for axis in axes if self.variables(value, axis)]
        if any(mixes(term, self.width.atom) for term in present):
            self.forbid(node, f"{what} runs over it and what it is concatenated with, whose shares would change")
        elif present:
            reason = f"{what} runs over it, so all its units must repeat equally"
            self.uniform = self.uniform or Miss(reason, (node.id,))

    def forbid_fresh(self, node: Node, reason: str) -> None:
        """Units may repeat, but there can be no fresh ones; the first reason is kept."""
        self.fresh = self.fresh or Miss(reason, (node.id,))

    def mix(self, node: Node, reason: str) -> None:
        """Units act on each other, so none can be looked at alone; the first reason is kept."""
        self.mixed = self.mixed or Miss(reason, (node.id,))

    def forbid(self, node: Node, reason: str) -> None:
        """Units cannot be repeated at all; the first reason is kept."""
        self.miss = self.miss or Miss(reason, (node.id,))


Relation = Callable[[Equations, Node], None]
"""Adds the equations of one call."""


def solve(q: Equations, stored: set[Value]) -> dict[Variable, int] | Miss:
    """Solve by propagation: determined variables first, then one choice a contraction, then zeros."""
    by_variable, known = q.by_variable(), dict[Variable, int]()
    failed = propagate(q, by_variable, known, range(len(q.rows)))
    if failed is not None:
        return _contradiction(q, failed)
    for row in q.choices:
        terms, _, _ = q.rows[row]
        unknown = [v for v, _ in terms if v not in known]
        if not unknown:
            continue
        for choice in sorted(unknown, key=lambda v: v[0] not in stored):
            trial = dict(known)
            trial.update({v: int(v == choice) for v in unknown})
            rows = [r for v in unknown for r in by_variable[v]]
            failed = propagate(q, by_variable, trial, rows)
            if failed is None:
                known = trial
                break
        else:
            return _contradiction(q, row)
    for variable in by_variable:
        if variable not in known:
            known[variable] = 0
            failed = propagate(q, by_variable, known, by_variable[variable])
            if failed is not None:
                return _contradiction(q, failed)
    return known


def propagate(
    q: Equations,
    by_variable: Mapping[Variable, list[int]],
    known: dict[Variable, int],
    rows: Sequence[int] | range,
    found: list[Variable] | None = None,
) -> int | None:
    """Fill in every variable that is determined; return a row that cannot hold, or None.

    Args:
        q: the equations.
        by_variable: the rows that each variable stands in.
        known: what is determined so far; filled in.
        rows: the rows to begin with.
        found: where the variables that are filled in are noted.
    """
    queue = deque(rows)
    while queue:
        row = queue.popleft()
        terms, constant, _ = q.rows[row]
        unknown = [(v, c) for v, c in _merged(terms) if v not in known]
        rest = constant - sum(c * known[v] for v, c in terms if v in known)
        if not unknown and rest:
            return row
        if len(unknown) == 1:
            variable, coefficient = unknown[0]
            if rest % coefficient:
                return row
            known[variable] = rest // coefficient
            if found is not None:
                found.append(variable)
            queue.extend(by_variable[variable])
    return None


def _merged(terms: Sequence[tuple[Variable, int]]) -> Iterator[tuple[Variable, int]]:
    totals: dict[Variable, int] = {}
    for variable, coefficient in terms:
        totals[variable] = totals.get(variable, 0) + coefficient
    return ((v, c) for v, c in totals.items() if c)


def _contradiction(q: Equations, row: int) -> Miss:
    _, _, id_ = q.rows[row]
    node = q.widths.graph.node(id_)
    where = f" ({node.location})" if node.location else ""
    return Miss(f"no stored tensor can take the division that {node.op.removesuffix('.default')}{where} needs", (id_,))
