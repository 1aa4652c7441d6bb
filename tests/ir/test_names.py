"""Names in a graph never become code, and those no module can have are refused."""

from __future__ import annotations

import keyword
from pathlib import Path

import pytest
import torch
from torch import nn

from archir.errors import CaptureError, GraphError, ParseError
from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.load import load
from archir.ir.node import INPUT, Constant, Location, Node, Parameter, Signature, Tree, Value
from archir.ir.parse import parse_graph
from frontends.pytorch import trace

PLAIN = ["lambda", "a b", "{0}", "a]exec(1)[", "a;exec(1)#", "$(exec)", "x=1", "%s", "\u00e9", "\u00b2"]
"""Parts of paths that need care where they become source."""

HOSTILE = [
    'a") and exec(1) or ("',
    "a') and exec(1) or ('",
    'a")\rexec(1)\rdef forward(self, x):\r    z=("',
    "a\nexec(1)\n",
    *(f"a{end}b" for end in "\v\f\x1c\x85\u2028\u2029\0\x1b\u200b\ufeff\ue000\ud800"),
    "a`exec(1)`",
    "a\\",
    '"""',
    "\ufb01",
    "__debug__",
]
"""Parts that could end a string or a line, or that Python reads as something else."""


def _net(name: str) -> Graph:
    """A graph whose tensors and modules are called that, with a dropout and a batch normalisation in training."""
    b = Builder("net")
    x = b.input("x", "f32[B, 4]")
    weight, bias = b.parameter(f"{name}.{name}", "f32[4, 4]"), b.parameter(f"{name}.bias", "f32[4]", "buffer")
    b.location = Location(f"inner.{name}", "torch.nn.modules.dropout.Dropout", "models.py", 3)
    hidden = b.call("aten.dropout.default", b.call("aten.linear.default", x, weight, bias), 0.5, False)
    mean, variance = b.parameter(f"{name}.mean", "f32[4]", "buffer"), b.parameter(f"{name}.var", "f32[4]", "buffer")
    b.location = Location(name, "torch.nn.modules.batchnorm.BatchNorm1d", "models.py", 4)
    return b.graph(b.call("aten.batch_norm.default", hidden, None, None, mean, variance, False, 0.1, 1e-5, True))


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_of_a_tensor_or_module_is_only_a_name(name: str, tmp_path: Path) -> None:
    graph = _net(name)
    graph.save(tmp_path / "net.archir")
    module = load(tmp_path / "net.archir").module()
    assert set(module.state_dict()) == {f"{name}.{field}" for field in (name, "bias", "mean", "var")}
    x = torch.randn(5, 4)
    plain = _net("plain")
    renamed = {node.parameter.names[0]: graph.tensors[node.id] for node in graph.parameters if node.parameter}
    same = plain.with_tensors(dict(zip(plain.by_name, renamed.values(), strict=True))).module()
    for training in (False, True):
        torch.manual_seed(0)
        expected = same.train(training)(x)
        torch.manual_seed(0)
        assert torch.equal(module.train(training)(x), expected)
    if not keyword.iskeyword(name):  # which PyTorch cannot write
        again = torch.export.export(module.eval(), (x,)).module()
        assert set(again.state_dict()) == set(module.state_dict())
        assert torch.equal(again(x), module(x))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_could_end_a_string_or_a_line_is_refused(name: str) -> None:
    for path in (name, f"a.{name}", f"{name}.a"):
        with pytest.raises(GraphError, match="cannot be the name of a stored tensor"):
            Parameter((path,))
        with pytest.raises(GraphError, match="cannot be the path of a module"):
            Location(path)


@pytest.mark.parametrize("name", ["a" * 201, ".".join("a" * 65)])
def test_names_and_paths_have_a_longest(name: str) -> None:
    Parameter((name[:-2],))
    with pytest.raises(GraphError, match=r"has more than|parts, more than"):
        Parameter((name,))


@pytest.mark.parametrize("name", HOSTILE[:-2])
def test_texts_a_module_is_called_with_are_plain(name: str) -> None:
    # Export compares a constant argument as `L['kind'] == '...'`.
    for args in (Tree("dict", (0,), (name,)), Tree("list", (Tree("dict", (0,), (name,)),)), Constant(name)):
        with pytest.raises(GraphError, match="cannot be part of what a module is called with"):
            Signature(Tree("tuple", (args,)), Tree("dict"), 0)
        with pytest.raises(GraphError, match="cannot be part of what a module is called with"):
            Signature(Tree("tuple"), Tree("dict", (args,), ("x",)), 0)
    with pytest.raises(GraphError, match="cannot be the name of a graph"):
        Graph(name, [], {}, Signature(Tree("tuple"), Tree("dict"), Tree("tuple")))


def test_a_text_with_a_constant_that_is_not_plain_says_where() -> None:
    with pytest.raises(ParseError, match="cannot be part of what") as caught:
        parse_graph("graph net(x: f32[B]) {\n  call (x, \"' or exec(1) or '\")\n  return x\n}")
    assert caught.value.where.startswith("line 2")


@pytest.mark.parametrize(
    "name",
    [
        "x=exec('1')",
        "a b",
        "",
        "1a",
        "a.b",
        "lambda",
        "x: int",
        "*x",
        "x, y",
        "²",
        "x\n",
        "None",
        "__debug__",
        "\ufb01",
        "a" * 201,
    ],
)
def test_an_argument_is_called_like_a_python_argument(name: str) -> None:
    with pytest.raises(GraphError, match="cannot be the name of an argument"):
        Node(0, INPUT, name=name)
    with pytest.raises(GraphError, match="cannot be the name of an argument"):
        Signature(Tree("tuple"), Tree("dict", (0,), (name,)), 0)


