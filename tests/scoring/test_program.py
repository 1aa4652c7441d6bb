"""Programs: taps, what is kept, how batches are bound, and which graphs are refused."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.errors import ScoreError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.node import Use, Value
from archir.rewrite.perturbation import Edge
from archir.scoring.program import Program, number_of_examples
from frontends.pytorch import trace
from tests.models.captured import graph_of
from tests.models.vision import ResNet
from tests.models.zoo import ZOO


class Square(nn.Module):
    """A value used twice by one call, once more by another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return cast(Tensor, y * y + 3 * y)


def test_taps_give_the_gradient_of_each_use_and_of_the_value() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    graph = trace(Square(), (x.float(),)).to(torch.float64)
    linear = next(n for n in graph.calls if n.op == "aten.linear.default")
    uses = graph.uses(Value(linear.id))
    assert [u.argument for u in uses] == ["other", "self", "self"]
    edges: list[Edge] = [*uses, Value(linear.id)]
    found = Program(graph, edges, keep=[Value(linear.id)])({Value(graph.inputs[0].id): x})
    y = found.values[Value(linear.id)]
    assert not y.requires_grad
    gradients = torch.autograd.grad(found.outputs[0].sum(), [found.taps[e] for e in edges])
    first, second, third = (y, y, torch.full_like(y, 3.0))
    for gradient, expected in zip(gradients, (first, second, third, first + second + third), strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-12)


def test_an_input_may_be_tapped() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    graph = trace(Square(), (x.float(),)).to(torch.float64)
    edge = Value(graph.inputs[0].id)
    found = Program(graph, [edge])({edge: x})
    (gradient,) = torch.autograd.grad(found.outputs[0].sum(), [found.taps[edge]])
    probe = x.clone().requires_grad_()
    weight, bias = graph.tensor("fc.weight"), graph.tensor("fc.bias")
    y = F.linear(probe, weight, bias)
    (expected,) = torch.autograd.grad((y * y + 3 * y).sum(), probe)
    assert torch.allclose(gradient, expected, rtol=1e-12)


def test_without_taps_nothing_is_recorded() -> None:
    x = torch.randn(5, 3)
    graph = trace(Square(), (x,))
    program = Program(graph)
    assert not program(program.bind(x)).outputs[0].requires_grad


class Layouts(nn.Module):
    """Views that lean on the order of the strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return cast(Tensor, self.fc(y.view(y.shape[0], -1)))


def test_the_layout_of_images_changes_nothing_but_speed() -> None:
    torch.manual_seed(0)
    for model, x in ((Layouts(), torch.randn(4, 3, 6, 6)), (ResNet(), torch.randn(4, 3, 32, 32))):
        graph = trace(model, (x,))
        program = Program(graph)
        with torch.no_grad():
            expected = model.eval()(x)
        found = program(program.bind(x)).outputs[0]
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


class Detached(nn.Module):
    """A value that training sees no gradient through."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return cast(Tensor, y + 2 * y.detach())


def test_a_change_passes_through_detach() -> None:
    x = torch.randn(5, 3)
    graph = trace(Detached(), (x,))
    edge = Value(next(n for n in graph.calls if n.op == "aten.linear.default").id)
    program = Program(graph, [edge])
    found = program(program.bind(x))
    (gradient,) = torch.autograd.grad(found.outputs[0].sum(), [found.taps[edge]])
    assert torch.allclose(gradient, torch.full_like(gradient, 3.0))


def one_call(op: str, *arguments: float | int | bool | None) -> Graph:
    builder = Builder()
    x = builder.input("x", "f32[B, 3]")
    return builder.graph(builder.call(op, x, *arguments))


def test_noise_is_refused() -> None:
    with pytest.raises(ScoreError, match=r"aten\.dropout\.default is active"):
        Program(one_call("aten.dropout.default", 0.5, True))
    Program(one_call("aten.dropout.default", 0.5, False))
    Program(one_call("aten.dropout.default", 0.0, True))
    with pytest.raises(ScoreError, match="scores would be noise"):
        Program(one_call("aten.bernoulli.p", 0.5))
    with pytest.raises(ScoreError, match=r"aten\.batch_norm\.default is active"):
        Program(one_call("aten.batch_norm.default", None, None, None, None, True, 0.1, 1e-5, False))


