from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from archir.errors import CaptureError, GraphError
from archir.ir.graph import Graph
from archir.ir.node import Constant, Tree, Value
from archir.ir.types import ScalarType, TensorType, symbol
from archir.ir.verify import verify
from frontends.pytorch import trace
from tests.models.zoo import UNCAPTURABLE, ZOO

B = symbol("B")


class Linear(nn.Module):
    """A layer to build small programs on."""

    counter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("counter", torch.zeros(()))


def line_of(graph: Graph, op: str) -> str:
    location = next(n for n in graph.calls if n.op == op).location
    assert location is not None
    with open(location.file, encoding="utf-8") as file:
        return file.readlines()[location.line - 1].strip()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_model_of_the_zoo_is_captured_and_left_alone(name: str) -> None:
    model = ZOO[name].build()
    model.train()
    list(model.modules())[-1].eval()
    modes = [m.training for m in model.modules()]
    state = {k: (id(t), t.clone()) for k, t in model.state_dict(keep_vars=True).items()}
    graph = trace(model, ZOO[name].inputs(), ZOO[name].kwargs())
    verify(graph)
    assert [m.training for m in model.modules()] == modes
    after = model.state_dict(keep_vars=True)
    assert {k: id(t) for k, t in after.items()} == {k: i for k, (i, _) in state.items()}
    assert all(torch.equal(after[k], t) for k, (_, t) in state.items())
    batches = {t.shape[0] for n in graph.inputs for t in n.results if isinstance(t, TensorType)}
    assert batches == {B}
    assert set(graph.by_name) >= set(model.state_dict())
    names = [
        n for node in graph.parameters if node.parameter and node.parameter.persistent for n in node.parameter.names
    ]
    assert sorted(names) == sorted(model.state_dict())
    assert not any(n.op.split(".")[1].endswith("_") for n in graph.calls)


def test_tracing_twice_gives_the_same_text() -> None:
    example = ZOO["swin"]
    model = example.build()
    assert str(trace(model, example.inputs())) == str(trace(model, example.inputs()))


def test_graph_has_copies_of_the_tensors() -> None:
    model = nn.Linear(3, 2)
    graph = trace(model, (torch.randn(2, 3),))
    with torch.no_grad():
        model.weight.zero_()
    assert graph.tensor("weight").abs().sum() > 0


def test_nodes_know_line_module_and_class() -> None:
    graph = trace(ZOO["resnet"].build(), ZOO["resnet"].inputs())
    conv = [n for n in graph.calls if n.op == "aten.conv2d.default"][1]
    assert conv.location is not None
    assert conv.location.module == "layers.0.conv1"
    assert conv.location.kind == "torch.nn.modules.conv.Conv2d"
    assert conv.location.file.endswith("tests/models/vision.py")
    assert line_of(graph, "aten.add.Tensor") == "y += identity"


def test_shared_modules_keep_their_path() -> None:
    graph = trace(ZOO["shared_module"].build(), ZOO["shared_module"].inputs())
    paths = [n.location.module for n in graph.calls if n.op == "aten.linear.default" and n.location]
    assert paths == ["first", "first", "again", "last"]


def test_batch_size_is_followed_through_sizes() -> None:
    graph = trace(ZOO["encoder"].build(), ZOO["encoder"].inputs())
    scalars = {str(n.results[0]) for n in graph.calls if isinstance(n.results[0], ScalarType)}
    assert scalars == {"int(B)", "int(4*B)", "int(7*B)"}


def test_sizes_are_plain_expressions() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: x.shape[0] // 2] + x.shape[0] % 3

    graph = trace(Halves(), (torch.randn(6, 3),))
    result = graph.type_of(Value(graph.output.arguments["0"].node))  # type: ignore[union-attr]
    assert result == TensorType(torch.float32, (sympy.floor(B / 2), 3))
    assert ScalarType("int", sympy.Mod(B, 3)) in [n.results[0] for n in graph.calls]
    torch.testing.assert_close(graph.module()(torch.ones(5, 3)), torch.full((2, 3), 3.0))


