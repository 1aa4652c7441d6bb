"""Every operator with an axis rule, against what running it says, and against recorded axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archir.axes.infer import RULES, infer_widths
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.node import Node, Value
from archir.ir.text import print_graph
from tests.axes.calls import CALLS, Call
from tests.axes.operator_oracle import problems_of

GOLDEN = Path(__file__).with_name("operators.txt")
RANDOM = ("rand", "bernoulli", "empty", "new_empty")
REPEATABLE = [call for call in CALLS if not call[0].split(".")[1].startswith(RANDOM)]
"""Calls that make the same numbers each time; of the others only the recorded axes are asked."""


def name_of(call: Call) -> str:
    return f"{CALLS.index(call)}-{call[0].removeprefix('aten.').removesuffix('.default')}"


def build(call: Call) -> tuple[Graph, Node]:
    """Return a graph that makes a call on stored tensors, and the call; its results are not outputs."""
    op, args, kwargs = call
    b = Builder()
    x = b.input("x", "f64[B]")
    names = iter("abcdefghijklmnop")

    def argument(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(argument, value))
        is_tensor = isinstance(value, str) and value.endswith("]")
        return b.parameter(next(names), value) if is_tensor else value

    result = b.call(op, *map(argument, args), **{k: argument(v) for k, v in kwargs.items()})
    graph = b.graph(x)
    return graph, graph.node(result.node)


def axes_of(graph: Graph, node: Node) -> str:
    """Return the axes of a call's operands and results: `linear: w0 w1, w2 w1 -> w0 w2`; frozen ones as sizes."""
    widths = infer_widths(graph)
    frozen = {w.name: str(w.size) for w in widths.frozen}

    def axes(value: Value) -> str:
        notations = [widths.notation(term) for term in widths.axes[value]]
        for name, size in frozen.items():
            notations = [n.replace(name, size) for n in notations]
        return " ".join(notations) or "()"

    operands = ", ".join(axes(v) for _, v in node.operands())
    results = ", ".join(axes(Value(node.id, i)) for i in range(len(node.results)))
    return f"{node.op.removeprefix('aten.').removesuffix('.default')}: {operands} -> {results}".replace(":  ->", ": ->")


@pytest.mark.parametrize("call", REPEATABLE, ids=list(map(name_of, REPEATABLE)))
def test_axes_are_what_running_the_call_says(call: Call) -> None:
    graph, node = build(call)
    assert problems_of(graph, node) == [], print_graph(graph)


def test_every_operator_with_a_rule_is_called() -> None:
    # PyTorch cannot infer the type of `to.device`.
    assert sorted(set(RULES) - {op for op, _, _ in CALLS}) == ["aten.to.device"]


def test_axes_are_as_recorded() -> None:
    found = [axes_of(*build(call)) for call in CALLS]
    assert found == GOLDEN.read_text().splitlines()
