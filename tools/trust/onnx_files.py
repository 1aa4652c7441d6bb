"""ONNX files with bytes, names, shapes, attributes and places of tensors changed."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from frontends.onnx.read import from_onnx
from tests.models.onnx_graphs import weights, write
from tools.trust.attack import LINK, PIPE, Attack, Files
from tools.trust.hostile import NAMES
from tools.trust.mutate import mutate_bytes
from tools.trust.sound import examine

_PLACES = ("w.data", "/etc/passwd", "../w.data", "in/../w.data", "link.data", "pipe", ".", "", "a\0b", "w.data/", "~")
_NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**40, 2**62, -(2**63))
_KINDS = ("Relu", "Reshape", "Conv", "Gemm", "Loop", "If", "Resize", "Gather", "Expand", "Own", "Range", "")


@cache
def seeds() -> Sequence[bytes]:
    """Return sound files: a perceptron, a convolutional net, folded shapes, a loop, a function."""
    node, made = helper.make_node, helper.make_tensor_value_info
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"

        def data(*nodes: onnx.NodeProto, **more: Any) -> bytes:
            return write(file, nodes, **more).read_bytes()

        flag, number = TensorProto.BOOL, TensorProto.INT64
        body = helper.make_graph(
            [node("Add", ["h", "w"], ["next"]), node("Identity", ["go"], ["on"])],
            "body",
            [made("i", number, []), made("go", flag, []), made("h", TensorProto.FLOAT, None)],
            [made("on", flag, []), made("next", TensorProto.FLOAT, None)],
        )
        twice = helper.make_function(
            "mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
        )
        return (
            data(
                node("Gemm", ["x", "fc.weight", "fc.bias"], ["h"], transB=1),
                node("Relu", ["h"], ["r"]),
                node("MatMul", ["r", "last"], ["y"]),
                stored={"fc.weight": weights(6, 4), "fc.bias": weights(6), "last": weights(6, 3)},
            ),
            data(
                node("Conv", ["x", "conv.weight"], ["h"], pads=[1, 1, 1, 1]),
                node("MaxPool", ["h"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
                node("Shape", ["p"], ["s"]),
                node("Gather", ["s", "zero"], ["rows"]),
                node("Concat", ["rows", "minus"], ["shape"], axis=0),
                node("Reshape", ["p", "shape"], ["y"]),
                inputs={"x": ("N", 2, 6, 6)},
                stored={"conv.weight": weights(4, 2, 3, 3), "zero": np.array([0]), "minus": np.array([-1])},
            ),
            data(node("Loop", ["three", "", "x"], ["y"], body=body), stored={"three": np.array(3), "w": weights(4)}),
            data(node("Twice", ["x"], ["y"], domain="mine"), domains={"mine": 1}, functions=[twice]),
        )


def make(dice: random.Random) -> Files:
    """Return a file, at times with others beside it."""
    data = dice.choice(seeds())
    if dice.random() < 0.4:
        return {"net.onnx": mutate_bytes(dice, data)}
    model = onnx.ModelProto.FromString(data)
    for _ in range(dice.choice((1, 1, 3))):
        dice.choice((_rename, _rename, _resize, _set, _retype, _move))(dice, model)
    return {"net.onnx": model.SerializeToString(), "w.data": bytes(96), f"{LINK}link.data": b"/etc/passwd"}


def known() -> Sequence[Files]:
    """Return sound files, and one with its tensors at each hostile place, and with each hostile name."""
    found: list[Files] = [{"net.onnx": data} for data in seeds()]
    for place in _PLACES:
        model = onnx.ModelProto.FromString(seeds()[0])
        _elsewhere(model.graph.initializer[0], place)
        found.append({"net.onnx": model.SerializeToString(), "w.data": bytes(96), f"{PIPE}pipe": b""})
    for name in NAMES:
        text = name.encode("utf-8", "replace").decode()
        found.append({"net.onnx": seeds()[0].replace(b"last", text.encode()[:4].ljust(4, b"x"))})
    return found


def use(folder: Path) -> None:
    """Read the file, and do with the graph what users do."""
    examine(from_onnx(folder / "net.onnx"))


ONNX = Attack("onnx", make, use, known, full=20_000, reads=True)


def _rename(dice: random.Random, model: onnx.ModelProto) -> None:
    name = dice.choice(NAMES).encode("utf-8", "replace").decode()
    part = dice.choice((*model.graph.initializer, *model.graph.node, *model.graph.input))
    old, part.name = part.name, name
    if dice.random() < 0.7:
        for node in model.graph.node:
            node.input[:] = [name if value == old else value for value in node.input]


def _resize(dice: random.Random, model: onnx.ModelProto) -> None:
    shapes = [value.type.tensor_type.shape for value in model.graph.input]
    sizes = [dim for shape in shapes for dim in shape.dim]
    if model.graph.initializer and dice.random() < 0.4:
        tensor = dice.choice(model.graph.initializer)
        tensor.dims[:] = [dice.choice(_NUMBERS) for _ in range(dice.randrange(4))]
    elif sizes:
        dice.choice(sizes).dim_value = dice.choice(_NUMBERS)


def _set(dice: random.Random, model: onnx.ModelProto) -> None:
    node = dice.choice(model.graph.node)
    known = [attribute for attribute in node.attribute if attribute.ints or attribute.HasField("i")]
    if known:
        attribute = dice.choice(known)
        attribute.i = dice.choice(_NUMBERS)
        attribute.ints[:] = [dice.choice(_NUMBERS) for _ in attribute.ints]
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64 and dice.random() < 0.5:
            count = len(tensor.raw_data) // 8
            tensor.raw_data = np.array([dice.choice(_NUMBERS) for _ in range(count)], np.int64).tobytes()


def _retype(dice: random.Random, model: onnx.ModelProto) -> None:
    match dice.randrange(4):
        case 0:
            dice.choice(model.graph.node).op_type = dice.choice(_KINDS)
        case 1:
            dice.choice(model.graph.node).domain = dice.choice(("ai.onnx.ml", "mine", *NAMES)).encode(
                "utf-8", "replace"
            )
        case 2:
            dice.choice(model.opset_import).version = dice.choice((0, 1, 8, 9, 13, 25, 26, 2**40))
        case _:
            kinds = [tensor for tensor in model.graph.initializer]
            if kinds:
                dice.choice(kinds).data_type = dice.randrange(40)


def _move(dice: random.Random, model: onnx.ModelProto) -> None:
    if model.graph.initializer:
        _elsewhere(dice.choice(model.graph.initializer), dice.choice(_PLACES), dice)


def _elsewhere(tensor: onnx.TensorProto, place: str, dice: random.Random | None = None) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=place)
    if dice is not None and dice.random() < 0.5:
        tensor.external_data.add(key=dice.choice(("offset", "length")), value=str(dice.choice(_NUMBERS)))
