"""Writes a graph as an ONNX file and checks it with onnxruntime."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch._dynamo.exc import UserError
from torch.export import Dim
from torch.export.dynamic_shapes import _DimHint
from torch.onnx import OnnxExporterError

from archir.emit.check import Emitted, compare
from archir.errors import EmitError, FileError
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.node import Constant, Leaf, Signature, Tree, Value
from archir.ir.types import TensorType, Type, symbols_of

TOLERANCE = 1e-4
EXAMPLE = 4
"""Batch size the model is exported with; no axis of it is special."""

LARGEST = 2**31 - 2**20
"""Tensors of more bytes than this go into a file beside the model: protobuf messages end at 2 GiB."""


def to_onnx(
    graph: Graph,
    path: str | Path,
    *,
    opset: int | None = None,
    optimize: bool = True,
    tolerance: float = TOLERANCE,
) -> Emitted:
    """Write a graph as an ONNX file, in eval mode, and check it with onnxruntime.

    Dynamic axes of the graph stay dynamic; inputs have the names they have in the graph.

    Args:
        graph: the program.
        path: the file; weights of 2 GiB and more go to `<path>.data`.
        opset: ONNX operator set, the exporter's own choice if not given.
        optimize: fold constants and BatchNorm into convolutions; otherwise every operator is kept.
        tolerance: largest difference from the graph allowed, relative to the largest output where that exceeds 1.

    Returns:
        The file, and the largest absolute difference found on random inputs.

    Raises:
        EmitError: the exporter rejects the graph, or the file computes something else; no file is left or changed.
        FileError: the file cannot be written.
    """
    target = Path(path)
    inputs, outputs = _names(graph)
    model = _export(graph, inputs, outputs, opset, optimize)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as draft:
            file = Path(draft) / target.name
            size = sum(t.numel() * t.element_size() for t in graph.tensors.values())
            beside = size > LARGEST
            data = f"{target.name}.data"
            onnx.save(model, str(file), save_as_external_data=beside, location=data if beside else None)
            difference = check(graph, file, tolerance=tolerance)
            for written in sorted(Path(draft).iterdir(), key=lambda p: p.name == target.name):
                os.replace(written, target.parent / written.name)
    except OSError as error:
        raise FileError(f"cannot write {target}", why=str(error), mend="give a path that can be written") from error
    return Emitted(target, difference)


def check(graph: Graph, path: str | Path, *, tolerance: float = TOLERANCE) -> float:
    """Run an ONNX file with onnxruntime and compare it with the graph it was made from.

    Args:
        graph: the graph.
        path: the file.
        tolerance: largest difference allowed, relative to the largest output where that exceeds 1.

    Returns:
        The largest absolute difference on random inputs.

    Raises:
        EmitError: the file cannot be run, or computes something else.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    name = Path(path).name
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EmitError(f"onnxruntime cannot load {name}", why=str(error).splitlines()[0]) from error
    known = [i.name for i in session.get_inputs()]

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        leaves = _leaves(graph, args, kwargs)
        feed = {n: t.numpy() for n, t in zip(_names(graph)[0], leaves, strict=True) if n in known}
        try:
            found = session.run(None, feed)
        except Exception as error:
            raise EmitError(f"onnxruntime cannot run {name}", why=str(error).splitlines()[0]) from error
        tensors = dict(zip(_results(graph), (torch.from_numpy(f.copy()) for f in found), strict=True))
        return _nest(graph.signature.result, tensors)

    return compare(graph, run, tolerance, name)


def _names(graph: Graph) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs of the file."""
    inputs = [n.name or f"input_{i}" for i, n in enumerate(graph.inputs)]
    count = len(_results(graph))
    return inputs, ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _export(graph: Graph, inputs: list[str], outputs: list[str], opset: int | None, optimize: bool) -> onnx.ModelProto:
    """Return the model the exporter of torch makes of a graph."""
    flat = _flat(graph)
    args, _ = random_inputs(flat, EXAMPLE)
    dynamic = tuple(_dynamic(n.results[0]) for n in graph.inputs)
    module = flat.module().eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                args,
                dynamo=True,
                verbose=False,
                optimize=optimize,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic if any(dynamic) else None,
            )
    except (OnnxExporterError, UserError, RuntimeError, ValueError) as error:
        cause = error.__cause__ or error
        raise EmitError(
            f"{graph.name} cannot be written as ONNX",
            where=f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}",
            why="an operator has no ONNX form, or depends on the batch size in a way ONNX cannot say",
        ) from error
    if program is None:
        raise EmitError(f"{graph.name} cannot be written as ONNX", why="the exporter returned nothing")
    model: onnx.ModelProto = program.model_proto
    _name_axes(graph, model)
    _strip(model)
    return model


def _results(graph: Graph) -> list[int]:
    """Return the numbers of the outputs that are computed."""
    return [i for i, v in enumerate(graph.output.arguments.values()) if isinstance(v, Value)]


def _flat(graph: Graph) -> Graph:
    """Return the same program with tensors as arguments and results, whatever their nesting was."""
    args = Tree("tuple", tuple(range(len(graph.inputs))))
    signature = Signature(args=args, kwargs=Tree("dict"), result=Tree("tuple", tuple(_results(graph))))
    return Graph(graph.name, graph.nodes, graph.tensors, signature, graph.history)


def _dynamic(type_: Type) -> dict[int, _DimHint]:
    """Return the axes of an input that are dynamic."""
    if not isinstance(type_, TensorType):
        return {}
    return {axis: Dim.DYNAMIC for axis, size in enumerate(type_.shape) if symbols_of(size)}


def _name_axes(graph: Graph, model: onnx.ModelProto) -> None:
    """Give the dynamic axes of a file the names they have in the graph."""
    shapes = {name: n.results[0] for name, n in zip(_names(graph)[0], graph.inputs, strict=True)}
    new: dict[str, str] = {}
    for value in model.graph.input:
        type_ = shapes.get(value.name)
        if isinstance(type_, TensorType):
            for dim, size in zip(value.type.tensor_type.shape.dim, type_.shape, strict=True):
                if dim.dim_param and str(size).isidentifier():
                    new[dim.dim_param] = str(size)
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"[A-Za-z_]\w*", lambda m: new.get(m[0], m[0]), dim.dim_param)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter noted about the machine and the program: stack traces, file names."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in model.functions:
        for node in function.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes of the exporter about itself (deprecations inside torch, packages not installed) to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _leaves(graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors among the arguments, in the order of the graph's inputs."""
    found: dict[int, torch.Tensor] = {}

    def visit(leaf: Leaf, value: Any) -> None:
        if isinstance(leaf, int):
            found[leaf] = value
        elif isinstance(leaf, Tree):
            for key, child in zip(leaf.keys if leaf.kind == "dict" else range(len(value)), leaf.children, strict=True):
                visit(child, value[key])

    visit(graph.signature.args, args)
    visit(graph.signature.kwargs, kwargs)
    return [found[i] for i in sorted(found)]


def _nest(leaf: Leaf, tensors: Mapping[int, torch.Tensor]) -> Any:
    """Return the outputs in the nesting of the model."""
    if isinstance(leaf, Constant):
        return leaf.value
    if isinstance(leaf, Tree):
        return [_nest(child, tensors) for child in leaf.children]
    return tensors[leaf]
