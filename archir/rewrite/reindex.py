"""Reindexing: the units of widths become other units, everywhere they stand, with the function kept.

Split, prune, widen, merge are all this. Every stored axis is gathered by evaluating its term; repeated units are
divided where `archir.rewrite.multiplicity` says so; sizes in the arguments of calls are spelled anew from the terms.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from archir.axes.positions import contains, gather_index, positions, size_of, unit_index
from archir.axes.terms import Atom, Term, leaves
from archir.axes.widths import Width, Widths
from archir.errors import PassError
from archir.ir.edit import Edit
from archir.ir.graph import Graph
from archir.ir.node import PARAMETER, Value
from archir.ir.room import too_large
from archir.ir.seeds import derived_seed
from archir.ir.types import ScalarType, Size, TensorType, Type, as_size
from archir.rewrite.equations import Miss
from archir.rewrite.multiplicity import Exponents, solve_exponents


@dataclass(frozen=True)
class Change:
    """What becomes of the units of one width.

    Attributes:
        source: for each new unit the old unit it repeats; numbers from the old size on are fresh units.
        fresh: number of fresh units.
        sign: for each new unit, the sign with which `theta` is added to it; all nought if empty.
        theta: by parameter node, a tensor of the parameter's shape to add to the units with a sign.
        values: by parameter node, what the fresh units hold: the parameter's shape with its positions along the
            width replaced by those of the fresh units. Where not given: nought in every place where a repeated unit
            would be divided, random like the other units elsewhere.
        merged: pairs of old units that become one, which holds the mean of what they held, doubled where a repeated
            unit would be divided. `source` has the first of each pair and not the second.
    """

    source: tuple[int, ...]
    fresh: int = 0
    sign: tuple[int, ...] = ()
    theta: Mapping[int, torch.Tensor] = field(default_factory=dict)
    values: Mapping[int, torch.Tensor] = field(default_factory=dict)
    merged: tuple[tuple[int, int], ...] = ()

    def multiplicity(self, size: int) -> torch.Tensor:
        """Return how often each of the old and fresh units is used; `[size + fresh]`."""
        return torch.bincount(torch.tensor(self.source, dtype=torch.long), minlength=size + self.fresh)

    def partners(self, size: int) -> torch.Tensor:
        """Return the unit each of the old and fresh units is merged with, itself if none; `[size + fresh]`."""
        found = torch.arange(size + self.fresh)
        for one, other in self.merged:
            found[one], found[other] = other, one
        return found


@dataclass(frozen=True)
class Reindexing:
    """Changes of several widths at once, and how to carry them over to any tensor shaped like a stored one.

    Attributes:
        widths: the widths of the graph before the change.
        changes: by width name.
        exponents: for the widths that gain units, how they are stored.
        seed: of the random fresh units.
    """

    widths: Widths
    changes: Mapping[str, Change]
    exponents: Mapping[str, Exponents]
    seed: int = 0

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

    def gradient(self, node: int, tensor: torch.Tensor, power: int = 1) -> torch.Tensor:
        """Reindex what an optimiser gathers of the gradients of a stored tensor.

        Where each of `m` copies holds `m ** -e` times what the unit held, its gradient is `m ** (e - 1)` times that of
        the unit. Fresh units have none yet.

        Args:
            node: the parameter node.
            tensor: shaped like what it stores.
            power: of the gradients in it: 1 for momentum, 2 for second moments.

        Source: ours.
        """
        averaged = self._average(node, self._extend(node, tensor, with_values=False))
        return self._gather(node, self._scale(node, averaged, lambda exponent: power * (exponent - 1)))

    def parameter(self, node: int, tensor: torch.Tensor) -> torch.Tensor:
        """Reindex a stored tensor."""
        extended = self._divide(node, self._average(node, self._extend(node, tensor, with_values=True)))
        result = self._gather(node, extended)
        for width, change in self._touching(node):
            theta = change.theta.get(node)
            if theta is None or not any(change.sign):
                continue
            added = self._gather(node, self._divide(node, self._extend(node, theta, with_values=False)))
            result = result + added * self._sign(node, width, change).to(added)
        return result

    def _terms(self, node: int) -> tuple[Term, ...]:
        return self.widths.axes[Value(node)]

    def _gather(self, node: int, tensor: torch.Tensor) -> torch.Tensor:
        for axis, term in enumerate(self._terms(node)):
            index = gather_index(term, self._sources, self._extended)
            if len(index) != tensor.shape[axis] or not torch.equal(index, torch.arange(len(index))):
                tensor = tensor.index_select(axis, index.to(tensor.device))
        return tensor

    def _average(self, node: int, tensor: torch.Tensor) -> torch.Tensor:
        """Let units that are merged hold the mean of both."""
        for width, change in self._touching(node):
            if change.merged and tensor.is_floating_point():
                partners = change.partners(width.size)
                for axis, term in enumerate(self._terms(node)):
                    if contains(term, width.atom):
                        index = gather_index(term, {width.atom: partners}, self._extended)
                        tensor = (tensor + tensor.index_select(axis, index.to(tensor.device))) / 2
        return tensor

    def _divide(self, node: int, tensor: torch.Tensor) -> torch.Tensor:
        return self._scale(node, tensor, operator.neg)

    def _scale(self, node: int, tensor: torch.Tensor, power: Callable[[int], int]) -> torch.Tensor:
        """Multiply by the number of copies, raised to a power that follows from the exponent of every place."""
        for width, change in self._touching(node):
            if width.name not in self.exponents:
                continue
            counts = change.multiplicity(width.size).clamp(min=1).double()
            counts[[u for pair in change.merged for u in pair]] = 0.5
            for axis, term in enumerate(self._terms(node)):
                for occurrence, exponent in enumerate(self.exponents[width.name].of(Value(node), axis)):
                    if power(exponent) == 0:
                        continue
                    unit = unit_index(term, width.atom, occurrence, self._extended)
                    copies = torch.where(unit >= 0, counts[unit.clamp(min=0)], 1).to(tensor)
                    tensor = tensor * _along(axis, copies ** power(exponent), tensor.dim())
        return tensor

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
                    shaped = _along(axis, here, len(terms))
                    result = torch.where(shaped != 0, shaped, result)
        return result

    def _extend(self, node: int, tensor: torch.Tensor, *, with_values: bool) -> torch.Tensor:
        """Append the fresh units of every width, each in its place within the axis."""
        sizes: dict[Atom, int] = {}
        for width, change in self._touching(node):
            if not change.fresh:
                continue
            old, new = dict(sizes), {**sizes, width.atom: width.size + change.fresh}
            source = torch.cat([torch.arange(width.size), torch.full((change.fresh,), -1)])
            fresh_units = torch.arange(width.size, width.size + change.fresh)
            for axis, term in enumerate(self._terms(node)):
                where = positions(term, width.atom, fresh_units, new)
                if len(where) == 0:
                    continue
                index = gather_index(term, {width.atom: source}, old)
                filled = tensor.index_select(axis, index.clamp(min=0).to(tensor.device))
                shape = list(tensor.shape)
                shape[axis] = len(where)
                content = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
                if with_values:
                    content = self._fresh(node, width, change, axis, where, new, tensor, content)
                tensor = filled.index_copy(axis, where.to(tensor.device), content)
            sizes = new
        return tensor

    def _fresh(
        self,
        node: int,
        width: Width,
        change: Change,
        axis: int,
        where: torch.Tensor,
        sizes: Mapping[Atom, int],
        tensor: torch.Tensor,
        empty: torch.Tensor,
    ) -> torch.Tensor:
        if node in change.values:
            given = change.values[node].to(tensor)
            corner = tuple(slice(0, n) for n in given.shape)
            content = empty.clone()
            content[corner] = given
            return content
        content = empty
        if tensor.is_floating_point():
            if tensor.dim() > 1:
                generator = torch.Generator().manual_seed(derived_seed(self.seed, node))
                scale = tensor.std() if tensor.numel() > 1 else tensor.abs().mean()
                content = torch.randn(empty.shape, generator=generator, dtype=tensor.dtype).to(tensor.device) * scale
            else:
                content = empty + tensor.mean()
        term = self._terms(node)[axis]
        for occurrence, exponent in enumerate(self.exponents[width.name].of(Value(node), axis)):
            if exponent > 0:
                unit = unit_index(term, width.atom, occurrence, sizes)[where]
                content = content * _along(axis, (unit < width.size).to(tensor), tensor.dim())
        return content


def _along(axis: int, vector: torch.Tensor, rank: int) -> torch.Tensor:
    return vector.reshape([-1 if d == axis else 1 for d in range(rank)])


def plan_reindexing(widths: Widths, changes: Mapping[str, Change], *, seed: int = 0) -> Reindexing:
    """Check that units of widths may become other units, and find out how.

    Raises:
        PassError: there is no such width, a unit is out of range, no unit would be left, or the function cannot be
            kept.
    """
    exponents: dict[str, Exponents] = {}
    for name, change in changes.items():
        width = widths[name]
        highest = width.size + change.fresh
        wrong = [u for u in change.source if not 0 <= u < highest]
        if wrong or not change.source:
            why = f"unit {wrong[0]} is not below {width.size}" if wrong else "no unit would be left"
            raise PassError(f"width {name} cannot be changed so", why=why)
        counts = change.multiplicity(width.size)
        if not change.fresh and not change.merged and int(counts.max()) <= 1:
            continue
        found = solve_exponents(widths, width)
        verb = "merged" if change.merged else "repeated"
        if isinstance(found, Miss):
            raise missed(widths.graph, f"units of width {name} cannot be {verb}", found)
        if found.uniform and (change.fresh or len(set(counts.tolist())) > 1):
            raise missed(widths.graph, f"single units of width {name} cannot be {verb}", found.uniform)
        if found.fresh and change.fresh:
            raise missed(widths.graph, f"width {name} cannot take fresh units", found.fresh)
        exponents[name] = found
    plan = Reindexing(widths, changes, exponents, seed)
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


def missed(graph: Graph, what: str, miss: Miss) -> PassError:
    """Return the error that says why a rewrite does not apply."""
    lines = [f"{n.op} {n.location or ''}".strip() for n in (graph.node(i) for i in miss.nodes if i in graph)]
    return PassError(what, where="; ".join(lines), why=miss.reason)


def reindex(plan: Reindexing, *, by: str) -> Graph:
    """Carry out a reindexing.

    Args:
        plan: from `plan_reindexing`.
        by: spec of the pass, for the history.

    Raises:
        GraphError: the result is malformed (a defect of an axis rule).
    """
    widths, graph, sizes = plan.widths, plan.widths.graph, plan.sizes
    with graph.edit(by=by) as e:
        users: dict[int, None] = {}
        for name in plan.changes:
            for value in widths.values(widths[name]):
                users[value.node] = None
                users.update(dict.fromkeys(u.node for u in graph.uses(value)))
        for id_ in users:
            node = graph.node(id_)
            if node.op == PARAMETER:
                e.set_tensor(id_, plan.parameter(id_, graph.tensors[id_]))
            elif node.is_call:
                _respell(e, widths, id_, sizes)
        _remove_unused_numbers(e, {v.node for id_ in users for v in graph.node(id_).values})
    return e.graph


def _remove_unused_numbers(e: Edit, candidates: set[int]) -> None:
    """Remove run-time sizes that nothing needs any more, now that a reshape says -1, and those they were made of."""
    while candidates:
        node = e.node(candidates.pop())
        numbers = node.is_call and all(isinstance(t, ScalarType) for t in node.results)
        if numbers and not any(e.uses(Value(node.id, i)) for i in range(len(node.results))):
            e.remove(node.id)
            candidates |= {v.node for v in node.values}


def _respell(e: Edit, widths: Widths, id_: int, sizes: Mapping[Atom, int]) -> None:
    node = widths.graph.node(id_)
    results = tuple(
        _new_type(t, widths.axes.get(Value(id_, i), ()), sizes) if isinstance(t, TensorType) else t
        for i, t in enumerate(node.results)
    )
    spelling = widths.spell(id_, sizes)
    e.update(id_, op=spelling.op, arguments=spelling.arguments, results=results, drop=spelling.drop)


def _new_type(type_: TensorType, terms: tuple[Term, ...], sizes: Mapping[Atom, int]) -> Type:
    def new_size(size: Size, term: Term) -> Size:
        now = size_of(term, sizes)
        if now == term.size:
            return size
        return now if isinstance(size, int) else as_size(size * now / term.size)

    return TensorType(type_.dtype, tuple(new_size(s, t) for s, t in zip(type_.shape, terms, strict=True)))
