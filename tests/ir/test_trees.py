"""Nesting of arguments and results: taken apart and put together again."""

from __future__ import annotations

from typing import Any

import pytest

from archir.errors import GraphError
from archir.ir.node import Constant, Leaf, Tree, build, flatten, fold, leaves, texts

NESTED = Tree("dict", (1, Tree("tuple", (0, Constant("mean"))), Tree("list", (Constant(None), 2))), ("a", "b", "c"))


def test_a_value_is_nested_and_taken_apart() -> None:
    value = build(NESTED, ["zero", "one", "two"])
    assert value == {"a": "one", "b": ("zero", "mean"), "c": [None, "two"]}
    assert flatten(NESTED, value) == [
        (1, "one"),
        (0, "zero"),
        (Constant("mean"), "mean"),
        (Constant(None), None),
        (2, "two"),
    ]
    assert leaves(NESTED) == [1, 0, Constant("mean"), Constant(None), 2]
    assert NESTED.items() == (("a", 1), ("b", NESTED.children[1]), ("c", NESTED.children[2]))
    assert Tree("list", (4, 5)).items() == ((0, 4), (1, 5))


@pytest.mark.parametrize("leaf", [3, Constant(0.5)])
def test_an_end_is_a_nesting_too(leaf: Leaf) -> None:
    assert leaves(leaf) == [leaf] and flatten(leaf, "x") == [(leaf, "x")]
    assert build(leaf, "abcd") == ("d" if leaf == 3 else 0.5)


def test_what_is_made_of_a_tree_is_made_of_its_parts() -> None:
    depth = fold(NESTED, lambda _: 0, lambda _, parts: 1 + max(parts))
    assert depth == 2
    assert texts(NESTED) == ["a", "b", "c", "mean"]


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": (0, 1)},
        {"a": 1, "b": (0,), "c": [0, 1]},
        {"a": 1, "b": (0, 1, 2), "c": [0, 1]},
        [1, (0, 1), [0, 1]],
        7,
    ],
)
def test_a_value_that_is_nested_otherwise_is_refused(value: Any) -> None:
    with pytest.raises(GraphError, match="is not nested as a "):
        flatten(NESTED, value)
