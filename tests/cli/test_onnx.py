"""Commands take ONNX files wherever they take a network."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from archir.ir.load import load
from tests.cli.run import CONFIG, archir, refused
from tests.models.onnx_graphs import weights, write


@pytest.fixture
def net(tmp_path: Path) -> Path:
    node = helper.make_node
    nodes = [
        node("Flatten", ["x"], ["f"]),
        node("Gemm", ["f", "first.weight", "first.bias"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "last.weight", "last.bias"], ["y"], transB=1),
    ]
    stored = {"first.weight": weights(6, 64), "first.bias": weights(6), "last.weight": weights(10, 6)}
    shape = ("N", 1, "high", 8)
    return write(tmp_path / "net.onnx", nodes, inputs={"x": shape}, stored={**stored, "last.bias": weights(10)})


@pytest.fixture
def square(net: Path) -> Path:
    file = net.parent / "square.onnx"
    model = onnx.load(net)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    file.write_bytes(model.SerializeToString())
    return file


def test_trace_reads_a_file(net: Path) -> None:
    output = net.parent / "net.archir"
    done = archir("trace", net, "--size", "high=8", "-o", output)
    assert done.code == 0
    assert "460 parameters" in done.out and "1 free widths" in done.out
    assert load(output).parameter_count == 64 * 6 + 6 + 60 + 10


def test_options_of_the_other_kind_are_refused(net: Path) -> None:
    output = net.parent / "net.archir"
    for more in (("--input", "2,8"), ("--inputs", "m.py:f"), ("--arguments", '{"a": 1}'), ("--static-batch",)):
        done = archir("trace", net, *more, "-o", output)
        assert done.code == 2 and "an ONNX file says what its inputs are" in done.err
    done = archir("trace", "m.py:f", "--size", "a=1", "-o", output)
    assert done.code == 2 and "only axes of ONNX files have names" in done.err
    for wrong in ("high", "high=", "high=x", "=3", "high=-1"):
        assert "this is not a size" in refused("trace", net, "--size", wrong, "-o", output)
    assert not output.exists()


def test_commands_take_the_file_itself(square: Path, tmp_path: Path) -> None:
    assert "aten.linear" in archir("show", square).out
    assert "1 free widths" in archir("widths", square).out
    assert "is sound" in archir("verify", square).out
    assert "prune" in archir("sites", square, "--pass", "prune").out
    assert archir("apply", square, "prune{width=w0, units=[0]}", "-o", tmp_path / "a.archir").code == 0
    assert "-75" in archir("diff", square, tmp_path / "a.archir").out
    assert archir("export", square, "--python", tmp_path, "--onnx", tmp_path / "again.onnx").code == 0
    assert "nn.Linear(64, 6)" in (tmp_path / "net.py").read_text()
    assert "the same operators" in archir("diff", square, tmp_path / "again.onnx").out


def test_a_run_begins_with_a_file(square: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    quick = CONFIG.replace("steps = 60", "steps = 8").replace("evaluate_every = 30", "evaluate_every = 8")
    config.write_text(quick.replace('factory = "models.py:digits"', 'graph = "square.onnx"'))
    done = archir("grow", config)
    assert done.code == 0, done.err
    assert "nn.Linear(64, " in (tmp_path / "run" / "net.py").read_text()


def test_files_that_cannot_be_read_say_why(net: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(net.read_bytes()[:100])
    assert "is damaged or no ONNX file" in refused("show", tmp_path / "bad.onnx")
    file = write(tmp_path / "odd.onnx", [helper.make_node("NonZero", ["x"], ["y"], name="where")])
    assert "node where (NonZero)" in refused("widths", file)
