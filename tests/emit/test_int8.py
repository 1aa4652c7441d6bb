"""Files with 8-bit weights are near the network, and say how near; what cannot be quantised leaves nothing behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from archir.emit.onnx import to_onnx
from archir.errors import EmitError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs, symbol_sizes
from frontends.pytorch import trace
from tests.models.captured import graph_of


def run(file: Path, *inputs: torch.Tensor) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # what is rounded to 8 bits tells sums in another order apart
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    named = zip(session.get_inputs(), inputs, strict=True)
    return list(session.run(None, {entry.name: tensor.numpy() for entry, tensor in named}))


def floats(file: Path) -> int:
    """Return how many numbers of a file are stored in floating point."""
    stored = onnx.load(file).graph.initializer
    return sum(torch.Size(t.dims).numel() for t in stored if t.data_type == onnx.TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("weight_standardisation", {"Conv": 2, "MatMul": 1}),
        ("lstm", {"Gather": 1, "LSTM": 2, "MatMul": 1}),
    ],
)
def test_what_is_reported_is_what_the_files_do(
    name: str, kinds: dict[str, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = graph_of(name)
    plain = to_onnx(graph, tmp_path / "plain.onnx")
    capfd.readouterr()
    handlers = list(logging.getLogger().handlers)
    emitted = to_onnx(graph, tmp_path / "net.onnx", quantise="int8")
    assert capfd.readouterr() == ("", "") and logging.getLogger().handlers == handlers
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "plain.onnx"]
    found = emitted.quantised
    assert found is not None and found.operators == kinds
    most, relative, same, rows = 0.0, 0.0, 0, 0
    for batch in (2, 3):
        args, _ = random_inputs(graph, sizes=symbol_sizes(graph, batch))
        (wanted,), (other,) = run(plain.path, *args), run(emitted.path, *args)
        most = max(most, np.abs(wanted - other).max())
        relative = max(relative, np.abs(wanted - other).max() / np.abs(wanted).max())
        places = wanted.argmax(-1) == other.argmax(-1)
        same, rows = same + places.sum(), rows + places.size
    assert emitted.difference == pytest.approx(most, rel=1e-3) and found.relative == pytest.approx(relative, rel=1e-3)
    assert 1e-4 < relative < 0.05 and found.alike == same / rows > 0.9
    assert floats(emitted.path) < 0.3 * floats(plain.path)


@pytest.mark.parametrize(
    "options", [{"opset": 13, "external_data": True}, {"opset": 25, "batch_norm": "keep"}, {"optimize": False}]
)
def test_other_options_hold_for_quantised_files_too(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))
    emitted = to_onnx(trace(model, torch.randn(2, 64)), tmp_path / "net.onnx", quantise="int8", **options)
    written = onnx.load(emitted.path)
    assert emitted.quantised is not None and emitted.quantised.operators == {"MatMul": 2}
    assert options.get("opset") in (None, written.opset_import[0].version)
    kept = "batch_norm" in options or "optimize" in options
    assert ("BatchNormalization" in {n.op_type for n in written.graph.node}) == kept
    assert (tmp_path / "net.onnx.data").exists() == ("external_data" in options)


class Decided(nn.Module):
    """Returns its classes, a truth value of each output, and the outputs: only these are held to a tolerance."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 40)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return y.argmax(1), y > y.mean(), y


def test_what_is_decided_by_a_hair_may_be_decided_otherwise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    emitted = to_onnx(trace(Decided(), torch.randn(2, 8)), tmp_path / "net.onnx", quantise="int8")
    assert emitted.quantised is not None and 0 < emitted.quantised.relative < 0.05


def test_a_file_that_is_too_far_off_is_not_written(tmp_path: Path) -> None:
    graph = graph_of("mlp")
    (tmp_path / "net.onnx").write_bytes(b"what was there before")
    with pytest.raises(EmitError, match=r"too far off in 8-bit integers\n  why: .* and 0.0001 is allowed"):
        to_onnx(graph, tmp_path / "net.onnx", quantise="int8", int8_tolerance=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"] and (tmp_path / "net.onnx").read_bytes()[:4] == b"what"


def test_outliers_that_eight_bits_cannot_hold_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        layer[0].get_parameter("bias")[0] = 1e4  # the other activations fall below one step of 40
        layer[1].get_parameter("weight")[:, 0] = 0.0
    with pytest.raises(EmitError, match="too far off in 8-bit integers"):
        to_onnx(trace(layer, torch.randn(2, 8)), tmp_path / "net.onnx", quantise="int8")
    assert list(tmp_path.iterdir()) == []


def half() -> Graph:
    return trace(nn.Linear(4, 4).half(), torch.randn(2, 4, dtype=torch.float16))


def test_what_cannot_be_quantised_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmitError, match=r"nothing of net.onnx can be quantised\n.*Gemm, Conv, MatMul"):
        to_onnx(trace(nn.Tanh(), torch.randn(2, 3)), tmp_path / "net.onnx", quantise="int8")
    with pytest.raises(EmitError, match=r"there are f16\n.*graph\.to\(torch\.float32\)"):
        to_onnx(half(), tmp_path / "net.onnx", quantise="int8")
    with pytest.raises(EmitError, match="no quantisation 'int4'"):
        to_onnx(graph_of("mlp"), tmp_path / "net.onnx", quantise="int4")  # type: ignore[arg-type]

    def fail(*args: object, **options: object) -> None:
        raise ValueError("Failed to find proper ai.onnx domain")

    monkeypatch.setattr("archir.emit.int8.quantize_dynamic", fail)
    with pytest.raises(EmitError, match=r"onnxruntime cannot quantise net.onnx\n  why:   ValueError: Failed to find"):
        to_onnx(graph_of("mlp"), tmp_path / "net.onnx", quantise="int8")
    assert list(tmp_path.iterdir()) == []
