"""Emitted source and ONNX files agree with the model, or refuse the size of the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import Tensor, nn

from archir.emit.layouts import LAYOUTS, draft
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.ir.graph import Graph
from frontends.pytorch import trace
from tests.emit.loading import load_draft
from tests.models.deciding import SIZES, Deciding

CASES: dict[str, tuple[Callable[[int], bool], int]] = {
    "above 2, traced with 8": (lambda n: n > 2, 8),
    "above 2, traced with 2": (lambda n: n > 2, 2),
    "even, traced with 8": (lambda n: n % 2 == 0, 8),
    "above 100, traced with 200": (lambda n: n > 100, 200),
    "not 7, traced with 8": (lambda n: n != 7, 8),
    "a third of it even, traced with 8": (lambda n: n // 3 % 2 == 0, 8),
}


def _loaded(graph: Graph, directory: Path) -> nn.Module:
    scope: dict[str, object] = {"__file__": str(to_python(graph, directory).path), "__name__": "net"}
    exec((directory / "net.py").read_text(), scope)
    return scope["load"]()  # type: ignore[operator,no-any-return]


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", CASES)
def test_what_is_emitted_agrees_or_refuses(case: str, tmp_path: Path) -> None:
    choice, batch = CASES[case]
    model = Deciding(choice).eval()
    graph = trace(model, torch.randn(batch, 5))
    net = _loaded(graph, tmp_path)
    session = _session(to_onnx(graph, tmp_path / "net.onnx").path)
    for size in SIZES:
        x = torch.randn(size, 5)
        if choice(size) == choice(batch):
            wanted = model(x)
            torch.testing.assert_close(net(x), wanted)
            torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), wanted.detach())
            continue
        with pytest.raises(ValueError, match=r"the network is for inputs with .*x\.size\(0\)"):
            net(x)
        with pytest.raises(InvalidArgument, match=r"requires .*x\.size\(0\)"):
            session.run(None, {"x": x.numpy()})


def test_an_onnx_file_states_what_it_requires(tmp_path: Path) -> None:
    graph = trace(Deciding(lambda n: n % 2 == 0), torch.randn(8, 5))
    model = onnx.load(to_onnx(graph, tmp_path / "net.onnx").path)
    found = {p.key: p.value for p in model.metadata_props if not p.key.startswith("archir.")}
    assert found == {"requires": "x.size(0) % 2 == 0"}
    assert model.doc_string == "The network is for inputs with x.size(0) % 2 == 0."


def test_a_batch_of_one_size_is_refused_by_what_is_emitted(tmp_path: Path) -> None:
    graph = trace(Deciding(lambda n: n == 7), torch.randn(7, 5), static_batch=True)
    with pytest.raises(ValueError, match=r"the network is for inputs with x\.size\(0\) == 7"):
        _loaded(graph, tmp_path)(torch.randn(8, 5))
    session = _session(to_onnx(graph, tmp_path / "net.onnx").path)
    with pytest.raises(InvalidArgument, match="Expected: 7"):
        session.run(None, {"x": torch.randn(8, 5).numpy()})


def test_batches_that_were_equal_have_to_be(tmp_path: Path) -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y if x.shape[0] == y.shape[0] else x - y

    graph = trace(Same(), (torch.randn(8, 5), torch.randn(8, 5)))
    with pytest.raises(ValueError, match=r"y\.size\(0\) == x\.size\(0\)"):
        _loaded(graph, tmp_path)(torch.randn(8, 5), torch.randn(1, 5))
    session = _session(to_onnx(graph, tmp_path / "net.onnx").path)
    with pytest.raises(InvalidArgument, match=r"requires y\.size\(0\) == x\.size\(0\)"):
        session.run(None, {"x": torch.randn(8, 5).numpy(), "y": torch.randn(1, 5).numpy()})


def test_the_shape_of_an_input_that_is_checked_is_known_as_before(tmp_path: Path) -> None:
    """Where it is not, onnxruntime leaves convolutions of it as they are, which takes a quarter more time."""

    class Joined(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.relu() + y

    model = onnx.load(to_onnx(trace(Joined(), (torch.randn(2, 3), torch.randn(2, 3))), tmp_path / "net.onnx").path)
    (checked,) = (node.output[0] for node in model.graph.node if node.op_type == "Reshape")
    (known,) = (value for value in model.graph.value_info if value.name == checked)
    assert known.type == model.graph.input[0].type and known.type.tensor_type.shape.dim[1].dim_value == 3
    assert {n.input[0] for n in model.graph.node if n.op_type == "Relu"} == {checked}
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


class Parts(nn.Module):
    def forward(self, parts: list[Tensor], named: dict[str, tuple[Tensor, ...]], *, len: Tensor) -> Tensor:
        return parts[0] + parts[1] * named["a"][0] + len


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lists_and_dicts_have_the_parts_they_had(layout: str, tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    graph = trace(Parts(), ([x, x], {"a": (x,)}), {"len": x})
    net = load_draft(draft(graph, layout), tmp_path)
    torch.testing.assert_close(net([x, x], {"a": (x,)}, len=x), x + x * x + x)
    for parts, named in ([x] * 3, {"a": (x,)}), ([x], {"a": (x,)}), ([x] * 2, {"a": (x, x)}):
        with pytest.raises(ValueError, match=r"the network is for (parts|named\[\"a\"\]) with \d part"):
            net(parts, named, len=x)
    with pytest.raises(ValueError, match="the network is for named with the keys a"):
        net([x, x], {"a": (x,), "b": (x,)}, len=x)
    with pytest.raises(ValueError, match="with the keys len"):
        net([x, x], {"a": (x,)}, len=x, other=x)
    with pytest.raises(KeyError, match="a"):
        net([x, x], {"b": (x,)}, len=x)
