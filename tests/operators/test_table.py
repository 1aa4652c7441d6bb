"""The table as a whole: one row an operator, of operators that exist, about arguments that they have."""

from __future__ import annotations

from collections.abc import Iterator

from archir.ir import registry
from archir.ir.operators.operator import UNKNOWN
from archir.ir.operators.table import _FAMILIES, NAMES, TABLE
from archir.ir.registry import operator_of


def _arguments(key: str) -> Iterator[set[str]]:
    """Yield the names of the arguments of every overload a row is about."""
    name, _, own = key.partition(".")
    for form in [own] if own else registry._forms("aten", name):
        found = registry._overload(f"aten.{name}.{form}")
        if found is not None and registry.is_function(found) and (own or f"{name}.{form}" not in TABLE):
            yield {argument.name for argument in found._schema.arguments}


def test_no_operator_has_two_rows() -> None:
    assert sum(len(family.OPERATORS) for family in _FAMILIES) == len(TABLE)


def test_rows_are_about_operators_and_arguments_that_exist() -> None:
    for key, row in TABLE.items():
        overloads = list(_arguments(key))
        assert overloads, key
        layer = row.layer.tensors if row.layer else ()
        named = {*row.linear, *row.multilinear, *layer, *filter(None, (row.unless, row.mode))}
        assert named <= set().union(*overloads), key


def test_a_row_admits_its_operator_so_none_comes_unnoticed() -> None:
    assert len(NAMES) == 750, "is the operator safe on data of strangers, and does it do nothing but compute?"


def test_nothing_is_claimed_of_what_is_not_in_the_table() -> None:
    assert operator_of("aten.nothing.default") is operator_of("operator.add") is operator_of("parameter") is UNKNOWN
