"""Inner products on an edge, for each example and each member of a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch

from archir.axes.positions import run_time_sizes, size_of, unit_index
from archir.axes.terms import Atom, Term
from archir.errors import ScoreError
from archir.ir.tensor_map import along
from archir.rewrite.perturbation import Edge, Members, Perturbation


class Reduction:
    """Sums products of tensors on one edge over everything but the example and the member; made for one shape.

    Where no axis tells the examples apart, what belongs to each of them, a gradient say, has them along a first axis
    that the tensors on the edge do not have.
    """

    def __init__(
        self, members: Members, count: int, shape: Sequence[int], examples: int, device: torch.device | None = None
    ) -> None:
        """Find out which position of a tensor belongs to which example and member.

        Args:
            members: how the members lie in the tensors.
            count: number of members.
            shape: shape of the tensors.
            examples: number of examples in the batch.
            device: where the tensors are.

        Raises:
            ScoreError: the axis of the examples does not fit the batch.
        """
        self.examples, self.count = examples, count
        self._shared = members.example_axis is None
        example, member = _shared_out(members, shape, examples)
        if len(member) != (shape[members.axis] if shape else 1):
            raise ScoreError(
                f"{len(member)} positions are shared out among members, the axis has {shape[members.axis]}"
            )
        self._along = members.axis % max(len(shape), 1), len(shape)
        if members.example_axis is None:  # `[examples, *shape]`; a number has one position for each of them
            member = member if shape else member.expand(examples)
            self._axis, self._example_axis, shape = members.axis + bool(shape), 0, (examples, *shape)
        else:
            self._axis, self._example_axis = members.axis % len(shape), members.example_axis % len(shape)
        self._rank = len(shape)
        self._others = tuple(d for d in range(len(shape)) if d not in (self._axis, self._example_axis))
        self._direct = self._axis != self._example_axis and _counts(example, examples) and _counts(member, count)
        self._example, self._member = example.to(device), member.to(device)

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return `Σ a·b` over the positions of each example and member; `[examples, members]`."""
        product = a * b
        terms = product.sum(self._others) if self._others else product
        if self._axis < self._example_axis:
            terms = terms.mT
        if self._direct:
            return terms
        inside = self._member >= 0
        result = terms.new_zeros(self.examples, self.count)
        if self._axis == self._example_axis:
            where = self._example[inside], self._member[inside]
            return result.index_put_(where, terms[inside], accumulate=True)
        rows = terms.new_zeros(self.examples, terms.shape[1]).index_add_(0, self._example, terms)
        return result.index_add_(1, self._member[inside], rows[:, inside])

    def spread(self, amounts: torch.Tensor) -> torch.Tensor:
        """Return amounts at every position, zero where there is no member; broadcastable to the shape.

        Args:
            amounts: `[examples, members]`, or `[1, members]` for the same in every example.
        """
        sizes, amounts = [1] * self._rank, amounts.expand(self.examples, -1)
        if self._axis == self._example_axis:
            found = amounts[self._example, self._member.clamp(min=0)] * (self._member >= 0)
            sizes[self._axis] = len(found)
            return found.reshape(sizes)
        if not self._direct:
            amounts = amounts[self._example][:, self._member.clamp(min=0)] * (self._member >= 0)
        sizes[self._example_axis], sizes[self._axis] = amounts.shape
        return (amounts.mT if self._axis < self._example_axis else amounts).reshape(sizes)

    def mask(self, members: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """Return ones at the positions of some members, in the element type of `like`; broadcastable to the shape."""
        inside = like.new_zeros(self.count + 1)  # the last for positions of no member
        inside[list(members)] = 1
        axis, rank = self._along
        return along(axis, inside[self._member], rank) if rank else inside[self._member[0]]

    def onto(self, each: torch.Tensor) -> torch.Tensor:
        """Return what belongs to each example, as on the edge: summed over them where no axis tells them apart."""
        return each.sum(0) if self._shared else each


class Reductions:
    """The reductions of families on their edges, made when first needed for a shape."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, Edge, torch.Size, int], Reduction] = {}

    def find(
        self, family: int, perturbation: Perturbation, edge: Edge, delta: torch.Tensor, examples: int
    ) -> Reduction:
        """Return the reduction of family number `family` on an edge.

        Raises:
            ScoreError: the axis of the examples does not fit the batch.
        """
        key = family, edge, delta.shape, examples
        if key not in self._made:
            members = perturbation.edges[edge]
            self._made[key] = Reduction(members, perturbation.members, delta.shape, examples, delta.device)
        return self._made[key]

    def total(
        self,
        family: int,
        perturbation: Perturbation,
        gradient: Mapping[Edge, torch.Tensor],
        deltas: Mapping[Edge, torch.Tensor],
        examples: int,
    ) -> torch.Tensor:
        """Return `Σ g·Δ` over all edges and positions, for each example and member; `[examples, members]`."""
        found = [
            self.find(family, perturbation, edge, delta, examples)(gradient[edge], delta)
            for edge, delta in deltas.items()
            if edge in gradient
        ]
        if not found:
            any_delta = next(iter(deltas.values()))
            return any_delta.new_zeros(examples, perturbation.members)
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]


def _shared_out(members: Members, shape: Sequence[int], examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the example and the member that each position along their axes belongs to."""
    terms, term, atom = members.terms, members.example_term, members.batch_atom
    if members.example_axis is None:
        return torch.arange(examples), _members(
            members, _Positions(terms, shape if terms else (), members.run_time, {}), shape
        )
    size = shape[members.example_axis]
    if not isinstance(atom, Atom) or term is None:
        raise ScoreError("the axis of the examples is itself composed of axes")
    known = _Positions(terms or (term,), shape if terms else (size,), members.run_time, {atom: examples})
    if size_of(term, known.sizes) != size:
        raise ScoreError(
            f"an axis of {size} positions does not belong to {examples} examples",
            hint="give batches whose targets have one entry for each example",
        )
    return known.owners(term, atom), _members(members, known, shape)


def _members(members: Members, known: _Positions, shape: Sequence[int]) -> torch.Tensor:
    """Return the member that each position along the axis of the members belongs to."""
    if len(members.index):
        return members.index
    if members.unit is None:
        return torch.zeros(shape[members.axis] if shape else 1, dtype=torch.long)
    return known.owners(members.terms[members.axis], members.unit)


class _Positions:
    """What the positions along the axes of a tensor belong to, some of whose sizes its shape tells."""

    def __init__(
        self, terms: Sequence[Term], shape: Sequence[int], run_time: Set[Atom], known: Mapping[Atom, int]
    ) -> None:
        self.sizes, self._other = (run_time_sizes(terms, shape, run_time, known, last=last) for last in (False, True))

    def owners(self, term: Term, atom: Atom) -> torch.Tensor:
        """Return the unit of an atom that each position along an axis belongs to.

        Raises:
            ScoreError: the shape does not tell.
        """
        found = unit_index(term, atom, sizes=self.sizes)
        if self.sizes != self._other and not torch.equal(found, unit_index(term, atom, sizes=self._other)):
            raise ScoreError(f"an axis of {len(found)} positions is made of several sizes that are not known")
        return found


def _counts(index: torch.Tensor, count: int) -> bool:
    return len(index) == count and torch.equal(index, torch.arange(count, device=index.device))
