"""What is emitted of graphs whose inputs may have several sizes computes the same at each, and names the axes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.ir.graph import Graph
from frontends.onnx.read import from_onnx
from frontends.pytorch import trace
from tests.models.any_size import MODELS, AnySize


def captured(name: str) -> tuple[AnySize, Graph]:
    torch.manual_seed(0)
    model = MODELS[name]
    return model, trace(model.build().eval(), model.inputs(3, model.sizes[0]), dynamic={"x": model.dynamic})


def shown(dims: Mapping[int, str], rank: int) -> list[str]:
    """Return the axes of an input with names, others left out."""
    return ["B", *(dims[axis] for axis in range(1, rank) if axis in dims)]


def _loaded(path: Path) -> torch.nn.Module:
    scope: dict[str, Any] = {"__name__": "net", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    net = scope["load"]()
    assert isinstance(net, torch.nn.Module)
    return net.eval()


@pytest.mark.parametrize("name", MODELS)
def test_source_runs_at_every_size(name: str, tmp_path: Path) -> None:
    model, graph = captured(name)
    net, module = _loaded(to_python(graph, tmp_path).path), graph.module().eval()
    for sizes in model.sizes:
        x = model.inputs(2, sizes)
        with torch.no_grad():
            torch.testing.assert_close(net(x), module(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["recurrent", "unet", "windows"])
def test_onnx_runs_at_every_size_and_names_the_axes(name: str, tmp_path: Path) -> None:
    model, graph = captured(name)
    file = to_onnx(graph, tmp_path / "net.onnx").path
    session, module = onnxruntime.InferenceSession(file), graph.module().eval()
    for sizes in model.sizes:
        x = model.inputs(2, sizes)
        with torch.no_grad():
            wanted = module(x).numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    (given,) = onnx.load(str(file)).graph.input
    dims = [dim.dim_param for dim in given.type.tensor_type.shape.dim if dim.dim_param]
    assert dims == shown(model.dynamic, x.dim())
    again = from_onnx(file)
    assert again.signature.guards == graph.signature.guards
    assert str(again.inputs[0].results[0]) == str(graph.inputs[0].results[0])
    for sizes in model.sizes:
        x = model.inputs(2, sizes)
        with torch.no_grad():
            torch.testing.assert_close(again.module().eval()(x), module(x), rtol=1e-4, atol=1e-5)


class Segments(torch.nn.Module):
    """Means over segments of 64 steps, the last one padded."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = (x.shape[1] + 63) // 64
        padded = torch.nn.functional.pad(self.inner(x), (0, 0, 0, 64 * count - x.shape[1]))
        return padded.view(x.shape[0], count, 64, 5).mean(2)


class Patches(torch.nn.Module):
    """Convolutions that leave one position of 32, each of which halves the image."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 4, 4, 4, 4, 4)
        self.halve = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.halve:
            x = torch.relu(layer(x))
        return x


def test_sizes_beyond_those_of_the_example_are_other_than_its_own(tmp_path: Path) -> None:
    """What a model divides by more than its example is long is no constant, in types, source and files."""
    torch.manual_seed(0)
    segments = trace(Segments(), torch.randn(2, 12, 4), dynamic={"x": {1: "T"}})
    assert str(segments.type_of(next(iter(segments.output.values)))) == "f32[B, floor(T/64 + 63/64), 5]"
    patches = trace(Patches().eval(), torch.randn(2, 3, 70, 130), dynamic={"x": {2: "H", 3: "W"}})
    assert str(patches).splitlines()[0] == "graph Patches(x: f32[B, 3, H, W]) at H = 70, W = 130 {"
    inputs: dict[str, tuple[Graph, list[tuple[int, ...]]]] = {
        "segments": (segments, [(3, n, 4) for n in (1, 63, 65, 200)]),
        "patches": (patches, [(2, 3, h, w) for h, w in ((33, 64), (129, 257))]),
    }
    for name, (graph, shapes) in inputs.items():
        net, module = _loaded(to_python(graph, tmp_path / name).path), graph.module().eval()
        for shape in shapes:
            x = torch.randn(shape)
            with torch.no_grad():
                torch.testing.assert_close(net(x), module(x), rtol=1e-6, atol=1e-6)
    again = from_onnx(to_onnx(patches, tmp_path / "patches.onnx").path)
    assert [again.type_of(v) for v in again.output.values] == [patches.type_of(v) for v in patches.output.values]
