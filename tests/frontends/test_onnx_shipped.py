"""Files that the package onnx ships: layers exported by old releases of torch, and networks of the time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from archir.axes.infer import infer_widths
from archir.errors import CaptureError
from frontends.onnx.read import from_onnx

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
LAYERS = sorted(p.name for p in (DATA / "pytorch-converted").glob("test_*"))

REFUSED = {"test_PReLU_1d_multiparam", "test_PReLU_2d_multiparam", "test_PReLU_3d_multiparam"}
"""Those whose slopes the conversion from operator set 6 leaves as they were, where they do not broadcast any more."""


def tensor(file: Path) -> np.ndarray:
    return numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


@pytest.mark.parametrize("part", range(4))
def test_layers_of_old_releases(part: int, tmp_path: Path) -> None:
    assert len(LAYERS) > 50
    for name in LAYERS[part::4]:
        folder = DATA / "pytorch-converted" / name
        model = onnx.version_converter.convert_version(onnx.load(folder / "model.onnx"), 13)
        model.ir_version = 8  # initialisers need not be inputs any more
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(model.SerializeToString())
        if name in REFUSED:
            with pytest.raises(CaptureError, match=r"\(PRelu\)"):
                from_onnx(file)
            continue
        module = from_onnx(file).module().eval()
        data = folder / "test_data_set_0"
        inputs = [torch.from_numpy(tensor(p).copy()) for p in sorted(data.glob("input_*.pb"))]
        with torch.no_grad():
            made = module(*inputs)
        wanted = torch.from_numpy(tensor(data / "output_0.pb").copy())
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("name", "widths"),
    [("squeezenet", 25), ("shufflenet", 13), pytest.param("resnet50", 37, marks=pytest.mark.slow)],
)
def test_networks_have_widths(name: str, widths: int) -> None:
    file = DATA / "light" / f"light_{name}.onnx"
    graph = from_onnx(file)
    assert len(list(infer_widths(graph))) == widths
    assert {node.parameter.kind for node in graph.parameters if node.parameter} <= {"parameter", "buffer"}
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(graph.module().eval()(image), torch.from_numpy(wanted), rtol=1e-4, atol=1e-5)
