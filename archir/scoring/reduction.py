"""Inner products on an edge, for each example and each member of a family."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archir.axes.positions import run_time_sizes, size_of, unit_index
from archir.axes.terms import Atom, Term
from archir.errors import ScoreError
from archir.ir.tensor_map import along
from archir.rewrite.perturbation import Members


class Reduction:
    """Sums products of tensors on one edge over everything but the example and the member; made for one shape."""

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
        self._axis, self._example_axis = members.axis % len(shape), members.example_axis % len(shape)
        self._rank = len(shape)
        self._others = tuple(d for d in range(len(shape)) if d not in (self._axis, self._example_axis))
        example, member = _shared_out(members, shape, examples)
        if len(member) != shape[self._axis]:
            raise ScoreError(f"{len(member)} positions are shared out among members, the axis has {shape[self._axis]}")
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
        return along(self._axis, inside[self._member], self._rank)


def _shared_out(members: Members, shape: Sequence[int], examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the example and the member that each position along their axes belongs to."""
    atom, size = members.batch_atom, shape[members.example_axis]
    if not isinstance(atom, Atom):
        raise ScoreError("the axis of the examples is itself composed of axes")
    terms, shape = (members.terms, shape) if members.terms else ((members.example_term,), (size,))
    known = {atom: examples}
    sizes, other = (run_time_sizes(terms, shape, members.run_time, known, last=last) for last in (False, True))
    if size_of(members.example_term, sizes) != size:
        raise ScoreError(
            f"an axis of {size} positions does not belong to {examples} examples",
            hint="give batches whose targets have one entry for each example",
        )

    def index(axis: int, term: Term, atom: Atom) -> torch.Tensor:
        found = unit_index(term, atom, sizes=sizes)
        if sizes != other and not torch.equal(found, unit_index(term, atom, sizes=other)):
            raise ScoreError(f"an axis of {shape[axis]} positions is made of several sizes that are not known")
        return found

    example = index(members.example_axis if members.terms else 0, members.example_term, atom)
    if len(members.index):
        return example, members.index
    if members.unit is None:
        return example, torch.zeros(shape[members.axis], dtype=torch.long)
    return example, index(members.axis, members.terms[members.axis], members.unit)


def _counts(index: torch.Tensor, count: int) -> bool:
    return len(index) == count and torch.equal(index, torch.arange(count, device=index.device))
