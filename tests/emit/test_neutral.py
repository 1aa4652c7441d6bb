"""What other people's tools make source of has no names of the program in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from archir.emit.neutral import free, neutral, rename
from archir.emit.onnx import to_onnx
from archir.ir import node as nodes
from archir.ir.graph import Graph
from archir.ir.node import INPUT, Location, Node
from frontends.pytorch import trace

PAYLOAD = "a\")\rexec(\"open('pwned','w')\")\rdef forward(self, x):\r    z=(\""
ARGUMENT = "x, y=exec(\"open('pwned','w')\")"


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Graph:
    """Return a graph whose every name is an attack; that such names are refused elsewhere is set aside."""
    monkeypatch.setattr(nodes, "check_path", lambda *_: None)
    monkeypatch.setattr(nodes, "check_argument", lambda *_: None)
    monkeypatch.setattr("archir.ir.data.check_title", lambda *_: None)
    graph = trace(nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3)), torch.randn(4, 3))

    def worse(node: Node) -> Node:
        stored = node.parameter and replace(
            node.parameter, names=tuple(f"{PAYLOAD}.{name}" for name in node.parameter.names)
        )
        name = ARGUMENT if node.op == INPUT else node.name
        where = Location(PAYLOAD, PAYLOAD, PAYLOAD, 1) if node.is_call else None
        return replace(node, name=name, parameter=stored, location=where, born=PAYLOAD)

    return Graph(PAYLOAD, [worse(n) for n in graph.nodes], graph.tensors, graph.signature, (PAYLOAD,))


def test_nothing_of_a_program_is_in_the_source_the_exporter_makes(
    hostile: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[str] = []
    python_code = fx.Graph.python_code

    def recorded(*args: object, **kwargs: object) -> object:
        code = python_code(*args, **kwargs)  # type: ignore[arg-type]
        made.append(code.src)
        return code

    monkeypatch.setattr(fx.Graph, "python_code", recorded)
    file = to_onnx(hostile, tmp_path / "net.onnx").path
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert made and not any("exec" in text or "pwned" in text or "\r" in text for text in made)
    model = onnx.load(file)
    assert [i.name for i in model.graph.input] == [ARGUMENT]
    assert f"{PAYLOAD}.0.weight" in {t.name for t in model.graph.initializer}


def test_a_bare_program_says_nothing_of_its_own(hostile: Graph) -> None:
    bare = neutral(hostile)
    assert bare.name == "network" and not bare.history
    assert [n.name for n in bare.inputs] == ["x0"]
    assert list(bare.by_name) == [f"t{i}" for i in range(len(hostile.parameters))]
    assert not any(n.location or n.born or (n.is_call and n.name) for n in bare.nodes)
    x = torch.randn(5, 3)
    (found,) = bare.module().eval()(x)
    assert torch.equal(found, hostile.module().eval()(x))


class Clash(nn.Module):
    """Tensors and inputs with the names of each other, of what the exporter makes, and of what is added for guards."""

    def __init__(self) -> None:
        super().__init__()
        self.x: Tensor
        self.output: Tensor
        self.val_0: Tensor
        self.linear: Tensor
        self.t1: Tensor
        self.t0: Tensor
        self.x0: Tensor
        for name in ("x", "output", "val_0", "linear", "t1", "t0", "x0"):
            self.register_parameter(name, nn.Parameter(torch.randn(3)))
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor, t0: Tensor, archir_check_input: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        y = self.fc(x) * self.x + self.output * self.val_0 * t0 + archir_check_input * self.linear
        return x, y + self.t1 * output, self.t0 * self.x0, self.t1, x


@pytest.mark.parametrize("optimize", [True, False])
def test_names_that_clash_are_kept_apart(optimize: bool, tmp_path: Path) -> None:
    graph = trace(Clash(), tuple(torch.randn(4, 3) for _ in range(4)))
    model = onnx.load(to_onnx(graph, tmp_path / "net.onnx", optimize=optimize).path)
    assert [i.name for i in model.graph.input] == ["x", "t0", "archir_check_input", "output"]
    assert [o.name for o in model.graph.output] == [f"output__{i}" for i in range(5)]
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in ("linear", "t1", "fc.bias"):
        assert np.array_equal(stored[name], graph.tensor(name).detach().numpy())
    assert np.array_equal(stored["x_2"], graph.tensor("x").detach().numpy())


class Echo(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int, Tensor]:
        return y, x, 3, y


@pytest.mark.parametrize("optimize", [True, False])
def test_inputs_that_are_returned_are_copied(optimize: bool, tmp_path: Path) -> None:
    graph = trace(Echo(), (torch.randn(4, 3), torch.randn(4, 2)))
    emitted = to_onnx(graph, tmp_path / "net.onnx", optimize=optimize)
    model = onnx.load(emitted.path)
    assert emitted.difference == 0
    assert [list(n.input) + list(n.output) for n in model.graph.node] == [
        ["y", "output_0"],
        ["x", "output_1"],
        ["y", "output_2"],
    ]


def test_a_value_gives_way_to_a_name_inside_and_outside() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])], "g", [], [helper.make_tensor_value_info("c", 1, [1])]
    )
    value = helper.make_tensor_value_info
    outer = helper.make_graph(
        [
            helper.make_node("Not", ["p"], ["b"]),
            helper.make_node("If", ["b"], ["d"], then_branch=inner, else_branch=inner),
        ],
        "g",
        [value("a", TensorProto.FLOAT, [1]), value("p", TensorProto.BOOL, [1])],
        [value("d", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(outer)
    rename(model, {"a": "b", "d": "a", "missing": "p"})
    branch = model.graph.node[1].attribute[0].g
    assert [list(n.input) + list(n.output) for n in (*model.graph.node, *branch.node)] == [
        ["p", "b_2"],
        ["b_2", "a"],
        ["b", "b_2", "c"],
    ]
    assert [i.name for i in model.graph.input] == ["b", "p"] and model.graph.output[0].name == "a"


def test_free_names() -> None:
    assert [free("a", taken) for taken in ([], ["a"], ["a", "a_2"])] == ["a", "a_2", "a_3"]
