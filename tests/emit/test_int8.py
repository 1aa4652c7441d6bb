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


@pytest.mark.parametrize("options", [{"opset": 13, "external_data": True}, {"opset": 25, "batch_norm": "keep"}])
def test_other_options_hold_for_quantised_files_too(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))
    emitted = to_onnx(trace(model, torch.randn(2, 64)), tmp_path / "net.onnx", quantise="int8", **options)
    written = onnx.load(emitted.path)
    assert emitted.quantised is not None and emitted.quantised.operators == {"MatMul": 2}
    assert options.get("opset") in (None, written.opset_import[0].version)
    assert ("BatchNormalization" in {n.op_type for n in written.graph.node}) == ("batch_norm" in options)
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
    found = emitted.quantised
    assert found is not None and found.relative is not None and 0 < found.relative < 0.05
    assert found.equal is not None and 0.9 < found.equal <= 1.0 and "whole numbers and truth values" in emitted.verdict


class Chosen(nn.Module):
    """Returns the place of its largest output only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x).argmax(1)
        return found


def test_whole_numbers_are_counted_where_nothing_else_is_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = trace(Chosen(), torch.randn(2, 8))
    plain = to_onnx(graph, tmp_path / "plain.onnx")
    emitted = to_onnx(graph, tmp_path / "net.onnx", quantise="int8")
    found, same = emitted.quantised, []
    for batch in (2, 3):
        args, _ = random_inputs(graph, sizes=symbol_sizes(graph, batch))
        (wanted,), (other,) = run(plain.path, *args), run(emitted.path, *args)
        same += (wanted == other).tolist()
    assert found is not None and found.relative is None and found.alike is None
    assert found.equal == sum(same) / len(same)
    assert "off by" not in emitted.verdict and "largest difference" not in emitted.verdict


class Named(nn.Module):
    """Has stored tensors, and inputs, with the names onnxruntime gives to what it makes of others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.weight_scale = nn.Parameter(torch.full((8,), 0.02))
        self.weight_zero_point = nn.Parameter(torch.randn(8))
        self.weight_quantized = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight * self.weight_scale + self.weight_zero_point
        found: torch.Tensor = y @ self.weight_quantized + x_scale
        return found


def test_stored_tensors_keep_their_names_and_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Named()
    emitted = to_onnx(trace(model, (torch.randn(2, 8), torch.randn(2, 8))), tmp_path / "net.onnx", quantise="int8")
    graph = onnx.load(emitted.path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert len(stored) == len(graph.initializer) and [i.name for i in graph.input] == ["x", "x_scale"]
    assert np.array_equal(stored["weight_scale"], model.weight_scale.detach().numpy())
    assert np.array_equal(stored["weight_zero_point"], model.weight_zero_point.detach().numpy())
    assert {"weight_quantized_quantized", "weight_scale_2"} <= stored.keys()
    assert emitted.quantised is not None and emitted.quantised.operators == {"MatMul": 2}


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
    with pytest.raises(EmitError, match=r"cannot be quantised without optimize\n.*\n.*leave optimize on"):
        to_onnx(graph_of("mlp"), tmp_path / "net.onnx", quantise="int8", optimize=False)
    for wrong in (float("nan"), -1.0, "a", True):
        with pytest.raises(EmitError, match=f"{wrong!r} is no tolerance"):
            to_onnx(graph_of("mlp"), tmp_path / "net.onnx", quantise="int8", int8_tolerance=wrong)  # type: ignore[arg-type]
    with pytest.raises(EmitError, match="int8_tolerance is for quantised files only"):
        to_onnx(graph_of("mlp"), tmp_path / "net.onnx", int8_tolerance=0.2)
    with pytest.raises(EmitError, match="no quantisation 'int4'"):
        to_onnx(graph_of("mlp"), tmp_path / "net.onnx", quantise="int4")  # type: ignore[arg-type]

    def fail(*args: object, **options: object) -> None:
        raise ValueError("Failed to find proper ai.onnx domain")

    monkeypatch.setattr("archir.emit.int8.quantize_dynamic", fail)
    with pytest.raises(EmitError, match=r"onnxruntime cannot quantise net.onnx\n  why:   ValueError: Failed to find"):
        to_onnx(graph_of("mlp"), tmp_path / "net.onnx", quantise="int8")
    assert list(tmp_path.iterdir()) == []
