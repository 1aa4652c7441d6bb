"""What an ONNX file checks of its sizes guards the graph; what it only says of them, or calls so, changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from archir.emit.onnx import to_onnx
from archir.errors import CaptureError, GraphError
from archir.ir.graph import Graph
from frontends.onnx.read import from_onnx
from frontends.pytorch import trace
from tests.models.any_size import Windows


class Pairs(nn.Module):
    """Sums over two steps at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2 or x.shape[1] > 40:
            raise ValueError("the length is even, up to 40")
        found: Tensor = self.inner(x).view(x.shape[0], x.shape[1] // 2, 2, 3).sum(2)
        return found


X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


def header(graph: Graph) -> str:
    return str(graph).splitlines()[0].removesuffix(" {").partition("(")[2]


def run(file: Path, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options)
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def agree(graph: Graph, file: Path, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(graph.module().eval()(x), run(file, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("static_batch", "sizes", "wanted"),
    [
        (False, {}, "x: f32[B, T, 4]) where T <= 40, T % 2 == 0"),
        (True, {}, "x: f32[2, T, 4]) where T <= 40, T % 2 == 0"),
        (False, {"B": 2}, "x: f32[2, T, 4]) where T <= 40, T % 2 == 0"),
        (False, {"T": 6}, "x: f32[B, 6, 4])"),
    ],
)
def test_what_a_file_checks_is_read_back(
    static_batch: bool, sizes: dict[str, int], wanted: str, tmp_path: Path
) -> None:
    graph = trace(Pairs().eval(), X, dynamic={"x": {1: "T"}}, static_batch=static_batch)
    file = to_onnx(graph, tmp_path / "net.onnx").path
    again = from_onnx(file, sizes=sizes)
    assert header(again) == wanted
    agree(again, file, X)
    with pytest.raises(GraphError, match="was called with inputs it was not captured for"):
        again.module().eval()(X[:, :5])
    if not sizes and not static_batch:
        with pytest.raises(CaptureError, match=r"is not for these sizes: requires x.size\(1\) % 2 == 0"):
            from_onnx(file, sizes={"T": 5})


def test_it_is_read_from_the_file_where_nothing_is_noted(tmp_path: Path) -> None:
    x = torch.randn(2, 8, 12, 3)
    graph = trace(Windows().eval(), x, dynamic={"x": {1: "H", 2: "W"}})
    file = to_onnx(graph, tmp_path / "net.onnx").path
    model = onnx.load(str(file))
    del model.metadata_props[:]
    onnx.save(model, str(file))
    again = from_onnx(file)
    assert len(again.signature.guards) == len(graph.signature.guards) == 4
    for sizes in (
        {"B": 1, "H": 4, "W": 4},
        {"B": 2, "H": 8, "W": 12},
        {"B": 1, "H": 5, "W": 8},
        {"B": 1, "H": 8, "W": 4},
    ):
        found, wanted = ([g.holds(sizes) for g in net.signature.guards] for net in (again, graph))
        assert found == wanted
    agree(again, file, x)


def written(path: Path, nodes: Sequence[onnx.NodeProto], numbers: dict[str, list[int]], guards: Sequence[str]) -> Path:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 4])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    graph = helper.make_graph(list(nodes), "net", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key="archir.guards", value=json.dumps(guards))
    onnx.save(model, str(path))
    return path


def test_names_and_notes_change_nothing_that_a_file_computes(tmp_path: Path) -> None:
    """Nodes that are called as checks are, and are none, and guards that nothing checks."""
    relu = helper.make_node("Relu", ["archir_check_input"], ["y"])
    for guards in (["B >= 1"], ["B >= 7"], ["1 == 2"], ["B >= 1", "Q >= 1"], ["T // (T - 6) == 0"]):
        for made in (
            helper.make_node("Reshape", ["x", "shape"], ["archir_check_input"]),
            helper.make_node("Neg", ["x"], ["archir_check_input"]),
            helper.make_node("Transpose", ["x"], ["archir_check_input"], perm=[1, 0, 2]),
        ):
            numbers = {"shape": [0, -1, 2]} if made.op_type == "Reshape" else {}
            file = written(tmp_path / "net.onnx", [made, relu], numbers, guards)
            again = from_onnx(file)
            assert header(again) == "x: f32[B, T, 4])"
            agree(again, file, X)


@pytest.mark.parametrize(("table", "axis", "checks"), [([0], 1, True), ([0, 0], 1, False), ([1], 0, False)])
def test_only_a_zero_that_is_looked_up_is_a_check(table: list[int], axis: int, checks: bool, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["size"]),
        helper.make_node("GreaterOrEqual", ["size", "four"], ["holds"]),
        helper.make_node("Not", ["holds"], ["fails"]),
        helper.make_node("Cast", ["fails"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["found"]),
        helper.make_node("Add", ["shape", "found"], ["same"]),
        helper.make_node("Reshape", ["x", "same"], ["given"]),
        helper.make_node("Relu", ["given"], ["y"]),
    ]
    numbers = {"axis": [axis], "four": [4], "table": table}
    file = written(tmp_path / "net.onnx", nodes, numbers, [])
    if checks:
        again = from_onnx(file)
        assert header(again) == "x: f32[B, T, 4]) where T >= 4"
        agree(again, file, X)
        with pytest.raises(GraphError, match="T >= 4 does not hold"):
            again.module()(X[:, :3])
    else:
        # What is added may be seen: it is read as it stands, or not at all.
        with pytest.raises(CaptureError, match="cannot be read"):
            from_onnx(file)


def test_a_size_that_is_added_to_itself_over_and_over_is_not_spelled_out(tmp_path: Path) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "zero"], ["size0"])]
    nodes += [helper.make_node("Add", [f"size{i}", f"size{i}"], [f"size{i + 1}"]) for i in range(40)]
    nodes += [
        helper.make_node("GreaterOrEqual", ["size40", "one"], ["holds"]),
        helper.make_node("Not", ["holds"], ["fails"]),
        helper.make_node("Cast", ["fails"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["zero", "index"], ["found"]),
        helper.make_node("Add", ["shape", "found"], ["same"]),
        helper.make_node("Reshape", ["x", "same"], ["given"]),
        helper.make_node("Relu", ["given"], ["y"]),
    ]
    file = written(tmp_path / "net.onnx", nodes, {"zero": [0], "one": [1]}, [])
    agree(from_onnx(file), file, X)
