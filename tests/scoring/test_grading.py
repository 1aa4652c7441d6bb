"""Grades: every member once, the best alone, sets that grow alike in all families, and few enough of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archir.scoring.grading import grade

FAMILIES = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def ranked(sizes: list[int]) -> list[list[int]]:
    """Return members in an order that is not that of their numbers."""
    return [list(reversed(range(size))) for size in sizes]


@given(FAMILIES, st.integers(1, 200))
def test_every_member_is_in_one_set_in_order_of_rank(sizes: list[int], most: int) -> None:
    order = ranked(sizes)
    found = grade(order, [True] * len(sizes), most)
    for family, members in enumerate(order):
        sets = [m for f, m in found if f == family]
        assert [m for one in sets for m in one] == members
        assert len(sets[0]) == 1
        assert all(later >= sooner for sooner, later in zip(map(len, sets), map(len, sets[1:-1]), strict=False))
    assert len(found) <= most or all(len([m for f, m in found if f == i]) <= 2 for i in range(len(sizes)))


@given(FAMILIES)
def test_where_there_is_room_every_member_is_alone(sizes: list[int]) -> None:
    found = grade(ranked(sizes), [True] * len(sizes), sum(sizes))
    assert found == [(f, (m,)) for f, members in enumerate(ranked(sizes)) for m in members]


def test_doubling_sets_are_those_that_fit() -> None:
    assert grade([list(range(64))], [True], 7) == [
        (0, members) for members in ((0,), (1,), *(tuple(range(2**k, 2 ** (k + 1))) for k in range(1, 6)))
    ]


def test_as_many_sets_are_made_as_may_be() -> None:
    for most in (40, 100, 400):
        found = grade([list(range(500))] * 3, [True] * 3, most)
        assert 0.85 * most <= len(found) <= most


def test_what_cannot_be_taken_together_stays_alone() -> None:
    found = grade([list(range(30)), list(range(30))], [True, False], 40)
    assert [m for f, m in found if f == 1] == [(m,) for m in range(30)]
    assert len([m for f, m in found if f == 0]) <= 10