@pytest.mark.parametrize("place", ["net(`x=exec('1')`: f32[B])", "net(x: f32[B]) {\n  call (`x=exec('1')`=x)"])
def test_a_text_with_such_an_argument_is_refused_where_it_stands(place: str) -> None:
    with pytest.raises(ParseError, match="cannot be the name of an argument") as caught:
        parse_graph(f"graph {place}{' {' if '{' not in place else ''}\n  return x\n}}")
    assert "`x=exec('1')`" in caught.value.where


def test_a_module_is_not_called_with_self_by_keyword() -> None:
    with pytest.raises(GraphError, match="'self' cannot be the name of an argument"):
        Signature(Tree("tuple"), Tree("dict", (0,), ("self",)), 0)


TAKEN = ["", "a..b", ".a", "a.", "training", "a.forward", "state_dict.a", "_modules", "\ud800"]


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_no_module_can_have_is_refused(name: str) -> None:
    with pytest.raises(GraphError, match="cannot be the name of a stored tensor"):
        Parameter((name,))
    if name:
        with pytest.raises(GraphError, match="cannot be the path of a module"):
            Location(name)


def test_all_that_is_wrong_with_a_name_is_said_at_once() -> None:
    with pytest.raises(GraphError) as caught:
        Parameter(("a..training.type",))
    assert all(what in str(caught.value) for what in ("empty part", "'training'", "'type'"))


def test_a_tensor_beside_a_module_of_the_same_name_is_refused() -> None:
    text = "graph net(x: f32[B, 4]) {\n  %0 = aten.linear(x, @a[4, 4], @a.b[4])\n  return %0\n}"
    with pytest.raises(ParseError) as caught:
        parse_graph(text)
    assert "'a' is a tensor and a module" in caught.value.where


def test_there_are_three_kinds_of_stored_tensors_and_of_nests() -> None:
    with pytest.raises(GraphError, match="a stored tensor is one of parameter, buffer, constant"):
        Parameter(("a",), "module")
    with pytest.raises(GraphError, match="nest as tuple, list or dict"):
        Tree("set", (0,))
    with pytest.raises(GraphError, match="has the keys"):
        Tree("dict", (0, 1), ("a", "a"))


def test_a_graph_has_a_name_a_class_can_have() -> None:
    with pytest.raises(GraphError, match="cannot be the name of a graph"):
        Graph("a\0b", [], {}, Signature(Tree("tuple"), Tree("dict"), Tree("tuple")))
    with pytest.raises(ParseError, match="cannot be the name of a graph"):
        parse_graph("graph `a\\u0000b`(x: f32[B]) {\n  return x\n}")


def test_arguments_an_operator_does_not_have_are_refused() -> None:
    graph = parse_graph("graph net(x: f32[B]) {\n  %0 = aten.relu(x)\n  return %0\n}")
    value = Value(graph.inputs[0].id)
    relu = next(graph.calls)
    with pytest.raises(GraphError, match="has no argument 'evil'"):
        Node(relu.id, relu.op, {"self": value, "evil": 3}, relu.results)


NAMES = ["self", "torch", "fixed", "operator", "getattr", "linear", "batch_norm", "mul", "forward", "relu_1", "float"]


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_may_be_called_what_generated_source_uses(name: str) -> None:
    b = Builder()
    x, w = b.input(name, "f32[B, 4]"), b.parameter("w.lambda", "f32[4, 4]")
    b.location = Location("drop", "torch.nn.modules.dropout.Dropout")
    batch = b.call("aten.sym_size.int", x, 0)
    hidden = b.call("aten.relu.default", b.call("aten.relu.default", b.call("aten.linear.default", x, w)))
    hidden = b.call("aten.view.default", hidden, (b.call("operator.mul", batch, 2), 2))
    graph = b.graph(b.call("aten.add.Scalar", b.call("aten.dropout.default", hidden, 0.5, False), float("inf")))
    assert torch.equal(graph.module()(torch.randn(3, 4)), torch.full((6, 2), torch.inf))


class Keys(nn.Module):
    def __init__(self, *keys: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({key: nn.Linear(4, 4) for key in keys})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x).relu()
        return x


def test_keys_of_a_module_dict_may_be_any_plain_text(tmp_path: Path) -> None:
    model = Keys("with space", "0", "x=1", "a-b", "{0}", "\u00e9")
    graph = trace(model, (torch.randn(2, 4),))
    graph.save(tmp_path / "net.archir")
    module = load(tmp_path / "net.archir").module()
    assert list(module.state_dict()) == list(model.state_dict())
    x = torch.randn(5, 4)
    torch.testing.assert_close(module(x), model(x))


@pytest.mark.parametrize("key", ['a"b', "a'b", "new\nline"])
def test_other_keys_of_a_module_dict_are_refused_by_name(key: str) -> None:
    with pytest.raises(CaptureError, match="cannot be the name of a stored tensor") as caught:
        trace(Keys(key), (torch.randn(2, 4),))
    assert repr(f"layers.{key}.weight") in str(caught.value) and caught.value.hint == "rename it in the model"


@pytest.mark.parametrize(("old", "new"), [("@w[", "@training["), ("(x:", "(`x y`:")])
def test_a_text_with_such_a_name_says_where(old: str, new: str) -> None:
    text = "graph net(x: f32[B, 4]) {\n  %0 = aten.linear(x, @w[4, 4])\n  return %0\n}"
    with pytest.raises(ParseError, match="cannot be the name") as caught:
        parse_graph(text.replace(old, new))
    assert new[1:-1] in caught.value.where
