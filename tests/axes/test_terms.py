"""Unification of axis terms: what is found equal, what is refined, and why something is frozen."""

from __future__ import annotations

import itertools

import pytest

from archir.axes.terms import MOST, Atom, Product, Sum, Term, add_role, freeze, leaves, regroup, resolve, unify


def shown(*terms: Term) -> str:
    """Return terms with letters for atoms, in order of first appearance: `a*(b+c)`."""
    letters: dict[Atom, str] = {}

    def show(term: Term) -> str:
        if isinstance(term, Atom):
            return letters.setdefault(term, "abcdefghij"[len(letters)])
        sign = "*" if isinstance(term, Product) else "+"
        return sign.join(s if len(s) == 1 else f"({s})" for s in map(show, term.parts))

    return ", ".join(show(resolve(t)) for t in terms)


def reasons(*terms: Term) -> set[str]:
    return {atom.reason for term in terms for atom in leaves(term)}


def test_unified_atoms_are_one() -> None:
    a, b, c = Atom(4), Atom(4), Atom(4)
    unify(a, b)
    unify(c, a)
    assert resolve(a) is resolve(b) is resolve(c)


def test_roles_and_reasons_go_along() -> None:
    a, b = Atom(4), Atom(4, "an axis of an input")
    add_role(a, "norm")
    unify(a, b)
    freeze(a, "too late")
    (leaf,) = leaves(a)
    assert (leaf.roles, leaf.reason) == (frozenset({"norm"}), "an axis of an input")


def test_roles_and_reasons_of_an_atom_go_to_all_its_parts() -> None:
    a, parts = Atom(6, "frozen"), (Atom(2), Atom(3))
    add_role(a, "produced")
    unify(a, Product(parts))
    assert [(p.reason, p.roles) for p in leaves(a)] == [("frozen", frozenset({"produced"}))] * 2


def test_sizes_that_differ_freeze_both() -> None:
    a, b = Atom(4), Atom(5)
    unify(a, b)
    assert reasons(a, b) == {"used both as 4 and as 5 units"}


def test_products_are_cut_until_they_are_aligned() -> None:
    left, right = Product((Atom(4), Atom(6))), Product((Atom(2), Atom(12)))
    unify(left, right)
    assert shown(left, right) == "a*b*c, a*b*c"
    assert [p.size for p in leaves(left)] == [2, 2, 6]


def test_sums_are_cut_until_they_are_aligned() -> None:
    left, right = Sum((Atom(6), Atom(10))), Sum((Atom(8), Atom(8)))
    unify(left, right)
    assert shown(left, right) == "a+b+c, a+b+c"
    assert [p.size for p in leaves(left)] == [6, 2, 8]


def test_a_sum_against_a_product_is_distributed() -> None:
    a, b, count, rest = Atom(8), Atom(16), Atom(6), Atom(4)
    unify(Sum((a, b)), Product((count, rest)))
    assert shown(a, b, count) == "a*b, c*b, a+c"


def test_a_product_against_a_sum_is_distributed() -> None:
    whole, heads, size = Atom(24), Atom(6), Atom(4)
    unify(whole, Product((heads, size)))
    unify(whole, Sum((Atom(16), Atom(8))))
    assert shown(whole, heads, size) == "(a+b)*c, a+b, c"


def test_parts_are_cut_by_a_product_inside_an_alignment() -> None:
    rows, joined = Atom(5), Sum((Atom(8), Atom(16)))
    left, right = Product((rows, joined)), Product((Atom(5), Atom(6), Atom(4)))
    unify(left, right)
    assert shown(right) == "a*(b+c)*d"
    assert reasons(left, right) == {""}


def test_repeated_parts_stay_repeated() -> None:
    half = Atom(4)
    x, other = Atom(8), Sum((Atom(4), Atom(4)))
    unify(x, Sum((half, half)))
    unify(x, other)
    assert shown(x, other) == "a+a, a+a"


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (Product((Atom(4), Atom(6))), Product((Atom(6), Atom(4))), "two ways of cutting an axis"),
        (Sum((Atom(3), Atom(5))), Product((Atom(4), Atom(2))), "a concatenation is cut across its parts"),
    ],
    ids=["product", "sum"],
)
def test_what_has_no_common_refinement_is_frozen(left: Term, right: Term, reason: str) -> None:
    unify(left, right)
    assert all(found.startswith(reason) for found in reasons(left, right))


def test_factors_of_one_and_parts_of_zero_are_none() -> None:
    a = Atom(4)
    unify(a, Product((a, Atom(1))))
    unify(a, Sum((a, Atom(0))))
    assert reasons(a) == {""}


def test_an_axis_does_not_contain_itself() -> None:
    empty = Atom(0)
    unify(empty, Product((empty, Atom(5))))
    assert reasons(empty) == {"an axis would contain itself"}


@pytest.mark.parametrize("kind", ["joined", "halved"])
def test_an_axis_of_too_many_parts_is_frozen(kind: str) -> None:
    first = Atom(2**50)
    part, whole = first, list[Term]([first])
    for _ in range(45):
        if kind == "joined":
            whole.append(Sum((whole[-1], whole[-1])))
        else:
            half = Atom(part.size // 2)
            unify(part, Sum((half, half)))
            part = half
        assert len(leaves(whole[-1])) <= MOST
    assert whole[-1].size == first.size * (2**45 if kind == "joined" else 1)
    assert all("more than 4,096 parts" in atom.reason for term in (whole[-1], first) for atom in leaves(term))


def test_a_unit_that_stands_alone_is_not_free() -> None:
    whole, count = Atom(6), Atom(3)
    unify(whole, Product((count, Atom(2))))
    unify(whole, Sum((Atom(2), Atom(2), Atom(2))))
    assert reasons(count) == {"a unit with a place of its own"}


def test_long_chains_are_followed() -> None:
    chain = [Atom(4) for _ in range(5000)]
    for a, b in itertools.pairwise(chain):
        a.binding = b
    assert all(resolve(a) is chain[-1] for a in chain)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((2, 3, 4), (6, 4), "a, b, c, a*b, c"),
        ((6, 4), (2, 3, 4), "a*b, c, a, b, c"),
        ((2, 1, 3), (6, 1), "a, b, c, a*c, d"),
        ((4, 6), (8, 3), "a, b*c, a*b, c"),
        ((), (1,), "a"),
        ((5, 4, 6), (5, 2, 12), "a, b*c, d, a, b, c*d"),
    ],
)
def test_reshapes_regroup_factors(old: tuple[int, ...], new: tuple[int, ...], expected: str) -> None:
    axes = [Atom(n) for n in old]
    found = regroup(axes, new)
    assert found is not None
    assert [t.size for t in found] == list(new)
    assert shown(*axes, *found) == expected


@pytest.mark.parametrize(("old", "new"), [((2, 3), (5,)), ((0, 3), (3, 0))])
def test_reshapes_of_other_or_no_elements_are_not_known(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    assert regroup([Atom(n) for n in old], new) is None
