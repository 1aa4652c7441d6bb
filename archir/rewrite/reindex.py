"""Reindexing: the units of widths become other units, everywhere they stand, with the function kept.

Split, prune, widen, merge are all this. Every stored axis is gathered by evaluating its term; repeated units are
divided where `archir.rewrite.multiplicity` says so; sizes in the arguments of calls are spelled anew from the terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from archir.axes.positions import contains, gather_index, positions, size_of, unit_index
from archir.axes.terms import Atom, Term, leaves
from archir.axes.widths import Width, Widths
from archir.errors import PassError
from archir.ir.edit import Edit
from archir.ir.graph import Patch
from archir.ir.node import PARAMETER, Node, Value
from archir.ir.room import too_large
from archir.ir.seeds import derived_seed
from archir.ir.tensor_map import AxisMap, Division, Fresh, TensorMap, along
from archir.ir.types import ScalarType, Size, TensorType, as_size
from archir.rewrite.changes import Change
from archir.rewrite.fresh_units import FreshUnits, solve_fresh
from archir.rewrite.miss import Miss, missed
from archir.rewrite.multiplicity import Exponents, solve_exponents


@dataclass(frozen=True)
class Reindexing:
    """Changes of several widths at once, and how to carry them over to any tensor shaped like a stored one.

    Attributes:
        widths: the widths of the graph before the change.
        changes: by width name.
        exponents: for the widths whose units are repeated, how they are stored.
        fresh: for the widths that gain fresh units, what these hold.
    """

    widths: Widths
    changes: Mapping[str, Change]
    exponents: Mapping[str, Exponents]
    fresh: Mapping[str, FreshUnits] = field(default_factory=dict)

    @cached_property
    def _pairs(self) -> Sequence[tuple[Width, Change]]:
        return [(self.widths[name], change) for name, change in self.changes.items()]

    @cached_property
    def sizes(self) -> Mapping[Atom, int]:
        """The new size of every changed atom."""
        return {w.atom: len(c.source) for w, c in self._pairs}

    @cached_property
    def _extended(self) -> Mapping[Atom, int]:
        return {w.atom: w.size + c.fresh for w, c in self._pairs}

    @cached_property
    def _sources(self) -> Mapping[Atom, torch.Tensor]:
        return {w.atom: torch.tensor(c.source, dtype=torch.long) for w, c in self._pairs}

    def _touching(self, node: int) -> list[tuple[Width, Change]]:
        """Return the widths that stand in a stored tensor, in order, and their changes."""
        atoms = {atom for term in self._terms(node) for atom in leaves(term)}
        return [self._pairs[i] for i in sorted(self._order[a] for a in atoms & self._order.keys())]

    @cached_property
    def _order(self) -> Mapping[Atom, int]:
        return {width.atom: i for i, (width, _) in enumerate(self._pairs)}

    def _terms(self, node: int) -> tuple[Term, ...]:
        return self.widths.axes[Value(node)]

    def map(self, node: int) -> TensorMap:
        """Return how a stored tensor is made of what it was: fresh units, then means, then copies, which are divided.

        Args:
            node: the parameter node.
        """
        return TensorMap((*self._append(node), *self._average(node), *self._copy(node), *self._scale(node)))

    def theta(self, node: int, by: TensorMap) -> torch.Tensor | None:
        """Return the sum of what the changes add to a stored tensor as it becomes, None if they add nothing.

        Args:
            node: the parameter node.
            by: how the tensor is made of what it was.
        """
        total: torch.Tensor | None = None
        for width, change in self._touching(node):
            theta = change.theta.get(node)
            if theta is not None and any(change.sign):
                added = by.change(theta)
                added = added * self._sign(node, width, change).to(added)
                total = added if total is None else total + added
        return total

    def _append(self, node: int) -> Iterator[AxisMap]:
        """Yield the maps that append the fresh units of every width, each in its place within the axis.

        Those that are means come last: they are means of what the others have brought, too.
        """
        sizes: dict[Atom, int] = {}
        means = self._means.get(node, ())
        for width, change in sorted(self._touching(node), key=lambda pair: pair[0].name in means):
            if not change.fresh:
                continue
            new = {**sizes, width.atom: width.size + change.fresh}
            source = torch.cat([torch.arange(width.size), torch.full((change.fresh,), -1)])
            units = torch.arange(width.size, width.size + change.fresh)
            for axis, term in enumerate(self._terms(node)):
                where = positions(term, width.atom, units, new)
                if len(where):
                    index = gather_index(term, {width.atom: source}, sizes)
                    present = self._present(node, width, axis, where, new)
                    shares = self._shares(node, width, axis, where, sizes)
                    values = change.values.get(node)
                    within = () if values is None else self._within(node, width, axis, where, sizes)
                    fresh = Fresh(values, derived_seed(0, node), present, shares, within)
                    yield AxisMap(axis, index, fresh=fresh)
            sizes = new

    def _within(
        self, node: int, width: Width, axis: int, where: torch.Tensor, sizes: Mapping[Atom, int]
    ) -> tuple[torch.Tensor, ...]:
        """Return by axis the places that are not of the fresh units of the widths before, whose sizes are given."""
        sources = {
            atom: torch.cat([torch.arange(atom.size), torch.full((size - atom.size,), -1)])
            for atom, size in sizes.items()
        }
        extended = {width.atom: width.size + self.changes[width.name].fresh}
        old = [gather_index(t, sources, extended if d == axis else {}) for d, t in enumerate(self._terms(node))]
        old[axis] = old[axis][where]
        return tuple((index >= 0).nonzero().flatten() for index in old)

    def _shares(
        self, node: int, width: Width, axis: int, where: torch.Tensor, sizes: Mapping[Atom, int]
    ) -> torch.Tensor | None:
        """Return what the new places of an axis hold of each of the old ones where they hold means; None elsewhere."""
        change, found = self.changes[width.name], self.fresh.get(width.name)
        if found is None or (Value(node), axis) not in found.means:
            return None
        term, kept = self._terms(node)[axis], [u for u in change.source if u < width.size]
        shares = torch.zeros(len(where), size_of(term, sizes), dtype=torch.float64)
        for unit in kept:
            source = torch.cat([torch.arange(width.size), torch.full((change.fresh,), unit)])
            old = gather_index(term, {width.atom: source}, sizes)[where]
            shares[torch.arange(len(where)), old] += 1 / len(kept)
        return shares

    def _present(
        self, node: int, width: Width, axis: int, where: torch.Tensor, sizes: Mapping[Atom, int]
    ) -> torch.Tensor:
        """Return zero for the new places of an axis in which fresh units hold zero; `[new places]`."""
        present = torch.ones(len(where))
        if width.name in self.fresh:
            for occurrence in self.fresh[width.name].zero(Value(node), axis):
                unit = unit_index(self._terms(node)[axis], width.atom, occurrence, sizes)[where]
                present = present * (unit < width.size)
        return present

    def _scale(self, node: int) -> Iterator[AxisMap]:
        """Yield the maps that let a stored tensor make up for fresh units."""
        scale = 1.0
        for name, found in self.fresh.items():
            if node in found.scales.stored:
                scale *= part_kept(self.widths[name], self.changes[name]) ** float(found.scales.stored[node])
        if scale != 1:
            size = size_of(self._terms(node)[0], self.sizes)
            yield AxisMap(0, torch.arange(size), scale=scale)

    @cached_property
    def _means(self) -> Mapping[int, set[str]]:
        """By stored tensor, the widths whose fresh units hold means in it."""
        found: dict[int, set[str]] = {}
        for name, fresh in self.fresh.items():
            for value, _ in fresh.means:
                found.setdefault(value.node, set()).add(name)
        return found

    @property
    def scaled(self) -> Iterator[int]:
        """The nodes, besides those in which a changed width stands, that make up for fresh units."""
        for fresh in self.fresh.values():
            yield from fresh.scales.stored
        yield from self.numbers

    @cached_property
    def numbers(self) -> Mapping[int, Mapping[str, float]]:
        """By call, the numbers among its arguments that make up for fresh units, as they become."""
        found: dict[int, dict[str, float]] = {}
        for name, fresh in self.fresh.items():
            part = part_kept(self.widths[name], self.changes[name])
            for (id_, argument), power in fresh.scales.numbers.items():
                numbers = found.setdefault(id_, {})
                given = numbers.get(argument, _number(self.widths.graph.node(id_), argument))
                numbers[argument] = given * part ** float(power)
        return found

    def _average(self, node: int) -> Iterator[AxisMap]:
        """Yield the maps that let units that are merged hold the mean of both."""
        for width, change in self._touching(node):
            if change.merged:
                partners = change.partners(width.size)
                for axis, term in enumerate(self._terms(node)):
                    if contains(term, width.atom):
                        other = gather_index(term, {width.atom: partners}, self._extended)
                        yield AxisMap(axis, torch.arange(len(other)), other)

    def _copy(self, node: int) -> Iterator[AxisMap]:
        """Yield the maps of the axes whose units are repeated, left out or in another order."""
        touching = self._touching(node)
        for axis, term in enumerate(self._terms(node)):
            index = gather_index(term, self._sources, self._extended)
            divisions = tuple(d for width, change in touching for d in self._divisions(node, axis, width, change))
            if divisions or not torch.equal(index, torch.arange(size_of(term, self._extended))):
                here = tuple(Division(d.copies[index], d.exponent) for d in divisions)
                yield AxisMap(axis, index, divisions=here)

    def _divisions(self, node: int, axis: int, width: Width, change: Change) -> Iterator[Division]:
        """Yield by what an axis is divided for the copies of one width, before they are made."""
        if width.name in self.exponents:
            counts = change.multiplicity(width.size).clamp(min=1).double()
            counts[[u for pair in change.merged for u in pair]] = 0.5
            for occurrence, exponent in enumerate(self.exponents[width.name].of(Value(node), axis)):
                unit = unit_index(self._terms(node)[axis], width.atom, occurrence, self._extended)
                copies = torch.where(unit >= 0, counts[unit.clamp(min=0)], 1)
                if not bool((copies == 1).all()):
                    yield Division(copies, exponent)

    def _sign(self, node: int, width: Width, change: Change) -> torch.Tensor:
        """Return the sign of every position of the new tensor, where the width is copied and not divided."""
        terms = self._terms(node)
        sign, new_sizes = torch.tensor(change.sign), self.sizes
        result = torch.zeros([1] * len(terms), dtype=torch.long)
        for axis, term in enumerate(terms):
            for occurrence, exponent in enumerate(self.exponents[width.name].of(Value(node), axis)):
                if exponent == 0:
                    unit = unit_index(term, width.atom, occurrence, new_sizes)
                    here = torch.where(unit >= 0, sign[unit.clamp(min=0)], 0)
                    shaped = along(axis, here, len(terms))
                    result = torch.where(shaped != 0, shaped, result)
        return result


def _number(node: Node, argument: str) -> float:
    """Return a number among the arguments of a call; torch takes the ε of the element type where none is given."""
    given, type_ = node.argument(argument), node.results[0]
    if isinstance(given, int | float):
        return float(given)
    assert given is None and argument == "eps" and isinstance(type_, TensorType)
    wide = torch.promote_types(type_.dtype, torch.float32)  # torch computes halves in single precision
    return torch.finfo(wide).eps


def part_kept(width: Width, change: Change) -> float:
    """Return how many of the units of a changed width it had before, as a part of all."""
    return sum(u < width.size for u in change.source) / len(change.source)


def plan_reindexing(widths: Widths, changes: Mapping[str, Change], *, keep: bool = True) -> Reindexing:
    """Check that units of widths may become other units, and find out how.

    Args:
        widths: the widths of the graph.
        changes: by width name.
        keep: whether the function has to be kept; if not, units are repeated as they are, in any numbers.

    Raises:
        PassError: there is no such width, a unit is out of range, no unit would be left, or the function cannot be
            kept.
    """
    exponents: dict[str, Exponents] = {}
    fresh: dict[str, FreshUnits] = {}
    for name, change in changes.items():
        width = widths[name]
        highest = width.size + change.fresh
        wrong = [u for u in change.source if not 0 <= u < highest]
        if wrong or not change.source:
            why = f"unit {wrong[0]} is not below {width.size}" if wrong else "no unit would be left"
            raise PassError(f"width {name} cannot be changed so", why=why)
        counts = change.multiplicity(width.size)
        if not keep:
            continue
        if change.fresh:
            added = solve_fresh(widths, width)
            if isinstance(added, Miss):
                raise missed(widths.graph, f"width {name} cannot take fresh units", added)
            fresh[name] = added
        if not change.merged and int(counts.max()) <= 1:
            continue
        found = solve_exponents(widths, width)
        verb = "merged" if change.merged else "repeated"
        if isinstance(found, Miss):
            raise missed(widths.graph, f"units of width {name} cannot be {verb}", found)
        if found.uniform and (change.fresh or len(set(counts.tolist())) > 1):
            raise missed(widths.graph, f"single units of width {name} cannot be {verb}", found.uniform)
        exponents[name] = found
    plan = Reindexing(widths, changes, exponents, fresh)
    _check_room(plan)
    return plan


def _check_room(plan: Reindexing) -> None:
    """Check that the stored tensors fit into memory as they will be.

    Raises:
        PassError: they do not.
    """
    graph, sizes, size = plan.widths.graph, plan.sizes, 0
    for node in graph.parameters:
        shape = [size_of(term, sizes) for term in plan.widths.axes.get(Value(node.id), ())]
        size += math.prod(shape) * graph.tensors[node.id].element_size()
    why = too_large(size)
    if why:
        raise PassError(f"the graph would be too large with other sizes of {', '.join(plan.changes)}", why=why)


def reindex(plan: Reindexing, *, by: str) -> Patch:
    """Carry out a reindexing.

    Args:
        plan: from `plan_reindexing`.
        by: spec of the pass, for the history.

    Raises:
        GraphError: the result is malformed (a defect of an axis rule).
    """
    widths, graph, sizes = plan.widths, plan.widths.graph, plan.sizes
    with graph.edit(by=by) as e:
        near = dict.fromkeys((*(i for name in plan.changes for i in widths.nodes(widths[name])), *plan.scaled))
        for id_ in near:
            node = graph.node(id_)
            if node.op == PARAMETER:
                how = plan.map(id_)
                e.remap(id_, how, plan.theta(id_, how))
            elif node.is_call:
                _respell(e, widths, id_, sizes, plan.numbers.get(id_, {}))
        _remove_unused_numbers(e, {v.node for id_ in near for v in graph.node(id_).values})
    return e.patch


def _remove_unused_numbers(e: Edit, candidates: set[int]) -> None:
    """Remove run-time sizes that nothing needs any more, now that a reshape says -1, and those they were made of."""
    while candidates:
        node = e.node(candidates.pop())
        numbers = node.is_call and all(isinstance(t, ScalarType) for t in node.results)
        if numbers and not any(map(e.uses, node.made)):
            e.remove(node.id)
            candidates |= {v.node for v in node.values}


def _respell(e: Edit, widths: Widths, id_: int, sizes: Mapping[Atom, int], numbers: Mapping[str, float]) -> None:
    node = widths.graph.node(id_)
    results = tuple(
        resized_type(t, widths.axes.get(Value(id_, i), ()), sizes) if isinstance(t, TensorType) else t
        for i, t in enumerate(node.results)
    )
    spelling = widths.spell(id_, sizes)
    e.update(id_, op=spelling.op, arguments={**spelling.arguments, **numbers}, results=results, drop=spelling.drop)


def resized_type(type_: TensorType, terms: tuple[Term, ...], sizes: Mapping[Atom, int]) -> TensorType:
    """Return the type of a value with some axes where atoms have other sizes."""

    def new_size(size: Size, term: Term) -> Size:
        now = size_of(term, sizes)
        if now == term.size:
            return size
        return now if isinstance(size, int) else as_size(size * now / term.size)

    return TensorType(type_.dtype, tuple(new_size(s, t) for s, t in zip(type_.shape, terms, strict=True)))
