"""What changed from one graph to another: operators, widths, stored tensors, cost, history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from archir.axes.infer import infer_widths
from archir.axes.terms import leaves
from archir.axes.widths import Width
from archir.cost import Cost, cost
from archir.ir.graph import Graph
from archir.ir.node import Node
from archir.ir.text import print_function

Spot = tuple[str, int, int]
"""A stored tensor, an axis of it, and which of the atoms of that axis."""

Names = Mapping[int, str]
"""What a stored tensor is called in both graphs, by its node."""


@dataclass(frozen=True)
class OperatorChange:
    """An operator that is called more or less often.

    Attributes:
        op: its name.
        before: number of calls in the first graph.
        after: number of calls in the second.
    """

    op: str
    before: int
    after: int


@dataclass(frozen=True)
class Side:
    """A width as it is in one of two graphs.

    Attributes:
        name: its name there.
        size: number of units.
        free: whether it may change.
    """

    name: str
    size: int
    free: bool


@dataclass(frozen=True)
class WidthChange:
    """A width that has another size, may change no longer, or is there in one graph only.

    Attributes:
        before: as it is in the first graph, None if it is not there.
        after: as it is in the second graph, None if it is not there.
        places: where it stands, `parameter[axis]`.
    """

    before: Side | None
    after: Side | None
    places: tuple[str, ...]


@dataclass(frozen=True)
class TensorChange:
    """A stored tensor of another type, or that is there in one graph only.

    Attributes:
        name: its name.
        before: its type in the first graph (`f32[16, 3, 3, 3]`), None if it is not there.
        after: its type in the second graph, None if it is not there.
    """

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Difference:
    """What changed from one graph to another.

    Attributes:
        operators: operators that are called more or less often.
        widths: widths that changed.
        tensors: stored tensors that were added, removed, or changed in type.
        stored: number of stored tensors in the first graph, and in the second.
        altered: names of the stored tensors of one type that hold other numbers.
        before: cost of the first graph, for one example.
        after: cost of the second graph, for one example.
        history: passes applied to the first graph, and to the second.
        same_program: whether the text forms are equal: the same calls of the same operators on the same types.
    """

    operators: tuple[OperatorChange, ...]
    widths: tuple[WidthChange, ...]
    tensors: tuple[TensorChange, ...]
    stored: tuple[int, int]
    altered: tuple[str, ...]
    before: Cost
    after: Cost
    history: tuple[tuple[str, ...], tuple[str, ...]]
    same_program: bool

    @property
    def is_empty(self) -> bool:
        """Whether the graphs compute the same from the same stored tensors."""
        return self.same_program and not (self.altered or self.tensors)


def compare(one: Graph, other: Graph) -> Difference:
    """Return what changed from one graph to another.

    Stored tensors are matched by their names. Widths are matched by the places where they stand, as a width may be
    called otherwise once another one is gone: of all pairs, that with the most places in common comes first.
    """
    names = {n.id: _name(n) for n in one.parameters}, _names_after(one, other)
    return Difference(
        operators=tuple(_operators(one, other)),
        widths=tuple(_widths(one, other, names)),
        tensors=tuple(_tensors(one, other, names)),
        stored=(len(one.parameters), len(other.parameters)),
        altered=tuple(_altered(one, other)),
        before=cost(one),
        after=cost(other),
        history=(one.history, other.history),
        same_program=print_function(one) == print_function(other),
    )


def _operators(one: Graph, other: Graph) -> Iterator[OperatorChange]:
    before, after = (Counter(n.op.removesuffix(".default") for n in g.calls) for g in (one, other))
    for op in sorted(before | after):
        if before[op] != after[op]:
            yield OperatorChange(op, before[op], after[op])


def _name(node: Node) -> str:
    return node.names[0] if node.names else ""


def _counterpart(one: Graph, node: Node) -> Node | None:
    """Return the stored tensor of the first graph that has a name in common with one of the second."""
    return next((one.by_name[n] for n in node.names if n in one.by_name), None)


def _names_after(one: Graph, other: Graph) -> Names:
    """Name the stored tensors of the second graph as the first does, where it has them."""
    return {n.id: _name(_counterpart(one, n) or n) for n in other.parameters}


def _tensors(one: Graph, other: Graph, names: tuple[Names, Names]) -> Iterator[TensorChange]:
    before, after = (
        {name: str(graph.node(id_).tensor_type()) for id_, name in called.items()}
        for graph, called in zip((one, other), names, strict=True)
    )
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            yield TensorChange(name, before.get(name), after.get(name))


def _altered(one: Graph, other: Graph) -> Iterator[str]:
    for node in other.parameters:
        known = _counterpart(one, node)
        if known is not None and known.tensor_type() == node.tensor_type():
            before, after = one.tensors[known.id], other.tensors[node.id]
            if not (before is after or torch.equal(_bytes(before), _bytes(after))):
                yield _name(known)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return what is stored; unlike numbers, two of which may be no numbers, bytes can always be compared."""
    return tensor.cpu().reshape(-1).view(torch.uint8)


def _spots(graph: Graph, names: Names) -> dict[Spot, Width]:
    """Return which width stands where: tensor, axis, and position among the atoms of the axis."""
    widths = infer_widths(graph)
    every = (*widths.free, *widths.frozen)
    by_atom = {w.atom: w for w in every}
    return {
        (names[place.node], place.axis, position): width
        for width in every
        for place in width.places
        for position, atom in enumerate(leaves(place.term))
        if by_atom.get(atom) is width
    }


def _widths(one: Graph, other: Graph, names: tuple[Names, Names]) -> Iterator[WidthChange]:
    before, after = _spots(one, names[0]), _spots(other, names[1])
    pairs = Counter((before[spot], after[spot]) for spot in before if spot in after)
    matched: dict[Width, Width] = {}
    taken: set[Width] = set()
    for (old, new), _ in pairs.most_common():
        if old not in matched and new not in taken:
            matched[old] = new
            taken.add(new)
    for old in dict.fromkeys(before.values()):
        sides = _side(old), _side(matched[old]) if old in matched else None
        if sides[1] is None or (sides[0].size, sides[0].free) != (sides[1].size, sides[1].free):
            yield WidthChange(*sides, _places(old, before))
    for new in dict.fromkeys(after.values()):
        if new not in taken:
            yield WidthChange(None, _side(new), _places(new, after))


def _side(width: Width) -> Side:
    return Side(width.name, width.size, not width.reason)


def _places(width: Width, spots: Mapping[Spot, Width]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{name}[{axis}]" for (name, axis, _), found in spots.items() if found is width))
