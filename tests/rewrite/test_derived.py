"""What is derived of a patch is the change it makes: Δ added on the edges of the old graph gives the new outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archir.errors import GraphError
from archir.ir.builder import GraphBuilder
from archir.ir.edit import Edit
from archir.ir.execute import call
from archir.ir.graph import Graph, Patch
from archir.ir.node import Argument, Node, Use, Value
from archir.ir.patch import no_patch
from archir.rewrite.derived import DerivedPerturbation, derive_perturbation, with_theta
from archir.rewrite.miss import Miss
from archir.rewrite.perturbation import Edge
from archir.testing import evaluate, relative_difference
from tests.models.random_patches import random_graph, random_patch


def outputs(graph: Graph, x: Tensor) -> list[Tensor]:
    values = evaluate(graph, [x])
    return [values[v] for v in graph.output.values]


def inject(graph: Graph, x: Tensor, deltas: Mapping[Edge, Tensor]) -> list[Tensor]:
    """Return the outputs of a graph when Δ is added on some edges; each use is one of its own."""
    values: dict[Value, Any] = {Value(i): t for i, t in graph.tensors.items()} | {Value(graph.inputs[0].id): x}
    values |= {v: t + deltas[v] for v, t in values.items() if v in deltas}

    def separated(node: Node) -> tuple[Node, list[Tensor]]:
        found: list[Tensor] = []

        def part(name: str, argument: Argument, position: tuple[int, ...] = ()) -> Argument:
            if isinstance(argument, tuple):
                return tuple(part(name, a, (*position, i)) for i, a in enumerate(argument))
            if not isinstance(argument, Value):
                return argument
            found.append(values[argument] + deltas.get(Use(node.id, name, position), 0))
            return Value(len(found) - 1)

        return replace(node, arguments={n: part(n, a) for n, a in node.arguments.items()}), found

    for node in graph.calls:
        apart, operands = separated(node)

        def operand(value: Value, operands: list[Tensor] = operands) -> Tensor:
            return operands[value.node]

        for i, result in enumerate(call(apart, operand)):
            value = Value(node.id, i)
            values[value] = result + deltas.get(value, 0)
    return separated(graph.output)[1]


def check(patch: Patch, x: Tensor) -> DerivedPerturbation | Miss:
    found, values = derive_perturbation(patch), evaluate(patch.before, [x])
    if isinstance(found, Miss):
        assert found.reason == "it changes no value that anything uses"
        assert relative_difference(outputs(patch.after, x), outputs(patch.before, x)) < 1e-12
        return found
    needed = {value: values[value] for value in found.needs}
    theta = found.initial_theta(values, 0)
    for chosen, after in (({}, patch.after), (theta, with_theta(patch, theta).after)):
        right = outputs(after, x)
        assert relative_difference(inject(patch.before, x, found.delta(needed, chosen)), right) < 1e-12
    return found


@given(st.randoms(use_true_random=False))
def test_random_patches(dice: Random) -> None:
    """Each alone, and all of them as one, which has places of change that are downstream of others."""
    graph, x = random_graph(dice, dice.randrange(4, 14)), torch.randn(3, 4, dtype=torch.float64)
    total = no_patch(graph)
    for _ in range(4):
        try:
            patch = random_patch(total.after, dice)
        except GraphError:
            continue
        total = total.then(patch)
        check(patch, x)
        check(total, x)


def chain() -> tuple[Graph, list[Value]]:
    b = GraphBuilder()
    values = [b.input("x", "f64[B, 4]")]
    for op in ("tanh", "sigmoid", "exp", "neg"):
        values.append(b.call(f"aten.{op}.default", values[-1]))
    return b.graph(b.call("aten.add.Tensor", values[-1], values[1])), values


def take_out(e: Edit[Graph], values: list[Value]) -> None:
    e.replace_uses(values[3], values[2])
    e.remove(values[3].node)


def leave_dangling(e: Edit[Graph], values: list[Value]) -> None:
    e.replace_uses(values[3], values[2])


def take_from_elsewhere(e: Edit[Graph], values: list[Value]) -> None:
    e.replace_uses(values[3], values[0])


@pytest.mark.parametrize("other", [take_out, leave_dangling, take_from_elsewhere])
def test_what_a_call_was_given_moves_with_a_change_upstream(other: Callable[[Edit[Graph], list[Value]], None]) -> None:
    """A call is given something else, and what it was or is given lies downstream of something spliced in."""
    graph, values = chain()
    with graph.edit(by="test") as e:
        e.replace_uses(values[1], e.call("aten.relu.default", values[1]), graph.uses(values[1])[:1])
        other(e, values)
    assert isinstance(check(e.patch, torch.randn(3, 4, dtype=torch.float64)), DerivedPerturbation)


def test_one_splice_evaluates_what_is_new_alone() -> None:
    graph, values = chain()
    with graph.edit(by="test") as e:
        new = e.call("aten.relu.default", values[1])
        e.replace_uses(values[1], new, graph.uses(values[1]))
    found = check(e.patch, torch.randn(3, 4, dtype=torch.float64))
    assert isinstance(found, DerivedPerturbation)
    assert found.calls.keys() == {new.node} and found.edges.keys() == {values[1]} == found.needs


def test_a_stored_tensor_that_is_an_output() -> None:
    b = GraphBuilder()
    x, scale = b.input("x", "f64[B, 4]"), b.parameter("scale", "f64[4]")
    graph = b.graph(b.call("aten.mul.Tensor", x, scale), scale)
    with graph.edit(by="test") as e:
        e.set_tensor(scale.node, torch.ones(4, dtype=torch.float64))
    found = derive_perturbation(e.patch)
    assert isinstance(found, Miss) and "no example has a part in" in found.reason
