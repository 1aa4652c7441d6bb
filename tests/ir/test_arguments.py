"""What a module is called with besides tensors has to be what the program was captured for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from archir.errors import GraphError
from archir.ir.arguments import fixed, keys_of, parts
from frontends.pytorch import trace

X = torch.arange(6.0).reshape(2, 3)


@dataclass
class Pair:
    """Two tensors."""

    one: Tensor
    other: Tensor


torch.export.register_dataclass(Pair)


class Less(nn.Module):
    """What one part of a pair is more than the other."""

    def forward(self, pair: Pair) -> Pair:
        return Pair(pair.one - pair.other, pair.other)


@pytest.mark.parametrize("value", [None, 3, True, 2.5, float("nan"), "text"])
def test_constants_are_the_same_and_of_the_same_type(value: object) -> None:
    fixed(value, value, "n")
    for other in (None, 3, True, 1, 2.5, float("nan"), "text", "other"):
        if type(other) is not type(value) or repr(other) != repr(value):
            with pytest.raises(GraphError, match=r"argument n is .*, and the program was captured for"):
                fixed(other, value, "n")


def test_parts_are_as_many_and_called_the_same() -> None:
    assert parts([1, 2], 2, "x") == [1, 2] and parts((1, 2), 2, "x") == (1, 2)
    assert parts({"b": 1, "a": 2}, ("a", "b"), "x") == {"a": 2, "b": 1}
    assert parts(Pair(X, X), ("one", "other"), "x") == {"one": X, "other": X}
    for value, keys, why in (
        ([1, 2, 3], 2, "argument x has 3 parts, not 2"),
        ({"a": 1}, 1, "argument x is a dict, not a list of 1"),
        (X, 2, "argument x is a Tensor, not a list of 2"),
        ([1], ("a",), "argument x is a list, which has no keys"),
        ({"a": 1, 3: 2}, ("a", "b"), "argument x has the keys '3', 'a', not 'a', 'b'"),
    ):
        with pytest.raises(GraphError, match=re.escape(why)):
            parts(value, keys, "x")


def test_keys_are_told_by_the_context_or_its_first_part() -> None:
    assert keys_of(["a", "b"], 2) == keys_of((["a", "b"], None), 2) == ("a", "b")
    assert keys_of(None, 0) is None and keys_of(["a"], 2) is None and keys_of([1, 2], 2) is None


def test_a_registered_class_is_taken_apart_where_the_module_is_called() -> None:
    module = trace(Less(), (Pair(X, X),)).module()
    found = module(Pair(X + 1, X))
    torch.testing.assert_close(found["one"], torch.ones_like(X))
    torch.testing.assert_close(module({"one": X + 1, "other": X})["one"], torch.ones_like(X))
    with pytest.raises(GraphError, match="argument arg0 is a tuple, which has no keys"):
        module((X, X))


def test_a_module_refuses_lists_and_dicts_of_other_lengths() -> None:
    class Sum(nn.Module):
        def forward(self, xs: list[Tensor], named: dict[str, Tensor]) -> Tensor:
            return xs[0] + xs[1] + named["a"]

    module = trace(Sum(), ([X, X], {"a": X})).module()
    torch.testing.assert_close(module([X, X], {"a": X}), 3 * X)
    with pytest.raises(GraphError, match=r"argument arg0 has 3 parts, not 2"):
        module([X, X, X], {"a": X})
    with pytest.raises(GraphError, match=r"argument arg1 has the keys 'a', 'b', not 'a'"):
        module([X, X], {"a": X, "b": X})
