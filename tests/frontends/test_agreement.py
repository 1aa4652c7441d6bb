"""The graph is held to the model: what capture loses without a word is an error, or told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archir.errors import CaptureError, CaptureWarning
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from frontends import pytorch
from frontends.agreement import Agreement, compare
from frontends.examples import Example
from frontends.pytorch import trace

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A linear layer, and something after it."""

    def __init__(self, after: Callable[[Tensor], Tensor] = torch.relu, kind: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 5)
        self.kind = kind()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.kind(self.layer(x)))


def _other(after: str) -> Graph:
    b = Builder("layer")
    weight, bias = b.parameter("layer.weight", "f32[5, 5]"), b.parameter("layer.bias", "f32[5]")
    return b.graph(b.call(after, b.call("aten.linear.default", b.input("x", "f32[B, 5]"), weight, bias)))


def test_a_graph_that_is_the_model_agrees_with_it() -> None:
    model = Layer()
    graph = trace(model, X)
    for training in (False, True):
        assert compare(graph, model, Example((X,)), training=training) == Agreement()


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_that_computes_something_else_does_not(training: bool) -> None:
    found = compare(_other("aten.gelu.default"), Layer(), Example((X,)), training=training)
    assert found.compared and "result 0 is off by" in found.difference


def test_other_shapes_types_and_numbers_of_results_are_differences() -> None:
    model, graph = Layer(), trace(Layer(), X)

    def against(after: Callable[[Tensor], object]) -> str:
        model.after = after  # type: ignore[assignment]
        return compare(graph, model, Example((X,))).difference

    assert against(lambda x: x.relu().sum(1)) == "result 0 is torch.float32 [4, 5] instead of torch.float32 [4]"
    assert against(lambda x: x.relu().double()) == "result 0 is torch.float32 [4, 5] instead of torch.float64 [4, 5]"
    assert against(lambda x: (x.relu(), x)) == "it makes 1 tensors instead of 2"
    assert against(lambda x: x.relu().exp()).startswith("result 0 is off by")


def test_gradients_are_compared_in_training() -> None:
    model = Layer(lambda x: x.relu() + x - x.detach())
    graph = trace(Layer(), X)
    assert compare(graph, model, Example((X,))) == Agreement()
    assert "the gradient of layer.weight is off by" in compare(graph, model, Example((X,)), training=True).difference


def test_what_only_one_of_them_can_run_is_a_difference() -> None:
    model, example = Layer(), Example((torch.randn(4, 7),))
    assert compare(trace(model, X), model, example) == Agreement(compared=False)

    class Free(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :5])

    assert "the graph raises GraphError" in compare(trace(model, X), Free(), example).difference


def test_models_that_differ_from_themselves_are_not_compared() -> None:
    graph = trace(Layer(), X)
    random = Layer(lambda x: x + torch.rand_like(x))
    assert compare(trace(random, X), Layer(lambda x: x + torch.rand_like(x).flip(0)), Example((X,))).compared is False
    assert compare(graph, random, Example((X,))).compared
    chaotic = Layer(lambda x: torch.sin(1e7 * x))
    assert compare(graph, chaotic, Example((X,))) == Agreement(compared=False)


def test_models_that_cannot_be_run_are_not_compared() -> None:
    graph = trace(Layer(), X)
    with torch.device("meta"):
        hollow = Layer()
    assert compare(graph, hollow, Example((X,))) == Agreement(compared=False)


def test_trace_refuses_a_graph_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "_with_any_batch", lambda model, example, axes: _other("aten.gelu.default"))
    with pytest.raises(CaptureError, match="the graph of Layer computes something else than the model") as caught:
        trace(Layer(), X)
    assert "result 0 is off by" in caught.value.why


def test_trace_tells_what_differs_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Layer(kind=lambda: nn.Dropout(0.5))  # type: ignore[arg-type]
    monkeypatch.setattr(pytorch, "_with_any_batch", lambda model, example, axes: _other("aten.relu.default"))
    with pytest.warns(CaptureWarning, match="result 0 is off by .* in training"):
        trace(model, X)


@pytest.mark.parametrize(
    ("after", "op"),
    [
        (lambda x, t: F.dropout(x, 0.5, t, inplace=True), "aten.dropout.default"),
        (lambda x, t: torch.dropout_(x, 0.5, t), "aten.dropout.default"),
        (lambda x, t: F.alpha_dropout(x, 0.5, t, inplace=True), "aten.alpha_dropout.default"),
        (lambda x, t: F.dropout1d(x, 0.5, t, inplace=True), "aten.feature_dropout.default"),
        (lambda x, t: F.feature_alpha_dropout(x, 0.5, t, inplace=True), "aten.feature_alpha_dropout.default"),
        (lambda x, t: F.rrelu(x, training=t, inplace=True), "aten.rrelu.default"),
    ],
)
@pytest.mark.parametrize("returned", [True, False])
def test_in_place_dropout_is_kept(after: Callable[[Tensor, bool], Tensor], op: str, returned: bool) -> None:
    class Dropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x[:, None] + 1
            z = after(y, self.training)
            return z if returned else y

    graph = trace(Dropped(), X)
    assert [n.op for n in graph.calls if "drop" in n.op or "rrelu" in n.op] == [op]
    module = graph.module().train()
    assert not torch.equal(module(X), module(X))
    torch.testing.assert_close(module.eval()(X), Dropped().eval()(X))


def test_a_tensor_given_twice_is_two_inputs() -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + 2 * y

    graph, other = trace(Added(), (X, X)), torch.ones_like(X)
    torch.testing.assert_close(graph.module()(X, other), X + 2 * other)


def test_a_model_that_keeps_functions_of_itself_is_left_as_it_was() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)
            norm = self.norm
            self.step: Callable[[Tensor], Tensor] = lambda x: norm(x).relu()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.step(x)
            return y

    model = Kept()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, X)
    assert model.training and model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert compare(graph, model, Example((X,))) == Agreement()
    assert compare(graph, model, Example((X,)), training=True) == Agreement(compared=False)
    assert compare(_other("aten.gelu.default"), model, Example((X,))).difference != ""


def test_a_module_in_two_places_is_the_same_in_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = Layer()
            self.b, self.a = nn.Sequential(inner), inner

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(self.b(x))
            return y

    assert compare(trace(Twice(), X), Twice(), Example((X,)), training=True) == Agreement()


def test_statistics_that_nothing_reads_are_no_difference() -> None:
    class Idle(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            return super().forward(x)

    assert compare(trace(Idle(), X), Idle(), Example((X,)), training=True) == Agreement()
