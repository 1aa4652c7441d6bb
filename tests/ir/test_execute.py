from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from archir.errors import GraphError
from archir.ir.execute import call, compile_call, is_factory, mode_argument, returns_sequence
from archir.ir.graph import Graph
from archir.ir.node import Argument, Node, Value
from tests.models.captured import graph_of
from tests.models.zoo import ZOO


def interpret(graph: Graph, inputs: list[Tensor], *, training: bool = False) -> list[object]:
    values: dict[Value, object] = {Value(i): t.clone() for i, t in graph.tensors.items()}
    values |= {Value(n.id): t for n, t in zip(graph.inputs, inputs, strict=True)}
    for node in graph.calls:
        results = call(node, values.__getitem__, training=training, device=torch.device("cpu"))
        assert len(results) == len(node.results)
        values |= {Value(node.id, i): r for i, r in enumerate(results)}
    return [values[v] for v in graph.output.arguments.values() if isinstance(v, Value)]


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize("training", [False, True])
def test_calls_one_by_one_compute_what_the_module_computes(name: str, training: bool) -> None:
    torch.manual_seed(0)
    example = ZOO[name]
    args, kwargs = example.inputs(), example.kwargs()
    graph = graph_of(name)
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    module = graph.module().train(training)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = [t for t in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, Tensor)]
        torch.manual_seed(1)
        found = interpret(graph, leaves, training=training)
    torch.testing.assert_close(found, expected)


def test_a_call_is_ready_to_run_many_times() -> None:
    node = Node(7, "aten.cat.default", {"tensors": (Value(1), Value(2), Value(1)), "dim": 1})
    ready = compile_call(node)
    for size in (1, 2):
        (result,) = ready({Value(1): torch.ones(2, size), Value(2): torch.zeros(2, 1)}.__getitem__)
        assert result.shape == (2, 2 * size + 1)


def test_results_are_always_a_tuple() -> None:
    x = torch.arange(6.0).view(2, 3)
    (first,) = call(Node(1, "aten.split.Tensor", {"self": Value(0), "split_size": 2}), lambda _: x)
    assert torch.equal(first, x)
    assert len(call(Node(1, "aten.sort.default", {"self": Value(0)}), lambda _: x)) == 2
    assert call(Node(1, "operator.mul", {"a": Value(0), "b": 3}), lambda _: 4) == (12,)


def test_which_operators_return_sequences_and_which_are_factories() -> None:
    assert [returns_sequence(op) for op in ("aten.split.Tensor", "aten.lstm.input", "aten.relu.default")] == [
        True,
        True,
        False,
    ]
    assert [is_factory(op) for op in ("aten.zeros.default", "aten.zeros_like.default", "operator.add")] == [
        True,
        False,
        False,
    ]


def test_factories_are_told_the_device() -> None:
    node = Node(1, "aten.arange.default", {"end": 4})
    assert call(node, lambda _: None, device=torch.device("meta"))[0].device.type == "meta"
    assert call(node, lambda _: None)[0].device.type == "cpu"


def test_mode_is_followed_where_the_program_does() -> None:
    x = torch.ones(100)
    follows = Node(1, "aten.dropout.default", {"input": Value(0), "p": 0.5, "train": False})
    always = Node(1, "aten.dropout.default", {"input": Value(0), "p": 0.5, "train": True})
    assert mode_argument(follows) == "train"
    assert mode_argument(always) is None
    assert mode_argument(Node(1, "aten.relu.default", {"self": Value(0)})) is None
    assert torch.equal(call(follows, lambda _: x)[0], x)
    assert not torch.equal(call(follows, lambda _: x, training=True)[0], x)
    assert not torch.equal(call(always, lambda _: x)[0], x)


def test_attention_drops_out_in_training_only() -> None:
    q = torch.randn(2, 3, 4, 5)
    arguments: dict[str, Argument] = {"query": Value(0), "key": Value(0), "value": Value(0), "dropout_p": 0.5}
    node = Node(1, "aten.scaled_dot_product_attention.default", arguments)
    plain = nn.functional.scaled_dot_product_attention(q, q, q)
    assert torch.equal(call(node, lambda _: q)[0], plain)
    assert not torch.equal(call(node, lambda _: q, training=True)[0], plain)


def test_an_unknown_operator_is_told() -> None:
    with pytest.raises(GraphError, match=r"there is no operator 'aten\.relux\.default'"):
        compile_call(Node(1, "aten.relux.default", {"self": Value(0)}))
