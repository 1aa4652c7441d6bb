"""What changed between two graphs: found again whatever the widths are called."""

from __future__ import annotations

import torch
from torch import nn

from archir.comparison import Difference, OperatorChange, Side, TensorChange, WidthChange, compare
from archir.cost import cost
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.node import Tree
from frontends.pytorch import trace
from passes.prune import Prune
from passes.split import Split
from tests.models.tokens import GPT


class Net(nn.Module):
    def __init__(self, sizes: tuple[int, ...], names: tuple[str, ...], activation: nn.Module | None = None) -> None:
        super().__init__()
        for name, inputs, outputs in zip(names, sizes[:-1], sizes[1:], strict=True):
            self.add_module(name, nn.Linear(inputs, outputs))
        self.activation = activation or nn.ReLU()
        self.layers = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.layers:
            x = self.activation(self.get_submodule(name)(x))
        return x


def net(sizes: tuple[int, ...], names: tuple[str, ...], activation: nn.Module | None = None) -> Graph:
    torch.manual_seed(0)
    return trace(Net(sizes, names, activation), (torch.randn(2, sizes[0]),))


def test_a_graph_does_not_differ_from_itself() -> None:
    graph = net((8, 6, 5, 4), ("a", "b", "c"))
    found = compare(graph, net((8, 6, 5, 4), ("a", "b", "c")))
    assert found == Difference((), (), (), (6, 6), (), cost(graph), cost(graph), ((), ()), same_program=True)
    assert found.is_empty


def test_a_rewrite_changes_widths_tensors_cost_and_history() -> None:
    before = net((8, 6, 5, 4), ("a", "b", "c"))
    after = Prune("w1", (0,)).apply(Split("w0", (1, 2)).apply(before))
    found = compare(before, after)
    assert found.widths == (
        WidthChange(Side("w0", 6, True), Side("w0", 8, True), ("a.weight[0]", "a.bias[0]", "b.weight[1]")),
        WidthChange(Side("w1", 5, True), Side("w1", 4, True), ("b.weight[0]", "b.bias[0]", "c.weight[1]")),
    )
    assert found.tensors == (
        TensorChange("a.weight", "f32[6, 8]", "f32[8, 8]"),
        TensorChange("a.bias", "f32[6]", "f32[8]"),
        TensorChange("b.weight", "f32[5, 6]", "f32[4, 8]"),
        TensorChange("b.bias", "f32[5]", "f32[4]"),
        TensorChange("c.weight", "f32[4, 5]", "f32[4, 4]"),
    )
    assert found.after - found.before == cost(after) - cost(before)
    assert found.history == ((), ("split{width=w0, units=[1, 2]}", "prune{width=w1, units=[0]}"))
    assert found.operators == () and not found.altered and not found.same_program


def test_widths_are_matched_by_their_places_not_their_names() -> None:
    found = compare(net((8, 6, 5, 4), ("a", "b", "c")), net((8, 7, 6, 9, 4), ("extra", "a", "b", "c")))
    assert [w for w in found.widths if w.after and w.after.free] == [
        WidthChange(Side("w1", 5, True), Side("w2", 9, True), ("b.weight[0]", "b.bias[0]", "c.weight[1]")),
        WidthChange(Side("f0", 8, False), Side("w0", 7, True), ("a.weight[1]",)),
    ]
    assert WidthChange(None, Side("f0", 8, False), ("extra.weight[1]",)) in found.widths
    assert TensorChange("extra.weight", None, "f32[7, 8]") in found.tensors
    assert found.operators == (OperatorChange("aten.linear", 3, 4), OperatorChange("aten.relu", 3, 4))
    assert found.stored == (6, 8)


def test_what_is_gone_is_told() -> None:
    found = compare(net((8, 7, 8, 4), ("a", "b", "c")), net((8, 4), ("c",), nn.Tanh()))
    assert TensorChange("a.weight", "f32[7, 8]", None) in found.tensors
    assert WidthChange(Side("w0", 7, True), None, ("a.weight[0]", "a.bias[0]", "b.weight[1]")) in found.widths
    assert OperatorChange("aten.relu", 3, 0) in found.operators
    assert OperatorChange("aten.tanh", 0, 1) in found.operators


def test_widths_of_one_axis_are_told_apart() -> None:
    torch.manual_seed(0)
    graph = trace(GPT(), (torch.zeros(2, 8, dtype=torch.int64),))
    for width in ("w1", "w2", "w3"):
        after = Prune(width, (0,)).apply(graph)
        (change,) = compare(graph, after).widths
        assert change.before and change.after
        assert (change.before.name, change.before.size - 1) == (width, change.after.size)


def test_a_width_that_freezes_is_told() -> None:
    def graph(frozen: bool) -> Graph:
        b = Builder()
        x = b.input("x", "f32[B, 8]")
        hidden = b.call("aten.linear.default", x, b.parameter("a", "f32[6, 8]"))
        y = b.call("aten.linear.default", hidden, b.parameter("b", "f32[4, 6]"))
        return b.graph(y, hidden, result=Tree("tuple", (0, 1))) if frozen else b.graph(y)

    found = compare(graph(frozen=False), graph(frozen=True))
    assert found.widths == (WidthChange(Side("w0", 6, True), Side("f0", 6, False), ("a[0]", "b[1]")),)
    assert found.tensors == () and not found.is_empty


def test_other_numbers_are_told_but_what_is_no_number_equals_itself() -> None:
    before = net((8, 6, 4), ("a", "b"))
    bias, weight = before.tensor("a.bias").clone(), before.tensor("b.weight").clone()
    bias[0] = float("nan")
    before = before.with_tensors({"a.bias": bias})
    weight[0, 0] += 1
    found = compare(before, before.with_tensors({"a.bias": bias.clone(), "b.weight": weight}))
    assert found.altered == ("b.weight",) and not found.is_empty and found.same_program


def test_tied_tensors_are_matched_by_any_name() -> None:
    def graph(*names: str) -> Graph:
        b = Builder()
        return b.graph(b.call("aten.linear.default", b.input("x", "f32[B, 8]"), b.parameter(names, "f32[6, 8]")))

    found = compare(graph("a", "b"), graph("b"))
    assert found.tensors == () and found.widths == ()


def test_other_arguments_are_noticed() -> None:
    def graph(axis: int) -> Graph:
        b = Builder()
        return b.graph(b.call("aten.flip.default", b.input("x", "f32[B, 8, 8]"), (axis,)))

    found = compare(graph(1), graph(2))
    assert not found.same_program and not found.is_empty
    assert not (found.operators or found.widths or found.tensors or found.altered)
