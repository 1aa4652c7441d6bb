"""The table: every ATen operator a graph may call, and what is known of it.

A row admits its operator (`archir.ir.registry`): one that does more than compute tensors and numbers from its
arguments, or is not safe on data of strangers, may have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from archir.ir.operators import (
    attention,
    convolution,
    fourier,
    indexing,
    linear_algebra,
    loss,
    movement,
    normalisation,
    pointwise,
    product,
    properties,
    recurrent,
    reduction,
    source,
    spatial,
)
from archir.ir.operators.operator import Operator

_FAMILIES = (
    attention,
    convolution,
    indexing,
    movement,
    normalisation,
    linear_algebra,
    loss,
    fourier,
    properties,
    pointwise,
    product,
    recurrent,
    reduction,
    source,
    spatial,
)

TABLE: Mapping[str, Operator] = MappingProxyType(
    {name: operator for family in _FAMILIES for name, operator in family.OPERATORS.items()}
)
"""Rows by name, all overloads of an operator alike (`conv2d`) but those that have one of their own (`view.dtype`)."""

NAMES = frozenset(name.partition(".")[0] for name in TABLE)
"""The operators, without overloads."""


def row(name: str, overload: str) -> Operator | None:
    """Return what is known of an overload of an ATen operator, None if the operator is not in the table."""
    return TABLE.get(f"{name}.{overload}", TABLE.get(name))
