"""Widths: the atoms of a graph's axes, free or frozen, with the places where they stand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from archir.axes.positions import positions, size_of
from archir.axes.rules.context import Speller, Spelling
from archir.axes.terms import Atom, Product, Term, leaves, resolve
from archir.axes.value_axes import Axes
from archir.errors import PassError, suggest
from archir.ir.graph import Graph
from archir.ir.node import Value

ROLES = {
    "produced": "the outer axis of a weight",
    "contracted": "summed over against a weight",
    "matched": "summed over between two tensors that are computed",
    "norm": "statistics run over it",
    "scale": "the head size in the scale of attention",
    "reduced": "a mean, sum or extremum runs over it",
    "boundary": "an axis of the model's inputs or outputs",
}
"""What may be done along a width."""


class Place(NamedTuple):
    """One axis of one stored tensor in which a width stands.

    Attributes:
        parameter: name of the tensor.
        axis: number of the axis.
        node: id of the parameter node.
        term: what the axis is made of.
    """

    parameter: str
    axis: int
    node: int
    term: Term


@dataclass(frozen=True, eq=False)
class Width:
    """A number of units that occurs in one or more places, and changes in all of them together.

    Attributes:
        name: `w0`, `w1`, ... in order of first use; frozen ones `f0`, `f1`, ...
        size: number of units.
        roles: what is done along it, see `ROLES`.
        places: where it stands.
        reason: why it is frozen; empty if it is free.
        atom: the atom of the axis terms.
    """

    name: str
    size: int
    roles: frozenset[str]
    places: tuple[Place, ...] = field(repr=False)
    reason: str
    atom: Atom = field(repr=False)

    def positions(self, place: Place, units: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Return the positions along `place.axis` of the tensor that belong to some units; `[positions]`."""
        return positions(place.term, self.atom, torch.as_tensor(units))


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is known of the axes of a graph; it refers to no graph, so that it can be kept for as long as one lives.

    Attributes:
        free: widths that may change.
        frozen: widths that may not, each with its reason.
        axes: the axes of every tensor value.
        spellers: for the calls whose arguments follow from axis sizes, how.
        run_time: atoms whose sizes are known at run time only.
        examples: the atoms that the examples of a batch lie along.
        rows: those that they lie along in values that have none of these: the batches of the inputs.
        values: the values in which a width stands, by its atom, once they were asked for.
    """

    free: tuple[Width, ...]
    frozen: tuple[Width, ...]
    axes: Axes
    spellers: Mapping[int, Speller]
    run_time: frozenset[Atom] = frozenset()
    examples: frozenset[Atom] = frozenset()
    rows: frozenset[Atom] = frozenset()
    values: dict[Atom, tuple[Value, ...]] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> Mapping[str, Width]:
        """The free widths by name."""
        return {w.name: w for w in self.free}

    @cached_property
    def by_atom(self) -> Mapping[Atom, Width]:
        """The free widths by their atoms."""
        return {w.atom: w for w in self.free}

    @cached_property
    def names(self) -> Mapping[Atom, str]:
        """Name of every width, free or frozen, by its atom."""
        return {w.atom: w.name for w in (*self.free, *self.frozen)}


@dataclass(frozen=True, eq=False)
class Widths:
    """The free widths of a graph, and through `frozen` the others.

    Attributes:
        graph: the graph.
        analysis: what is known of its axes.
    """

    graph: Graph
    analysis: Analysis = field(repr=False)

    @property
    def free(self) -> tuple[Width, ...]:
        """Widths that may change."""
        return self.analysis.free

    @property
    def frozen(self) -> tuple[Width, ...]:
        """Widths that may not change, each with its reason."""
        return self.analysis.frozen

    @property
    def axes(self) -> Axes:
        """The axes of every tensor value."""
        return self.analysis.axes

    @property
    def names(self) -> Mapping[Atom, str]:
        """Name of every width, free or frozen, by its atom."""
        return self.analysis.names

    def __iter__(self) -> Iterator[Width]:
        return iter(self.free)

    def __len__(self) -> int:
        return len(self.free)

    def __getitem__(self, name: str) -> Width:
        """Return a free width by name.

        Raises:
            PassError: there is no such width, or it is frozen.
        """
        if name in self.analysis.by_name:
            return self.analysis.by_name[name]
        for width in self.frozen:
            if width.name == name:
                places = ", ".join(f"{p.parameter} axis {p.axis}" for p in width.places[:3])
                raise PassError(f"width {name} may not change", where=places, why=width.reason)
        raise PassError(f"there is no width {name!r}", hint=suggest(name, self.analysis.by_name))

    def values(self, width: Width) -> tuple[Value, ...]:
        """Return the values, stored tensors included, in whose axes a width stands, in order."""
        known = self.analysis.values
        if width.atom not in known:
            known[width.atom] = self._reach(width)
        return known[width.atom]

    def nodes(self, width: Width) -> tuple[int, ...]:
        """Return the nodes that make or use a value in which a width stands, each maker before the users."""
        found: dict[int, None] = {}
        for value in self.values(width):
            found |= dict.fromkeys((value.node, *(use.node for use in self.graph.uses(value))))
        return tuple(found)

    def _reach(self, width: Width) -> tuple[Value, ...]:
        """Return the values in which a width stands: calls hand it on, so they hang together with its places."""
        axes, structure = self.axes, self.graph.structure
        waiting = [Value(place.node) for place in width.places]
        found, seen = set(waiting), set[int]()
        while waiting:
            value = waiting.pop()
            for id_ in (value.node, *(use.node for use, _ in structure.users.get(value.node, ()))):
                if id_ in seen:
                    continue
                seen.add(id_)
                node = structure.by_id[id_]
                near = {*node.values, *node.made} - found
                more = [v for v in near if any(width.atom in leaves(t) for t in axes.find(v) or ())]
                found.update(more)
                waiting += more
        return tuple(sorted(found, key=lambda v: (structure.position[v.node], v.index)))

    def spell(self, node: int, sizes: Mapping[Atom, int]) -> Spelling:
        """Return the arguments of a call as they are where some atoms have new sizes."""
        speller = self.analysis.spellers.get(node)
        return Spelling({}) if speller is None else speller(lambda term: size_of(resolve(term), sizes))

    def notation(self, term: Term) -> str:
        """Return an axis in words like `(w1*w2)+w3`; atoms without a name are shown by their size."""
        if isinstance(term, Atom):
            return self.names.get(term, str(term.size))
        sign = "*" if isinstance(term, Product) else "+"
        return sign.join(p if p.isalnum() else f"({p})" for p in map(self.notation, term.parts))

    def notation_of(self, name: str) -> str:
        """Return the axes of a stored tensor in words: `(w1*w2)+(w1*w2)+(w1*w3), w0`.

        Raises:
            PassError: there is no such tensor.
        """
        if name not in self.graph.by_name:
            raise PassError(f"there is no stored tensor {name!r}", hint=suggest(name, self.graph.by_name))
        return ", ".join(map(self.notation, self.axes[Value(self.graph.by_name[name].id)]))

    @property
    def coverage(self) -> float:
        """Share of the trainable parameters that belong to units of some free width, between 0 and 1."""
        free = {w.atom for w in self.free}
        reached = total = 0.0
        for node in self.graph.parameters:
            if node.is_trainable:
                count = self.graph.tensors[node.id].numel()
                missed = math.prod(1 - _share(term, free) for term in self.axes[Value(node.id)])
                reached, total = reached + count * (1 - missed), total + count
        return reached / total if total else 0.0


def _share(term: Term, atoms: Set[Atom]) -> float:
    """Return the share of the positions along an axis that belong to units of some atoms."""
    if isinstance(term, Atom):
        return float(term in atoms)
    if isinstance(term, Product):
        return 1 - math.prod(1 - _share(part, atoms) for part in term.parts)
    return sum(part.size * _share(part, atoms) for part in term.parts) / term.size
