"""Reductions against sums written out position by position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archir.axes.terms import Atom, Product, Sum, Term
from archir.errors import ScoreError
from archir.rewrite.perturbation import Members
from archir.scoring.reduction import Reduction

BATCH = Atom(1_000_003, "an axis of an input")
EXAMPLES = 3


def members(axis: int, index: list[int], example_axis: int, term: Term = BATCH) -> Members:
    return Members(axis, torch.tensor(index), example_axis, term, BATCH)


def example_of(term: Term, size: int) -> list[int]:
    """Return the example of each position along an axis that is the batch, or a product of it and one other."""
    if term is BATCH:
        return list(range(size))
    assert isinstance(term, Product)
    other = size // EXAMPLES
    return [i // other if term.parts[0] is BATCH else i % EXAMPLES for i in range(size)]


CASES: list[tuple[tuple[int, ...], Members, int]] = [
    ((3, 4, 2, 2), members(1, [0, 1, 2, 3], 0), 4),
    ((4, 3, 5), members(0, [0, 1, 2, 3], 1), 4),
    ((3, 5, 6), members(2, [0, 0, 1, 1, 2, 2], 0), 3),
    ((3, 5, 6), members(2, [0, 1, -1, -1, 0, 1], 0), 2),
    ((6, 2, 4), members(2, [0, 1, 2, 3], 0, Product((BATCH, Atom(2)))), 4),
    ((6, 2, 4), members(2, [3, 2, 1, 0], 0, Product((Atom(2), BATCH))), 4),
    ((2, 4, 6), members(1, [0, 1, 1, -1], 2, Product((BATCH, Atom(2)))), 2),
    ((3,), members(0, [0, 0, 0], 0), 1),
    ((3, 7), members(1, [0] * 7, 0), 1),
]


@pytest.mark.parametrize(("shape", "shared", "count"), CASES)
def test_sums_run_over_everything_but_example_and_member(shape: tuple[int, ...], shared: Members, count: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
    reduction = Reduction(shared, count, shape, EXAMPLES)
    expected, owner = torch.zeros(EXAMPLES, count, dtype=torch.float64), {}
    assert shared.example_axis is not None and shared.example_term is not None
    examples = example_of(shared.example_term, shape[shared.example_axis])
    for position in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)).tolist():
        n, m = examples[position[shared.example_axis]], int(shared.index[position[shared.axis]])
        owner[tuple(position)] = (n, m)
        if m >= 0:
            expected[n, m] += a[tuple(position)] * b[tuple(position)]
    assert torch.allclose(reduction(a, b), expected, rtol=1e-12)
    amounts = torch.randn(EXAMPLES, count, dtype=torch.float64)
    spread = reduction.spread(amounts).expand(shape)
    for where, (n, m) in owner.items():
        assert float(spread[where]) == (float(amounts[n, m]) if m >= 0 else 0.0)
    masks = torch.stack([reduction.mask([m], a).expand(shape) for m in range(count)])
    for where, (_, m) in owner.items():
        assert masks[(slice(None), *where)].tolist() == [float(i == m) for i in range(count)]
    assert torch.equal(reduction.mask(range(count), a).expand(shape), masks.sum(0))
    assert not reduction.mask([], a).any()


@pytest.mark.parametrize(
    ("shape", "axis", "index", "count"),
    [((4, 2), 0, [0, 1, 2, 3], 4), ((2, 5), 1, [1, 0, -1, 0, 1], 2), ((), 0, [0], 1)],
)
def test_sums_where_no_axis_tells_examples_apart(
    shape: tuple[int, ...], axis: int, index: list[int], count: int
) -> None:
    torch.manual_seed(0)
    reduction = Reduction(Members(axis, torch.tensor(index), None), count, shape, EXAMPLES)
    each, delta = torch.randn(EXAMPLES, *shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    masks = torch.stack([reduction.mask([m], delta).expand(shape) for m in range(count)])
    expected = torch.stack([(each * delta * mask).reshape(EXAMPLES, -1).sum(1) for mask in masks], 1)
    assert torch.allclose(reduction(each, delta), expected, rtol=1e-12)
    assert [int(mask.sum()) for mask in masks] == [
        index.count(m) * max(delta.numel() // len(index), 1) for m in range(count)
    ]
    amounts = torch.randn(EXAMPLES, count, dtype=torch.float64)
    spread = reduction.spread(amounts).expand(EXAMPLES, *shape)
    assert torch.allclose(
        spread, sum(m * a.reshape(-1, *[1] * len(shape)) for m, a in zip(masks, amounts.T, strict=True))
    )
    assert torch.equal(reduction.onto(each), each.sum(0))


def test_what_does_not_fit_is_refused() -> None:
    def make(shared: Members, shape: tuple[int, ...] = (3, 4)) -> Tensor:
        return Reduction(shared, 4, shape, EXAMPLES)(torch.ones(shape), torch.ones(shape))

    with pytest.raises(ScoreError, match="5 positions are shared out"):
        make(members(1, [0, 1, 2, 3, 3], 0))
    with pytest.raises(ScoreError, match="does not belong to 3 examples"):
        make(members(1, [0, 1, 2, 3], 0, Product((BATCH, Atom(2)))))
    with pytest.raises(ScoreError, match="composed of axes"):
        make(Members(1, torch.arange(4), 0, BATCH, Sum((BATCH, Atom(2)))))
