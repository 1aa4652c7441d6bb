"""What is emitted of graphs whose inputs may have several sizes computes the same at each, and names the axes."""

from __future__ import annotations

from collections.abc import Mapping
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
