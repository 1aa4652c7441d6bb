"""What is kept of a structure while it is edited is what a structure made anew would have."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from archir.errors import GraphError
from archir.ir.graph import Graph
from archir.ir.node import Value
from archir.ir.structure import Structure, structure_of
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import parse_specs
from passes.catalog import PASSES
from tests.models.captured import graph_of
from tools.residual import residual_network


def check(found: Structure) -> None:
    anew = structure_of(found.by_id.values())
    assert {i: set(users) for i, users in found.users.items() if users} == {
        i: set(users) for i, users in anew.users.items()
    }
    keys = {i: anew.order.index(i) for i in anew.by_id}
    assert found.order == anew.order
    assert all(keys[value.node] < keys[i] for i, node in anew.by_id.items() for value in node.values)
    assert nx.utils.graphs_equal(found.networkx, anew.networkx)


def test_random_edits_keep_users_and_order() -> None:
    dice = random.Random(0)
    graph = residual_network(12)
    for step in range(60):
        with graph.edit(by=f"step {step}") as e:
            node = dice.choice([n for n in graph.calls if n.op == "aten.relu.default"])
            kind = dice.randrange(4)
            if kind == 0:
                e.replace_uses(Value(node.id), e.call("aten.relu.default", Value(node.id)), graph.uses(Value(node.id)))
            elif kind == 1:
                e.update(node.id, op="aten.tanh.default")
                e.update(node.id, op="aten.relu.default")
            elif kind == 2:
                e.remove(e.call("aten.neg.default", Value(node.id)).node)
            else:
                e.set_tensor(graph.parameters[0].id, graph.tensors[graph.parameters[0].id] + 1)
        shared = e.graph.structure.order is graph.structure.order
        assert shared == (kind != 0)
        graph = e.graph
        check(graph.structure)


def test_the_structure_before_an_edit_stays() -> None:
    graph = residual_network(6)
    text, users = str(graph), dict(graph.structure.users)
    apply_passes(graph, parse_specs("residual-branch{after=%1}; prune{width=w1, units=[0]}; deepen{after=%2}", PASSES))
    assert str(graph) == text and dict(graph.structure.users) == users


@pytest.mark.parametrize("name", ["resnet", "gpt", "lstm", "shared_module"])
def test_calls_are_numbered_as_in_the_text(name: str) -> None:
    graph = graph_of(name)
    check(graph.structure)
    assert list(graph.structure.numbers) == [n.id for n in graph.calls]
    assert list(graph.structure.numbers.values()) == list(range(len(graph.structure.calls)))


def test_a_cycle_is_found() -> None:
    graph: Graph = residual_network(4)
    first, *_, last = graph.calls
    with pytest.raises(GraphError, match="a cycle"), graph.edit(by="test") as e:
        e.update(first.id, arguments={"input": Value(last.id)})
