"""ONNX graphs made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def write(
    file: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    outputs: Sequence[str] = ("y",),
    stored: Mapping[str, Any] | None = None,
    opset: int = 18,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> Path:
    """Write a model of some nodes; its inputs are floats, those whose name begins with `n` integers.

    Args:
        file: the file.
        nodes: its nodes, in order.
        inputs: the shapes of its inputs, by name; `x` of `[N, 4]` if not given.
        outputs: the names of its outputs.
        stored: its initialisers, by name.
        opset: the operator set of ai.onnx.
        domains: the operator sets of other domains.
        functions: functions of the model.
    """
    shapes = {"x": ("N", 4)} if inputs is None else inputs
    given = [
        helper.make_tensor_value_info(name, INT64 if name.startswith("n") else FLOAT, list(shape))
        for name, shape in shapes.items()
    ]
    made = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (stored or {}).items()]
    graph = helper.make_graph(list(nodes), "net", given, made, tensors)
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


def weights(*shape: int, seed: int = 0) -> Any:
    """Return random weights in single precision."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
