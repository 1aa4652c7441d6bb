"""Constants become source that gives the same constant, or none at all."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archir.emit.arguments import full_name
from archir.emit.code import Code, literal, plain
from archir.emit.layers import layer_source
from archir.emit.layouts import draft
from archir.emit.python import to_python
from archir.emit.vocabulary import Vocabulary
from archir.errors import EmitError
from archir.ir.arithmetic import ARITHMETIC
from archir.ir.graph import Graph
from archir.ir.layers import find_layers
from archir.ir.node import Node, Value
from archir.ir.parse import parse_graph
from archir.ir.types import ScalarType
from frontends.pytorch import trace
from tests.emit.loading import load_draft

PAYLOAD = "0)\nexec(\"open('pwned', 'w')\""
CONSTANTS = [
    *(0, -1, 2**63, True, False, None, 1.5, -0.0, 1e300, math.inf, -math.inf, math.nan),
    *(1 + 2j, 1 - 2j, 2j, complex(0.0, -2.0), complex(1.0, -0.0), complex(-0.0, 1.0), complex(math.inf, math.nan)),
    *("", "a'", 'a"', "a'\"\\\n\r\0", "\ue000size=3\ue001", PAYLOAD),
    *(torch.float32, torch.uint16, torch.float8_e4m3fn, torch.strided, torch.channels_last, torch.device("cpu")),
]


@pytest.mark.parametrize("value", CONSTANTS, ids=repr)
def test_a_constant_is_the_same_again(value: object) -> None:
    found = eval(literal(value), {"torch": torch})
    assert type(found) is type(value) and repr(found) == repr(value)


class Number(int):
    """A number with a text of its own."""

    def __repr__(self) -> str:
        return PAYLOAD


class Text(str):
    """A text with a source of its own."""

    def __repr__(self) -> str:
        return PAYLOAD


@pytest.mark.parametrize("value", [Number(3), Text("a"), object(), b"a", [1], {"a": 1}, len, torch.zeros(1), (1, len)])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(EmitError, match="cannot be written"):
        literal(value)


MODELS = {
    "aten.batch_norm.default": (nn.BatchNorm1d(3), (4, 3), ("eps", "momentum")),
    "aten.layer_norm.default": (nn.LayerNorm(3), (4, 3), ("eps",)),
    "aten.group_norm.default": (nn.GroupNorm(3, 3), (4, 3, 2), ("eps",)),
    "aten.lstm.input": (nn.LSTM(3, 3), (2, 4, 3), ("dropout",)),
    "aten.conv1d.default": (nn.Conv1d(3, 3, 2), (4, 3, 5), ("padding",)),
}


@pytest.mark.parametrize("op", MODELS)
def test_no_constant_of_a_layer_is_code(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That no call has such a constant is held elsewhere, and set aside here."""
    monkeypatch.setattr("archir.ir.node.check_constants", lambda *_: None)
    model, shape, names = MODELS[op]
    graph = trace(nn.Sequential(model).eval(), torch.randn(shape), static_batch=True)
    for name in names:
        nodes = [replace(n, arguments={**n.arguments, name: PAYLOAD}) if n.op == op else n for n in graph.nodes]
        hostile = Graph(graph.name, nodes, graph.tensors, graph.signature)
        assert find_layers(graph).layers
        for layer in find_layers(hostile).layers.values():
            source = plain(layer_source(layer))
            compile(source, "constructor", "eval")
            assert "exec(" not in source.replace(literal(PAYLOAD), "")


class Warning(nn.Module):
    """Is called as what Python has, whose place its source must not take."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + round(x.shape[0] / 2 + 0.2)


def test_rounding_of_sizes_is_written(tmp_path: Path) -> None:
    file = to_python(trace(Warning(), torch.randn(4, 3)), tmp_path).path
    text = file.read_text()
    assert "round(" in text and "builtins" not in text and "class ModuleWarning(" in text


def test_an_overload_with_a_name_of_the_language_is_written(tmp_path: Path) -> None:
    call = "aten.random.from(self=x, from=2, to=4)"
    graph = parse_graph(f"graph net(x: f32[B, 4]) {{\n  %0 = {call}\n  return %0\n}}")
    assert "torch.ops.aten.random(x, 2, 4)" in to_python(graph, tmp_path).path.read_text()
    made = load_draft(draft(graph, "modules"), tmp_path)(torch.zeros(50, 4))
    assert set(made.unique().tolist()) == {2.0, 3.0}


@pytest.mark.parametrize("op", sorted(ARITHMETIC))
def test_all_arithmetic_of_sizes_is_in_the_vocabulary(op: str) -> None:
    node = Node(3, op, {"a": Value(0)}, (ScalarType("int"),))
    graph = trace(nn.Linear(3, 3), torch.randn(4, 3))
    text = full_name(node, _Operand()).text
    assert text == f"{op.removeprefix('builtins.')}(n)"
    Vocabulary(graph).expression(text, ["n"])


class _Operand:
    def value(self, value: Value, near: Node) -> Code:
        return Code("n")

    def device(self, node: Node) -> str:
        raise NotImplementedError

    def training(self, node: Node) -> str:
        raise NotImplementedError


class Stored(nn.Module):
    """Constants of one element type: all alike, a triangle, a few, and many."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.alike: Tensor
        self.triangle: Tensor
        self.few: Tensor
        self.many: Tensor
        self.kept: Tensor
        few = torch.tensor([1.0, 0.0, 1.0, 1.0]) * (1 - 2j if kind.is_complex else 1)
        for name, values in {
            "alike": few[[0, 0, 0, 0]],
            "triangle": few[torch.ones(4, 4).tril().logical_not().long()],
            "few": few,
            "many": few.repeat(8, 1),
        }.items():
            self.register_buffer(name, values.to(kind), persistent=False)
        self.register_buffer("kept", few.to(kind))

    def forward(self, x: Tensor) -> Tensor:
        for c in (self.alike, self.triangle[1], self.few, self.many[0], self.kept):
            x = x + (c.real - 2 * c.imag if c.is_complex() else c.to(torch.float32))
        return x


KINDS = (torch.bool, torch.int16, torch.uint16, torch.uint32, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_constants_of_every_kind_are_written(kind: torch.dtype, tmp_path: Path) -> None:
    graph = trace(Stored(kind), torch.randn(4, 4), static_batch=True)
    assert to_python(graph, tmp_path).difference == 0.0


def test_constants_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    graph = trace(Stored(torch.complex128), torch.randn(4, 4), static_batch=True)
    with pytest.raises(EmitError, match=r"torch\.complex128 cannot be written"):
        to_python(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []
