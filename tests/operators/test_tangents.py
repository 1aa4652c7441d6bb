"""Forward mode of every operator with a tangent rule against `torch.func.jvp` of its call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from archir.ir.builder import GraphBuilder as Builder
from archir.ir.execute import compile_call
from archir.ir.graph import Graph
from archir.ir.node import Node, Tree, Use, Value
from archir.ir.operators.operator import Kind, Operator
from archir.ir.operators.table import TABLE
from archir.ir.registry import operator_of
from archir.ir.types import is_float
from archir.scoring.downstream import Downstream
from archir.scoring.forward import Linearisation, Tangents
from archir.scoring.program import Program
from tests.axes.calls import Call
from tests.operators.calls import EVERY


def _has_rule(row: Operator) -> bool:
    rules = row.linear or row.multilinear or row.derivative or row.places or row.pointwise
    return bool(rules) or row.kind is Kind.DROPOUT


EXEMPT: Mapping[str, str] = MappingProxyType(
    {
        "bernoulli": "it is noise, which is refused",
        "batch_norm with the statistics of the batch": "it is refused unless it is asked for",
        "copy": "PyTorch does not differentiate it",
        "detach": "it is seen through",
        "detach_copy": "it is seen through",
        "floor_divide": "PyTorch does not differentiate it",
        "native_channel_shuffle": "PyTorch does not differentiate it",
        "masked_select": "its types depend on data",
        "repeat_interleave.self_Tensor": "its types depend on data",
    }
)
"""Operators that are not compared, and why."""


def _is_exempt(call: Call) -> bool:
    rest = call[0].removeprefix("aten.")
    return rest in EXEMPT or rest.partition(".")[0] in EXEMPT or (rest == "batch_norm.default" and call[1][3] is None)


CALLS = [call for call in EVERY if _has_rule(operator_of(call[0])) and not _is_exempt(call)]


def _graph(call: Call) -> tuple[Graph, Node]:
    """Return a graph whose outputs are the results of a call on stored tensors."""
    op, args, kwargs = call
    b = Builder()
    b.input("x", "f64[B]")
    names = iter("abcdefghijklmnop")

    def place(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(place, argument))
        return b.parameter(next(names), argument) if isinstance(argument, str) and argument.endswith("]") else argument

    made = b.call(op, *map(place, args), **{n: place(a) for n, a in kwargs.items()})
    results = b.results(made)
    graph = b.graph(*results, result=Tree("tuple", tuple(range(len(results)))))
    return graph, graph.node(made.node)


def _moving(graph: Graph, node: Node) -> list[list[Use]]:
    """Return the floating operands, one by one and, where it has more, all together."""
    fixed = ("running_mean", "running_var")  # by these PyTorch does not differentiate
    uses = [u for u, value in node.operands() if is_float(graph.type_of(value)) and u.argument not in fixed]
    return [*([use] for use in uses), *([uses] if len(uses) > 1 else [])]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_tangents_are_those_of_torch(call: Call) -> None:
    graph, node = _graph(call)
    values = {Value(i): t for i, t in graph.tensors.items()}
    for uses in _moving(graph, node):
        tail = Downstream(graph, uses)
        kept = Program(graph, keep=tail.needs)({Value(graph.inputs[0].id): torch.ones(2, dtype=torch.float64)}).values
        tangents = {use: torch.randn_like(_operand(node, use, values)) for use in uses}
        found = Linearisation(tail, kept)({use: Tangents(t[None]) for use, t in tangents.items()})
        expected = _jvp(node, values, tangents)
        assert len(found) == len(expected)
        for tangent, right in zip(found, expected, strict=True):
            moved = torch.zeros_like(right) if tangent is None else tangent[0]
            assert torch.allclose(moved, right, rtol=1e-9, atol=1e-9, equal_nan=True), uses


def _operand(node: Node, use: Use, values: Mapping[Value, Tensor]) -> Tensor:
    return values[dict(node.operands())[use]]


def _jvp(node: Node, values: Mapping[Value, Tensor], tangents: Mapping[Use, Tensor]) -> list[Tensor]:
    """Return the tangents of all results of a call, zero where they are no floating tensors."""
    arguments = dict(node.arguments)
    given: dict[Value, Tensor] = dict(values)
    for i, use in enumerate(tangents):  # an operand that stands in two places is two
        given[Value(-1 - i)] = _operand(node, use, values)
        argument = arguments[use.argument]
        (at,) = use.position or (0,)
        own = Value(-1 - i)
        arguments[use.argument] = (*argument[:at], own, *argument[at + 1 :]) if isinstance(argument, tuple) else own
    call = compile_call(replace(node, arguments=arguments))

    def function(*moved: Tensor) -> tuple[Tensor, ...]:
        results = call({**given, **{Value(-1 - i): t for i, t in enumerate(moved)}}.__getitem__)
        return tuple(r if r.is_floating_point() else torch.zeros(r.shape, dtype=torch.float64) for r in results)

    primals = tuple(given[Value(-1 - i)] for i in range(len(tangents)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=DeprecationWarning)
        pushed: tuple[Tensor, ...] = torch.func.jvp(function, primals, tuple(tangents.values()))[1]
    return list(pushed)


def test_every_rule_is_called() -> None:
    called = {op.removeprefix("aten.") for op, *_ in CALLS}
    called |= {op.partition(".")[0] for op in called}
    special = {name for name, row in TABLE.items() if row.derivative or row.places or row.multilinear}
    assert special - called == set()
