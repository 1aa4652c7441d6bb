"""Nodes of ONNX files: names, folded shapes, control flow, functions, and everything that cannot be read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from archir.axes.infer import infer_widths
from archir.errors import CaptureError
from archir.ir.graph import Graph
from frontends.onnx.read import from_onnx
from tests.models.onnx_graphs import BOOL, FLOAT, INT64, weights, write

node = helper.make_node


def scalar(number: float, kind: type = np.int64) -> Any:
    return np.array(number, dtype=kind)


def assert_right(file: Path, *inputs: torch.Tensor, graph: Graph | None = None) -> Graph:
    """Compare what is read with what onnxruntime makes of the file."""
    found = from_onnx(file) if graph is None else graph
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        made = found.module().eval()(*inputs)
    every = [made] if isinstance(made, torch.Tensor) else list(made)
    for one, other in zip(every, session.run(None, given), strict=True):
        torch.testing.assert_close(one, torch.from_numpy(np.array(other)), rtol=1e-5, atol=1e-5)
    return found


def perceptron(file: Path, **more: Any) -> Path:
    nodes = [
        node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "onnx::MatMul_12"], ["m"], name="/fc2/MatMul"),
        node("Add", ["fc2.bias", "m"], ["y"]),
    ]
    stored = {"fc1.weight": weights(6, 4), "fc1.bias": weights(6), "fc2.bias": weights(3)}
    stored["onnx::MatMul_12"] = weights(6, 3)
    return write(file, nodes, stored=stored, **more)


def test_weights_keep_their_names_and_train(tmp_path: Path) -> None:
    graph = assert_right(perceptron(tmp_path / "a.onnx"), torch.randn(5, 4))
    assert {n for p in graph.parameters for n in p.names} == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert all(p.is_trainable for p in graph.parameters)
    assert [n.op for n in graph.calls] == ["aten.linear.default", "aten.relu.default", "aten.linear.default"]
    assert [w.size for w in infer_widths(graph)] == [6]


def test_the_first_axis_with_a_name_is_the_batch(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "z"], ["s"]), node("ReduceMean", ["s"], ["y"], axes=[1])]
    file = write(tmp_path / "a.onnx", nodes, inputs={"x": ("rows", "long", 4), "z": ("rows", "long", 4)}, opset=13)
    graph = from_onnx(file)
    assert [str(n.results[0]) for n in graph.inputs] == ["f32[B, long, 4]"] * 2
    fixed = from_onnx(file, sizes={"long": 7})
    assert [str(n.results[0]) for n in fixed.inputs] == ["f32[B, 7, 4]"] * 2


def test_inputs_have_names_that_arguments_may_have(tmp_path: Path) -> None:
    nodes = [node("Sum", ["input.1", "class", "input_1", "self"], ["y"])]
    shapes = dict.fromkeys(["input.1", "class", "input_1", "self"], ("N", 4))
    graph = from_onnx(write(tmp_path / "a.onnx", nodes, inputs=shapes))
    assert [n.name for n in graph.inputs] == ["input_1", "class_", "input_1_", "self_"]


@pytest.mark.parametrize("name", ["a", "conv1/kernel:0", "0", "weight", "x y", "a.b.c", "layer.training", "a" * 300])
def test_any_name_becomes_one_that_a_tensor_may_have(name: str, tmp_path: Path) -> None:
    graph = from_onnx(write(tmp_path / "a.onnx", [node("MatMul", ["x", name], ["y"])], stored={name: weights(4, 3)}))
    (parameter,) = graph.parameters
    kept = name in ("a", "conv1/kernel:0", "weight", "x y", "a.b.c")
    assert (parameter.names == (name,)) is kept
    assert graph.parameter_count == 12


def test_names_that_stand_in_the_way_of_others_are_changed(tmp_path: Path) -> None:
    nodes = [node("Mul", ["x", "a"], ["h"]), node("Add", ["h", "a.b"], ["y"])]
    graph = from_onnx(write(tmp_path / "a.onnx", nodes, stored={"a": weights(4), "a.b": weights(4)}))
    assert [p.names for p in graph.parameters] == [("a",), ("a_1.b",)]


def test_shape_arithmetic_is_folded(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["rows"]),
        node("Gather", ["s", "two"], ["features"]),
        node("Div", ["features", "two"], ["half"]),
        node("Cast", ["half"], ["f"], to=FLOAT),
        node("Mul", ["f", "point5"], ["g"]),
        node("Floor", ["g"], ["floored"]),
        node("Cast", ["floored"], ["quarter"], to=INT64),
        node("Unsqueeze", ["rows", "axis"], ["r"]),
        node("Unsqueeze", ["quarter", "axis"], ["q"]),
        node("Concat", ["r", "minus", "q"], ["shape"], axis=0),
        node("Equal", ["shape", "minus"], ["free"]),
        node("Where", ["free", "minus", "shape"], ["same"]),
        node("Reshape", ["x", "same"], ["h"]),
        node("ConstantOfShape", ["shape_of_zeros"], ["zeros"]),
        node("Concat", ["r", "axis_1", "q"], ["wide"], axis=0),
        node("Expand", ["point5", "wide"], ["halves"]),
        node("Concat", ["halves", "h"], ["joined"], axis=1),
        node("Add", ["joined", "zeros"], ["y"]),
    ]
    stored = {
        "zero": scalar(0),
        "two": scalar(2),
        "point5": scalar(0.5, np.float32),
        "axis": np.array([0]),
        "axis_1": np.array([1]),
        "minus": np.array([-1]),
        "shape_of_zeros": np.array([1, 1, 1]),
    }
    file = write(tmp_path / "a.onnx", nodes, inputs={"x": ("N", 3, 8)}, stored=stored)
    graph = assert_right(file, torch.randn(5, 3, 8))
    assert str(graph.type_of(graph.output.values[0])) == "f32[B, 13, 2]"
    kinds = {n.op.partition(".")[2].partition(".")[0] for n in graph.calls}
    assert kinds <= {"sym_size", "reshape", "expand", "cat", "add"}


def test_sizes_that_are_data_are_computed(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["f"], to=FLOAT),
        node("ReduceSum", ["f"], ["total"], keepdims=0),
        node("Div", ["x", "total"], ["y"]),
    ]
    assert_right(write(tmp_path / "a.onnx", nodes), torch.randn(3, 4))


def test_the_branch_that_is_taken_is_read(tmp_path: Path) -> None:
    made = helper.make_tensor_value_info
    then = helper.make_graph([node("Relu", ["x"], ["t"])], "then", [], [made("t", FLOAT, None)])
    other = helper.make_graph([node("Unheard", ["x"], ["e"], domain="far")], "else", [], [made("e", FLOAT, None)])
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Size", ["s"], ["rank"]),
        node("Equal", ["rank", "two"], ["flat"]),
        node("If", ["flat"], ["y"], then_branch=then, else_branch=other),
    ]
    graph = from_onnx(write(tmp_path / "a.onnx", nodes, stored={"two": scalar(2)}, domains={"far": 1}))
    assert [n.op for n in graph.calls] == ["aten.relu.default"]


def loop(rounds: str, carried: str = "go") -> Any:
    made = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            node("Add", ["h", "w"], ["next"]),
            node("Identity", [carried], ["on"]),
            node("Mul", ["next", "next"], ["row"]),
        ],
        "body",
        [made("i", INT64, []), made("go", BOOL, []), made("h", FLOAT, None)],
        [made("on", BOOL, []), made("next", FLOAT, None), made("row", FLOAT, None)],
    )
    return node("Loop", [rounds, "", "x"], ["y", "rows"], name="again", body=body)


def test_loops_of_known_length_are_unrolled(tmp_path: Path) -> None:
    stored = {"three": scalar(3), "w": weights(4)}
    file = write(tmp_path / "a.onnx", [loop("three")], outputs=["y", "rows"], stored=stored)
    graph = assert_right(file, torch.randn(2, 4))
    assert sum(n.op == "aten.add.Tensor" for n in graph.calls) == 3
    assert graph.parameter_count == 4


def test_loops_and_branches_that_depend_on_data_are_refused(tmp_path: Path) -> None:
    stored = {"w": weights(4)}
    file = write(
        tmp_path / "a.onnx", [loop("n")], inputs={"x": ("N", 4), "n": ()}, outputs=["y", "rows"], stored=stored
    )
    with pytest.raises(CaptureError, match=r"node again \(Loop\): its trip count has to be constant"):
        from_onnx(file)
    long = {**stored, "many": scalar(10**12)}
    file = write(tmp_path / "a.onnx", [loop("many")], outputs=["y", "rows"], stored=long)
    with pytest.raises(CaptureError, match="more than 1,024 rounds"):
        from_onnx(file)


def test_functions_are_inlined(tmp_path: Path) -> None:
    inner = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    outer = helper.make_function(
        "mine",
        "Leaky",
        ["a"],
        ["b"],
        [node("Twice", ["a"], ["t"], domain="mine"), helper.make_node("LeakyRelu", ["t"], ["b"], alpha=0.3)],
        [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)],
    )
    nodes = [node("Leaky", ["x"], ["y"], domain="mine")]
    file = write(tmp_path / "a.onnx", nodes, domains={"mine": 1}, functions=[inner, outer])
    graph = assert_right(file, torch.randn(2, 4))
    assert [n.op for n in graph.calls] == ["aten.add.Tensor", "aten.leaky_relu.default"]


def test_everything_that_cannot_be_read_is_named_at_once(tmp_path: Path) -> None:
    nodes = [
        node("NonZero", ["x"], ["places"], name="where"),
        node("Relu", ["x"], ["r"], name="fine"),
        node("Fancy", ["r"], ["f"], name="own", domain="com.example"),
        node("Relu", ["f"], ["g"], name="behind"),
        node("Squeeze", ["r", "one"], ["q"], name="narrow"),
        node("Reshape", ["r", "n"], ["y"], name="shaped"),
    ]
    inputs = {"x": ("N", 4), "n": (2,)}
    file = write(tmp_path / "a.onnx", nodes, inputs=inputs, stored={"one": np.array([1])}, domains={"com.example": 1})
    with pytest.raises(CaptureError) as caught:
        from_onnx(file)
    told = str(caught.value)
    assert "4 parts" in told
    for part in (
        "node where (NonZero): there is no operator NonZero",
        "node own (Fancy): there is no operator Fancy in the domain com.example",
        "node narrow (Squeeze): it removes axes of [B, 4] that are not 1",
        "node shaped (Reshape): its shape has to be constant",
    ):
        assert part in told
    assert "behind" not in told and "fine" not in told


def test_sequences_are_taken_apart(tmp_path: Path) -> None:
    nodes = [
        node("SplitToSequence", ["x", "two"], ["s"], axis=1),
        node("SequenceAt", ["s", "one"], ["b"]),
        node("SequenceInsert", ["s", "b"], ["t"]),
        node("ConcatFromSequence", ["t"], ["y"], axis=1),
    ]
    assert_right(write(tmp_path / "a.onnx", nodes, stored={"two": scalar(2), "one": scalar(1)}), torch.randn(2, 4))


def test_numbers_that_scale_do_not_train(tmp_path: Path) -> None:
    constant = node("Constant", [], ["two"], value=helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]))
    nodes = [constant, node("Mul", ["x", "two"], ["h"]), node("Mul", ["h", "val_7"], ["y"])]
    file = write(tmp_path / "a.onnx", nodes, stored={"val_7": weights(4)})
    graph = assert_right(file, torch.randn(2, 4))
    assert graph.parameter_count == 0
    assert [p.parameter.kind for p in graph.parameters if p.parameter] == ["constant"]


def test_dropout_follows_the_mode(tmp_path: Path) -> None:
    nodes = [node("Dropout", ["x", "ratio"], ["y"])]
    graph = from_onnx(write(tmp_path / "a.onnx", nodes, stored={"ratio": scalar(0.5, np.float32)}))
    x = torch.ones(64, 4)
    module = graph.module()
    assert bool((module.train()(x) == 0).any())
    torch.testing.assert_close(module.eval()(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_have_the_weights_of_torch(kind: str, tmp_path: Path) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    stored = {"w": weights(2, gates * 5, 4), "r": weights(2, gates * 5, 5, seed=1), "b": weights(2, gates * 10, seed=2)}
    more: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    recurrent = node(
        kind, ["x", "w", "r", "b"], ["all", "y"], hidden_size=5, direction="bidirectional", name="net", **more
    )
    file = write(tmp_path / "a.onnx", [recurrent], inputs={"x": (7, "N", 4)}, outputs=["all", "y"], stored=stored)
    graph = assert_right(file, torch.randn(7, 3, 4))
    assert {n for p in graph.parameters for n in p.names if p.is_trainable} == {
        f"net.{name}_l0{end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for end in ("", "_reverse")
    }