def test_independent_batches_have_their_own_symbols() -> None:
    class Towers(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, y * 3

    graph = trace(Towers(), (torch.randn(6, 3), torch.randn(4, 3)))
    assert [str(n.results[0]) for n in graph.inputs] == ["f32[B, 3]", "f32[B1, 3]"]


def test_sizes_that_depend_on_data_have_symbols_of_their_own() -> None:
    class Selects(Linear):
        def forward(self, x: Tensor) -> Tensor:
            chosen = torch.cat([x[x[:, 0] > 0], self.layer(x)])
            return chosen.sum(0) + x

    x, model = torch.randn(4, 8), Selects()
    graph = trace(model, (x,))
    assert "f32[B + u0, 8]" in str(graph)
    torch.testing.assert_close(graph.module()(x), model(x))


def test_a_batch_of_one_is_still_a_batch() -> None:
    graph = trace(ZOO["vgg"].build(), torch.randn(1, 3, 32, 32))
    assert str(graph.inputs[0].results[0]) == "f32[B, 3, 32, 32]"


def test_a_model_for_one_batch_size_is_captured_for_that_size_where_asked() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(3, 8) * torch.arange(3.0)[:, None]

    with pytest.raises(CaptureError, match="Fixed works for one batch size only") as caught:
        trace(Fixed(), (torch.randn(3, 8),))
    assert "return x.view(3, 8)" in caught.value.where
    assert "static_batch=True" in caught.value.hint
    graph = trace(Fixed(), (torch.randn(3, 8),), static_batch=True)
    assert str(graph.inputs[0].results[0]) == "f32[3, 8]"
    with pytest.raises(GraphError, match="axis 0 of x has the size 4 instead of 3"):
        graph.module()(torch.randn(4, 8))


def test_dynamic_shapes_are_the_users_to_choose() -> None:
    dim = torch.export.Dim("length", min=2, max=64)
    graph = trace(nn.Linear(8, 3), (torch.randn(2, 5, 8),), dynamic_shapes=({1: dim},))
    assert str(graph.inputs[0].results[0]) == "f32[2, length, 8]"
    assert list(map(str, graph.signature.guards)) == ["length <= 64"]


def test_nested_arguments_and_results() -> None:
    example = ZOO["nested"]
    graph = trace(example.build(), example.inputs(), example.kwargs())
    assert graph.signature.args == Tree("tuple", (Tree("dict", (0, 1), ("x", "y")),))
    kwargs = graph.signature.kwargs
    assert kwargs.keys == ("pair", "scale", "extra")
    assert kwargs.children == (Tree("tuple", (2, 3)), Constant(2.0), Constant(None))
    result = graph.signature.result
    assert result == Tree(
        "dict", (0, Tree("list", (1, 2)), Constant(2.0), Constant(None)), ("hidden", "parts", "scale", "none")
    )


def test_results_nobody_reads_may_have_any_shape() -> None:
    model = nn.EmbeddingBag(10, 4)
    x = torch.randint(0, 10, (5, 3))
    assert torch.equal(trace(model, (x,)).module()(x), model(x))


def test_named_tuples_are_tuples() -> None:
    class Pair(NamedTuple):
        left: Tensor
        right: Tensor

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Pair:
            return Pair(x + 1, x - 1)

    assert trace(Model(), (torch.randn(3, 2),)).signature.result == Tree("tuple", (0, 1))


def test_factories_name_no_device() -> None:
    graph = trace(ZOO["gpt"].build(), ZOO["gpt"].inputs())
    (arange,) = (n for n in graph.calls if n.op == "aten.arange.default")
    assert dict(arange.arguments) == {"end": 16}


def test_moves_to_a_device_are_dropped() -> None:
    class Moved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros(3, dtype=torch.int64).to(x)
            return x.to(x.device) + y.to("cpu", torch.float32)

    graph = trace(Moved(), (torch.randn(4, 3),))
    assert not any("device" in n.arguments for n in graph.calls)
    assert graph.module().to("meta")(torch.randn(4, 3, device="meta")).device.type == "meta"


def test_unused_tensors_are_kept_and_dead_calls_are_not() -> None:
    class Unused(Linear):
        def forward(self, x: Tensor) -> Tensor:
            x.exp()
            assert x.shape[1] == 8
            return x + 1

    graph = trace(Unused(), (torch.randn(3, 8),))
    assert [n.op for n in graph.calls] == ["aten.add.Tensor"]
    assert set(graph.by_name) == {"layer.weight", "layer.bias", "counter"}


def test_constants_are_not_part_of_the_state() -> None:
    class Constants(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.plain = torch.full((8,), 3.0)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.plain + torch.tensor([1.0] * 8)

    model = Constants()
    graph = trace(model, (torch.randn(3, 8),))
    kinds = {n.parameter.kind for n in graph.parameters if n.parameter and not n.parameter.persistent}
    assert kinds == {"constant"}
    module = graph.module()
    assert module.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(5, 8)
    assert torch.equal(module(x), model(x))


def test_symbolic_traces_are_models_like_others() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = torch.randn(5, 4)
    assert torch.equal(trace(fx.symbolic_trace(model), (x,)).module()(x), model(x))


def test_attention_dropout_is_on_in_training_only() -> None:
    class Attention(Linear):
        def forward(self, x: Tensor) -> Tensor:
            heads = self.layer(x).view(-1, 2, 2, 2)
            return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5 if self.training else 0.0)

    model = Attention()
    x = torch.randn(6, 8)
    module = trace(model, (x,)).module()
    for training in (False, True):
        results = []
        for each in (model, module):
            torch.manual_seed(0)
            results.append(each.train(training)(x))
        assert torch.equal(*results)


@pytest.mark.parametrize("name", sorted(UNCAPTURABLE))
def test_control_flow_on_data_is_refused_with_the_users_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match="its control flow depends on data") as caught:
        trace(UNCAPTURABLE[name].build(), UNCAPTURABLE[name].inputs())
    assert "tests/models/layers.py:" in caught.value.where
    assert caught.value.where.endswith(("if x.sum() > 0:", "for _ in range(int(x.abs().sum().item()) % 3 + 1):"))
    assert capfd.readouterr().err == ""


