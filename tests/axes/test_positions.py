"""Index maps of axis terms, against lists of positions that say which units they belong to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archir.axes.positions import contains, gather_index, occurrences, positions, size_of, unit_index
from archir.axes.terms import Atom, Product, Sum, Term

Position = tuple[tuple[Atom, int, int], ...]
"""What a position is made of: atom, number of the occurrence among all, unit."""


def spread(term: Term, sizes: Mapping[Atom, int], number: itertools.count[int] | None = None) -> list[Position]:
    """Return the positions along an axis in order."""
    number = itertools.count() if number is None else number
    if isinstance(term, Atom):
        occurrence = next(number)
        return [((term, occurrence, unit),) for unit in range(sizes.get(term, term.size))]
    parts = [spread(part, sizes, number) for part in term.parts]
    if isinstance(term, Sum):
        return [position for part in parts for position in part]
    return [sum(combination, ()) for combination in itertools.product(*parts)]


ATOMS = tuple(Atom(n) for n in (2, 3, 2, 4))
TERMS: st.SearchStrategy[Term] = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(lambda p: st.sampled_from([Product(p), Sum(p)])),
    max_leaves=4,
)
UNITS = st.lists(st.integers(-1, 4), min_size=1, max_size=5)


@settings(deadline=None, max_examples=200)
@given(TERMS, st.sampled_from(ATOMS), st.integers(1, 4))
def test_units_are_where_they_are(term: Term, atom: Atom, size: int) -> None:
    sizes = {atom: size}
    line = spread(term, sizes)
    numbers = [n for n, found in enumerate(leaf_order(term)) if found is atom]
    assert size_of(term, sizes) == len(line)
    assert occurrences(term, atom) == len(numbers)
    assert contains(term, atom) == bool(numbers)
    for occurrence, number in enumerate(numbers):
        expected = [next((u for a, n, u in position if n == number), -1) for position in line]
        assert unit_index(term, atom, occurrence, sizes).tolist() == expected
    wanted = [0, size - 1]
    hit = [i for i, position in enumerate(line) if any(a is atom and u in wanted for a, _, u in position)]
    assert positions(term, atom, torch.tensor(wanted), sizes).tolist() == hit


def leaf_order(term: Term) -> list[Atom]:
    return [term] if isinstance(term, Atom) else [atom for part in term.parts for atom in leaf_order(part)]


@settings(deadline=None, max_examples=200)
@given(TERMS, st.sampled_from(ATOMS), UNITS)
def test_new_positions_are_filled_from_the_units_they_repeat(term: Term, atom: Atom, source: list[int]) -> None:
    source = [min(unit, atom.size - 1) for unit in source]
    old = {position: i for i, position in enumerate(spread(term, {}))}
    expected = []
    for position in spread(term, {atom: len(source)}):
        filled = tuple((a, n, source[u] if a is atom else u) for a, n, u in position)
        expected.append(old.get(filled, -1))
    assert gather_index(term, {atom: torch.tensor(source)}, {}).tolist() == expected


def test_sizes_are_those_of_the_tensor_that_is_gathered() -> None:
    a, b = Atom(2), Atom(3)
    assert gather_index(Sum((a, b)), {b: torch.tensor([0, 2])}, {a: 4}).tolist() == [0, 1, 2, 3, 4, 6]
    assert gather_index(Product((a, b)), {a: torch.tensor([1])}, {b: 4}).tolist() == [4, 5, 6, 7]
