"""ONNX files compute what the graph computes, for any batch size."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from archir.emit.onnx import check, to_onnx
from archir.errors import EmitError, FileError
from frontends.pytorch import trace
from tests.emit import hard_models as hard
from tests.models import ZOO

CHOSEN = [
    "resnet",
    "shufflenet",
    "unet",
    "vit",
    "gpt",
    "grouped_query_attention",
    "gru",
    "nested",
    "two_heads",
    "siamese",
]


@pytest.mark.parametrize("name", CHOSEN)
def test_same_function(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    example = ZOO[name]
    graph = trace(example.build(), example.inputs(), example.kwargs())
    capfd.readouterr()
    emitted = to_onnx(graph, tmp_path / "net.onnx")
    assert emitted.difference < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")
    model = onnx.load(emitted.path)
    assert [i.name for i in model.graph.input] == [n.name for n in graph.inputs]
    assert {i.type.tensor_type.shape.dim[0].dim_param for i in model.graph.input} == {"B"}
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    example = ZOO["gpt_tied"]
    graph = trace(example.build(), example.inputs())
    model = onnx.load(to_onnx(graph, tmp_path / "net.onnx", optimize=False).path)
    elements = sum(torch.Size(t.dims).numel() for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert elements < graph.parameter_count + 100


def test_batch_norm_is_folded_unless_asked(tmp_path: Path) -> None:
    example = ZOO["resnet"]
    graph = trace(example.build(), example.inputs())
    kinds = []
    for optimize in (True, False):
        emitted = to_onnx(graph, tmp_path / "net.onnx", optimize=optimize)
        kinds.append({n.op_type for n in onnx.load(emitted.path).graph.node})
    assert "BatchNormalization" not in kinds[0] and "BatchNormalization" in kinds[1]


def test_one_batch_size_stays_one(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(4, 6).softmax(1)

    graph = trace(Fixed(), torch.randn(2, 12), dynamic_shapes=None)
    emitted = to_onnx(graph, tmp_path / "net.onnx", opset=18)
    model = onnx.load(emitted.path)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert model.opset_import[0].version == 18


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    graph = trace(hard.Loops(), (torch.randn(3, 5, 8), torch.randn(3, 1, 8)))
    with pytest.raises(EmitError, match="largest difference"):
        to_onnx(graph, tmp_path / "net.onnx", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "net.onnx").write_text("not a model")
    with pytest.raises(EmitError, match="cannot load"):
        check(graph, tmp_path / "net.onnx")
    with pytest.raises(FileError, match="cannot write"):
        to_onnx(graph, tmp_path / "net.onnx" / "net.onnx")


def test_what_onnx_cannot_say_is_an_error(tmp_path: Path) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.linalg.svdvals(x)
            return values

    graph = trace(Spectrum(), torch.randn(2, 3, 3))
    with pytest.raises(EmitError, match="cannot be written as ONNX"):
        to_onnx(graph, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
