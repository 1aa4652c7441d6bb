"""Bad ONNX files: damaged, of other versions, with tensors elsewhere, or made to take all memory or time."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from archir.emit.onnx import to_onnx
from archir.errors import ArchirError, CaptureError, FileError
from frontends.onnx import read
from frontends.onnx.read import from_onnx
from tests.models.captured import graph_of
from tests.models.onnx_graphs import weights, write

node = helper.make_node


def layer(file: Path, **more: Any) -> Path:
    return write(file, [node("MatMul", ["x", "w"], ["y"])], stored={"w": weights(4, 3)}, **more)


def with_data_beside(file: Path, location: str = "w.data", **fields: Any) -> Path:
    """Write a model whose weight is in a file beside it, and said to be somewhere."""
    model = onnx.load(layer(file))
    (tensor,) = model.graph.initializer
    (file.parent / "w.data").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    file.write_bytes(model.SerializeToString())
    return file


def test_a_file_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"):
        from_onnx(tmp_path / "a.onnx")
    with pytest.raises(FileError, match="there is no file"):
        from_onnx(tmp_path)
    for data in (b"", b"hello", b"\x08\x08", os.urandom(500)):
        (tmp_path / "a.onnx").write_bytes(data)
        with pytest.raises(FileError, match="is damaged or no ONNX file"):
            from_onnx(tmp_path / "a.onnx")


def test_damaged_files_are_refused_in_words_of_archir(tmp_path: Path) -> None:
    file = to_onnx(graph_of("mlp"), tmp_path / "a.onnx", optimize=False).path
    whole, dice, read_again = file.read_bytes(), Random(0), 0
    for i in range(150):
        data = bytearray(whole)
        if i % 3 == 0:
            del data[dice.randrange(len(data)) :]
        for _ in range(i % 3):
            data[dice.randrange(len(data))] = dice.randrange(256)
        file.write_bytes(data)
        try:
            from_onnx(file)
        except ArchirError as error:
            assert isinstance(error, FileError | CaptureError)
            continue
        read_again += 1
    assert 0 < read_again < 100, "some bytes are weights, and some are not"


@pytest.mark.parametrize("opset", [1, 8, 26, 99, -1])
def test_operator_sets_that_are_not_read(opset: int, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=f"operator set {opset} of ai.onnx: 9 to 25 are read"):
        from_onnx(layer(tmp_path / "a.onnx", opset=opset))


def test_domains_that_are_not_read(tmp_path: Path) -> None:
    nodes = [
        node("Scaler", ["x"], ["h"], name="a", domain="ai.onnx.ml"),
        node("Own", ["h"], ["y"], name="b", domain="o"),
    ]
    file = write(tmp_path / "a.onnx", nodes, domains={"ai.onnx.ml": 3, "o": 1})
    with pytest.raises(CaptureError) as caught:
        from_onnx(file)
    assert "node a (Scaler)" in str(caught.value) and "node b (Own)" in str(caught.value)


def test_nodes_that_onnx_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not sound ONNX"):
        from_onnx(write(tmp_path / "a.onnx", [node("Relu", ["nowhere"], ["y"])]))
    with pytest.raises(FileError, match="is not sound ONNX"):
        from_onnx(write(tmp_path / "a.onnx", [node("Relu", ["x"], ["y"], slope=0.3)]))


def test_an_input_of_unknown_rank(tmp_path: Path) -> None:
    model = onnx.load(layer(tmp_path / "a.onnx"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CaptureError, match="does not say how many axes its inputs have: x"):
        from_onnx(tmp_path / "a.onnx")


def test_tensors_beside_the_file_are_read(tmp_path: Path) -> None:
    graph = from_onnx(with_data_beside(tmp_path / "a.onnx", length=48, offset=0))
    torch.testing.assert_close(graph.tensors[graph.parameters[0].id].t(), torch.from_numpy(weights(4, 3)))
    (tmp_path / "w.data").unlink()
    assert graph.module()(torch.zeros(2, 4)).shape == (2, 3), "nothing refers to the file any more"


PLACES = [
    "missing.data",
    "/etc/passwd",
    "../w.data",
    "inner/../../w.data",
    "",
    ".",
    "link.data",
    "inner/w.data",
    "pipe",
]


@pytest.mark.parametrize("place", PLACES)
def test_tensors_elsewhere_are_refused(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "w.data").write_bytes(bytes(48))
    file = with_data_beside(folder / "a.onnx", place)
    (folder / "link.data").symlink_to(tmp_path / "w.data")
    (folder / "inner").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    with pytest.raises(FileError, match="w: ") as caught:
        from_onnx(file)
    assert "keeps tensors where they cannot be read" in str(caught.value)


@pytest.mark.parametrize("fields", [{"offset": 4}, {"length": 4}, {"length": 4800}, {"offset": 10**15}, {"offset": -4}])
def test_tensors_beside_that_are_not_long_enough(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileError):
        from_onnx(with_data_beside(tmp_path / "a.onnx", **fields))


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("o", 1)]
    again = helper.make_function("o", "Again", ["a"], ["b"], [node("Again", ["a"], ["b"], domain="o")], opsets)
    file = write(tmp_path / "a.onnx", [node("Again", ["x"], ["y"], domain="o")], domains={"o": 1}, functions=[again])
    with pytest.raises(FileError):
        from_onnx(file)


def test_functions_that_become_more_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("o", 1)]

    def function(level: int) -> onnx.FunctionProto:
        inner = {"op_type": f"F{level - 1}", "domain": "o"} if level else {"op_type": "Relu"}
        nodes = [node(inputs=[f"v{i}"], outputs=[f"v{i + 1}"], **inner) for i in range(10)]
        return helper.make_function("o", f"F{level}", ["v0"], ["v10"], nodes, opsets)

    nodes = [node("F9", ["x"], ["y"], domain="o")]
    file = write(tmp_path / "a.onnx", nodes, domains={"o": 1}, functions=[function(i) for i in range(10)])
    with pytest.raises(FileError, match="more than 200,000 nodes with functions inlined"):
        from_onnx(file)


GREEDY = {
    "constant": [node("ConstantOfShape", ["large"], ["c"]), node("Add", ["x", "c"], ["y"])],
    "expand": [node("Expand", ["one", "large"], ["e"]), node("Add", ["x", "e"], ["y"])],
    "tile": [node("Tile", ["one", "large"], ["e"]), node("Add", ["x", "e"], ["y"])],
    "range": [node("Range", ["zero", "huge", "step"], ["r"]), node("Add", ["x", "r"], ["y"])],
    "one-hot": [node("OneHot", ["index", "huge", "values"], ["y"])],
    "pad": [node("Pad", ["one", "pads"], ["p"]), node("Add", ["x", "p"], ["y"])],
    "resize": [node("Resize", ["x", "", "", "wide"], ["y"])],
}


@pytest.mark.parametrize("name", GREEDY)
def test_files_cannot_ask_for_more_memory_than_there_is(name: str, tmp_path: Path) -> None:
    stored = {
        "large": np.array([10**13]),
        "one": np.ones(1, np.float32),
        "zero": np.array(0.0, np.float32),
        "huge": np.array(1e13, np.float32),
        "step": np.array(1.0, np.float32),
        "index": np.array([1]),
        "values": np.array([0.0, 1.0], np.float32),
        "pads": np.array([0, 10**13]),
        "wide": np.array([1, 10**13]),
    }
    file = write(tmp_path / "a.onnx", GREEDY[name], inputs={"x": ("N", 1)}, stored=stored)
    try:
        graph = from_onnx(file)
    except CaptureError:
        return
    assert all(t.numel() < 100 for t in graph.tensors.values()), "nothing of that size is made before it runs"


def test_numbers_that_make_no_sense(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="pads", pads=[1, 1, 1]),
        node("MaxPool", ["x"], ["b"], name="stride", kernel_shape=[2, 2], strides=[0, 0], auto_pad="SAME_UPPER"),
        node("Transpose", ["x"], ["c"], name="order", perm=[0, 0, 1, 2]),
        node("DepthToSpace", ["x"], ["d"], name="block", blocksize=0),
        node("Split", ["x"], ["e", "f"], name="parts", axis=9, num_outputs=2),
        node("Concat", ["x"], ["y"], axis=1),
    ]
    file = write(tmp_path / "a.onnx", nodes, inputs={"x": ("N", 4, 6, 6)}, stored={"w": weights(3, 4, 3, 3)})
    with pytest.raises(CaptureError) as caught:
        from_onnx(file)
    assert all(f"node {name} " in str(caught.value) for name in ("pads", "stride", "order", "block", "parts"))


def test_sizes_are_positive(tmp_path: Path) -> None:
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(CaptureError, match="sizes are positive integers"):
            from_onnx(layer(tmp_path / "a.onnx"), sizes={"N": wrong})  # type: ignore[dict-item]


def test_reading_changes_no_file(tmp_path: Path) -> None:
    file = with_data_beside(tmp_path / "a.onnx")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    from_onnx(file)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "too_large", lambda size: f"{size} bytes")
    with pytest.raises(FileError, match="is too large"):
        from_onnx(layer(tmp_path / "a.onnx"))
