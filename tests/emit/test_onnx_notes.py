"""ONNX files say what network they hold, the same whenever they are written, and what led to it is read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from archir.api import apply
from archir.cost import cost
from archir.emit.metadata import describe
from archir.emit.onnx import to_onnx
from archir.errors import FileError, ParseError
from archir.ir.graph import Graph
from archir.ir.guards import parse_guard
from archir.ir.notes import HISTORY, program_checksum, read_texts, write_texts
from frontends.onnx.read import from_onnx
from frontends.pytorch import trace
from tests.models.captured import graph_of

SPECS = ("split{width=w0, units=[1, 2]}", "widen{width=w1, count=4}")


def notes(file: Path) -> dict[str, str]:
    """Return what a user finds who only has onnxruntime."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


@pytest.mark.parametrize("options", [{}, {"opset": 13, "external_data": True}, {"quantise": "int8"}])
def test_a_file_says_what_network_it_holds(options: dict[str, object], tmp_path: Path) -> None:
    graph = apply(graph_of("mlp"), "; ".join(SPECS))
    found = notes(to_onnx(graph, tmp_path / "net.onnx", **options).path)  # type: ignore[arg-type]
    quantised = found.pop("archir.quantised", None)
    assert (json.loads(quantised) if quantised else None) == ({"MatMul": 3} if options.get("quantise") else None)
    price = cost(graph)
    assert price.parameters == graph.parameter_count > 0 and price.flops > 0
    version = found.pop("archir.version")
    assert version[0].isdigit()
    assert found == {
        "archir.program": program_checksum(graph),
        "archir.parameters": str(price.parameters),
        "archir.flops": str(price.flops),
        "archir.sizes": '{"B": 1}',
        "archir.history": json.dumps(graph.history),
        "archir.guards": "[]",
    }


def test_what_sizes_have_to_satisfy_is_noted_beside_it(tmp_path: Path) -> None:
    graph = trace(Two(), (torch.randn(3, 4), torch.randn(3, 4)))
    file = to_onnx(graph, tmp_path / "net.onnx", quantise="int8").path
    assert notes(file)["requires"] == "y.size(0) == x.size(0)" and "archir.version" in notes(file)
    assert onnx.load(file).doc_string == "The network is for inputs with y.size(0) == x.size(0)."


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.one(x) + self.two(y)
        return found


@pytest.mark.parametrize(("stride", "guard"), [(1, ""), (2, "T >= 9")])
def test_costs_are_told_for_sizes_that_the_network_takes(stride: int, guard: str) -> None:
    """A file of which nobody knows what it was captured for: one step is less than its kernel."""
    graph = trace(nn.Conv1d(4, 8, 5, stride=stride), torch.randn(2, 4, 32), dynamic={"input": {2: "T"}})
    guards = (parse_guard(guard),) if guard else ()
    graph = Graph(graph.name, graph.nodes, graph.tensors, replace(graph.signature, sizes=(), guards=guards))
    model = onnx.ModelProto()
    describe(graph, model)
    found = {entry.key: entry.value for entry in model.metadata_props}
    sizes = json.loads(found["archir.sizes"])
    assert sizes["T"] >= (9 if guard else 5)
    length = (sizes["T"] - 5) // stride + 1
    assert int(found["archir.flops"]) == 2 * 4 * 5 * 8 * length * sizes["B"]


def test_the_same_graph_gives_the_same_file_anywhere(tmp_path: Path) -> None:
    graph = apply(graph_of("mlp"), SPECS[0])
    paths = [tmp_path / folder / "net.onnx" for folder in ("here", "there")]
    one, other = (to_onnx(graph, path, quantise="int8").path.read_bytes() for path in paths)
    assert one == other
    assert not any(str(part).encode() in one for part in (tmp_path, Path.cwd()))


def test_programs_are_told_apart_and_weights_are_not() -> None:
    graph = graph_of("mlp")
    name = graph.parameters[0].names[0]
    assert program_checksum(graph) == program_checksum(graph.with_tensors({name: graph.tensor(name) + 1}))
    assert program_checksum(graph) != program_checksum(apply(graph, SPECS[0]))


def test_what_led_to_a_network_is_read_back_and_goes_on(tmp_path: Path) -> None:
    graph = apply(graph_of("mlp"), "; ".join(SPECS))
    again = from_onnx(to_onnx(graph, tmp_path / "net.onnx").path)
    assert again.history == graph.history and len(graph.history) == 2
    assert apply(again, SPECS[0]).history[:2] == graph.history


@pytest.mark.parametrize("history", [(), ("a", 'b"\n', "α\x1b"), ("\udcff",)])
def test_histories_are_text_that_is_read_back(history: tuple[str, ...]) -> None:
    text = write_texts(history)
    assert text.isascii()
    if history == ("\udcff",):
        with pytest.raises(ParseError):
            read_texts(text)
    else:
        assert read_texts(text) == history


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '"split"', "[" * 100_000, '["split', "[" + "1" * 10_000 + "]", "[null]"]
)
def test_notes_that_are_no_history_are_damage(text: str, tmp_path: Path) -> None:
    file = small_file(tmp_path)
    model = onnx.load(file)
    (entry,) = (entry for entry in model.metadata_props if entry.key == HISTORY)
    entry.value = text
    file.write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match=f"is damaged\n  where: metadata {HISTORY}\n  why:"):
        from_onnx(file)


def small_file(folder: Path) -> Path:
    """Write a small file that has a history, without the exporter of torch."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [value(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "net", ends[:1], ends[1:]), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    onnx.helper.set_model_props(model, {HISTORY: write_texts(SPECS), "other": "x"})
    onnx.save(model, str(folder / "net.onnx"))
    assert from_onnx(folder / "net.onnx").history == SPECS
    return folder / "net.onnx"


@pytest.mark.parametrize("own", [True, False])
def test_a_second_file_goes_with_the_file_it_belonged_to(own: bool, tmp_path: Path) -> None:
    graph, file = trace(nn.Linear(32, 32), torch.randn(2, 32)), tmp_path / "net.onnx"
    to_onnx(graph, file, external_data=own)
    if not own:
        (tmp_path / "net.onnx.data").write_bytes(b"of something else")
    to_onnx(graph, file)
    assert (tmp_path / "net.onnx.data").exists() != own
    onnx.checker.check_model(str(file))