def test_a_wrong_input_shape_is_told_in_the_models_words() -> None:
    with pytest.raises(CaptureError, match="VGG cannot be captured") as caught:
        trace(ZOO["vgg"].build(), (torch.randn(2, 3, 8, 8),))
    assert "mat1 and mat2 shapes cannot be multiplied (2x128 and 2048x64)" in caught.value.why
    assert "tests/models/vision.py:" in caught.value.where


def test_a_missing_argument_is_told() -> None:
    with pytest.raises(CaptureError, match="missing 1 required positional argument: 'y'"):
        trace(ZOO["siamese"].build(), ZOO["siamese"].inputs()[:1])


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (3, (torch.ones(1),), "a model is an nn.Module, not a int"),
        (nn.Identity(), [torch.ones(1)], "the example arguments are a tuple, not a list"),
    ],
)
def test_wrong_calls_are_refused(model: Any, args: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        trace(model, args)


class WritesInput(Linear):
    def forward(self, x: Tensor) -> Tensor:
        x.view(-1)[0] = 1
        return self.layer(x)  # type: ignore[no-any-return]


class WritesBuffer(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.counter.add_(1)
        return self.layer(x)  # type: ignore[no-any-return]


class AssignsBuffer(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.counter = self.counter + 1
        return self.layer(x)  # type: ignore[no-any-return]


class Branches(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))  # type: ignore[no-any-return]


class AlwaysDropsAttention(Linear):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(-1, 2, 2, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)


class KeysByNumber(Linear):
    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return {1: x + 1}


@pytest.mark.parametrize(
    ("model", "message", "line"),
    [
        (WritesInput, "the model writes into user input x", "x.view(-1)[0] = 1"),
        (WritesBuffer, "the model writes into buffer counter", "self.counter.add_(1)"),
        (AssignsBuffer, "the model writes into .*counter", ""),
        (Branches, "higher-order operator", "return torch.cond("),
        (AlwaysDropsAttention, "attention drops out in eval mode", "return F.scaled_dot"),
        (KeysByNumber, "no text keys", ""),
    ],
)
def test_what_a_graph_cannot_say_is_refused(model: type[nn.Module], message: str, line: str) -> None:
    original = model()
    state = copy.deepcopy(original.state_dict())
    with pytest.raises(CaptureError, match=message) as caught:
        trace(original, (torch.randn(3, 8),))
    assert all(torch.equal(t, state[k]) for k, t in original.state_dict().items())
    if line:
        file, number = caught.value.where.rsplit(" ", 1)[-1].rsplit(":", 1)
        with open(file, encoding="utf-8") as source:
            assert source.readlines()[int(number) - 1].strip().startswith(line)


def test_keywords_that_are_not_declared_are_arguments_of_their_own() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor, **others: Tensor) -> Tensor:
            return x + 2 * others["y"] + 3 * others["z"]

    model, (x, y, z) = Keywords(), torch.randn(3, 4, 5)
    graph = trace(model, (x,), {"z": z, "y": y})
    torch.testing.assert_close(graph.module()(x, y=y, z=z), model(x, y=y, z=z))
    assert "forward" not in model.__dict__


def test_vectorised_maps_are_taken_apart() -> None:
    model = nn.Linear(5, 2)

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = torch.vmap(self.layer)(x)
            return made

    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(trace(Mapped(), x).module()(x[:1]), model(x[:1]))


def test_what_conversion_cannot_do_is_an_error_of_archir(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("frontends.pytorch.to_graph", fail)
    with pytest.raises(CaptureError, match="Linear cannot be captured") as caught:
        trace(nn.Linear(3, 3), torch.randn(2, 3))
    assert caught.value.why == "RuntimeError: odd"