def test_statistics_of_single_examples_are_no_noise() -> None:
    class Instances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.norm(x))

    Program(trace(Instances(), (torch.randn(2, 3, 4, 4),)))


def test_batches_are_tensors_tuples_or_mappings() -> None:
    x, y = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32)
    graph = graph_of("siamese")
    program = Program(graph)
    by_position, by_name = program.bind((x, y)), program.bind({"y": y, "x": x})
    assert list(by_position) == list(by_name) == [Value(n.id) for n in graph.inputs]
    assert all(torch.equal(by_position[v], by_name[v]) for v in by_position)


def test_nested_inputs_and_outputs_keep_their_structure() -> None:
    example = ZOO["nested"]
    args, kwargs = example.inputs(), example.kwargs()
    graph = graph_of("nested")
    program = Program(graph)
    found = program.structure(program(program.bind({"arg0": args[0], **kwargs})).outputs)
    assert set(found) == {"hidden", "parts", "scale", "none"}
    assert found["scale"] == 2.0 and found["none"] is None and len(found["parts"]) == 2
    with pytest.raises(ScoreError, match=r"captured for 2\.0"):
        program.bind({"arg0": args[0], **kwargs, "scale": 3.0})
    with pytest.raises(ScoreError, match="nesting"):
        program.bind({"arg0": {"x": args[0]["x"]}, **kwargs})


def test_a_batch_that_does_not_fit_is_refused() -> None:
    program = Program(trace(Square(), (torch.randn(2, 3),)))
    for given, message in (
        (torch.randn(2, 4), r"should be f32\[B, 3\], not \[2, 4\]"),
        (torch.randn(2, 3).double(), "not .* of torch.float64"),
        ((torch.randn(2, 3), 1), "takes 1 arguments, not 2"),
        ({"z": torch.randn(2, 3)}, "takes no argument 'z'"),
        ((), "lacks the input 'x'"),
    ):
        with pytest.raises(ScoreError, match=message):
            program.bind(given)


def test_an_operator_that_rejects_its_operands_is_named() -> None:
    builder = Builder()
    x, y = builder.input("x", "f32[B, 3]"), builder.input("y", "f32[B, 3]")
    program = Program(builder.graph(builder.call("aten.add.Tensor", x, y)))
    with pytest.raises(ScoreError, match=r"aten\.add\.Tensor rejects its operands"):
        program(program.bind((torch.randn(2, 3), torch.randn(5, 3))))


def test_targets_count_the_examples() -> None:
    assert number_of_examples(torch.zeros(4, 2)) == 4
    for wrong in (torch.zeros(0), torch.tensor(1.0), [1, 2]):
        with pytest.raises(ScoreError, match="targets a tensor"):
            number_of_examples(wrong)  # type: ignore[arg-type]
    assert number_of_examples({"a": torch.zeros(4), "b": (torch.zeros(4, 2), torch.ones(4))}) == 4
    with pytest.raises(ScoreError, match="targets a tensor"):
        number_of_examples({})
    with pytest.raises(ScoreError, match=r"differ in length: 4 in targets\['a'\], 3 in targets\['b'\]\[0\]"):
        number_of_examples({"a": torch.zeros(4), "b": (torch.zeros(3),)})


def test_a_use_is_tapped_inside_a_list() -> None:
    builder = Builder()
    x = builder.input("x", "f64[B, 3]")
    y = builder.call("aten.relu.default", x)
    graph = builder.graph(builder.call("aten.cat.default", (y, y), 1))
    cat = graph.nodes[-2]
    edge = Use(cat.id, "tensors", (1,))
    found = Program(graph, [edge])({x: torch.randn(2, 3, dtype=torch.float64)})
    weights = torch.arange(6.0, dtype=torch.float64).expand(2, 6)
    (gradient,) = torch.autograd.grad(found.outputs[0], [found.taps[edge]], weights)
    assert torch.equal(gradient, weights[:, 3:])
