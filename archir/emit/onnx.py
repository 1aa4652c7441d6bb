"""Writes a graph as an ONNX file and checks it with onnxruntime."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import _DimHint
from torch.fx.experimental import _config as symbolic_config

from archir.emit.assertions import assert_sizes
from archir.emit.check import Agreement, Emitted, Run, agree
from archir.emit.files import place
from archir.emit.foreign import as_error, quiet
from archir.emit.int8 import INT8_TOLERANCE, bytes_of, compare_quantised, operators, quantised, refuse_quantising
from archir.emit.metadata import describe, describe_quantised
from archir.emit.nesting import given, nested
from archir.emit.neutral import free, neutral, rename, restore_outputs, results
from archir.emit.opset import NATIVE, lower, opset_of, refuse
from archir.emit.optimising import BatchNorm, chosen_batch_norm, optimise
from archir.errors import EmitError, FileError
from archir.ir.any_length import any_length
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.node import Value
from archir.ir.types import TensorType, Type, symbols_of

TOLERANCE = 1e-4
ROUNDINGS = 8
"""How many roundings to half precision a runtime may do differently: it adds in other orders, and widens in between."""

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
    batch_norm: BatchNorm | None = None,
    external_data: bool = False,
    quantise: Literal["int8"] | None = None,
    tolerance: float = TOLERANCE,
    int8_tolerance: float | None = None,
) -> Emitted:
    """Write a graph as an ONNX file, in eval mode, and check it with onnxruntime.

    Dynamic axes of the graph stay dynamic; inputs have the names they have in the graph. A tensor of complex numbers is
    one of real numbers with a last axis of 2. What the sizes of the inputs have to satisfy is
    stated in the file (metadata `requires` and its description), and running it fails where they do not. What network
    it is, what it costs and which passes led to it is noted in it (`archir.emit.metadata`).

    Args:
        graph: the program.
        path: the file; weights of 2 GiB and more go to `<path>.data`.
        opset: ONNX operator set, 13 to 25; the exporter's own choice if not given.
        optimize: fold constants, and fuse operators; otherwise every operator is kept.
        batch_norm: `"fold"`: batch normalisation becomes part of the convolution or the linear layer in front of it;
            `"keep"`: it stays, as training the file further needs it. Folded if not given, and kept without `optimize`.
        external_data: put stored tensors of 1 KiB and more into `<path>.data`, however few they are.
        quantise: `"int8"`: once the file in floating point is checked, let onnxruntime make one of it whose
            convolutions and matrix products have 8-bit weights, and quantise their inputs as they come.
        tolerance: largest difference from the graph allowed, relative to the largest output where that exceeds 1;
            at least 8 roundings for outputs that half precision leads to.
        int8_tolerance: largest difference of a quantised file from the one in floating point allowed, relative to the
            largest element of each output; `INT8_TOLERANCE` if not given.

    Returns:
        The file, the largest absolute difference found on random inputs, what could not be compared, and what was
        quantised.

    Raises:
        EmitError: the exporter rejects the graph, the operator set cannot be written, the file computes something
            else, it cannot be quantised or is too far off then, or there is no such choice; no file is left or changed.
        FileError: the file cannot be written.
    """
    refuse(opset)
    refuse_quantising(graph, quantise, int8_tolerance, optimize=optimize)
    norms = chosen_batch_norm(batch_norm, optimize=optimize)
    target = Path(path)
    model = _export(graph, opset, optimize, norms)
    opset = opset_of(model) if opset is None else opset
    describe(graph, model)
    size = sum(t.numel() * t.element_size() for t in graph.tensors.values())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as draft:
            file = _folder(draft, "float") / target.name
            _save(model, file, beside=external_data or size > LARGEST)
            _read_back(file, opset)
            agreement = check(graph, file, tolerance=tolerance)
            found = Emitted(target, agreement.difference, agreement.undefined, agreement.why)
            if quantise is not None:
                rounded = quantised(model, file, _folder(draft, "between"))
                kinds = operators(rounded)
                describe_quantised(rounded, kinds)
                exact, file = file, _folder(draft, quantise) / target.name
                _save(rounded, file, beside=external_data or bytes_of(rounded) > LARGEST)
                _read_back(file, opset)
                runs = _runner(graph, exact), _runner(graph, file)
                limit = INT8_TOLERANCE if int8_tolerance is None else int8_tolerance
                difference, about = compare_quantised(graph, *runs, limit, target.name, kinds)
                found = replace(found, difference=difference, quantised=about)
            stale = None if file.with_name(f"{target.name}.data").exists() else _stored_beside(target)
            place(sorted(file.parent.iterdir(), key=lambda p: p.name == target.name), target.parent)
            if stale is not None:
                stale.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"cannot write {target}", why=str(error), hint="give a path that can be written") from error
    return found


def _folder(draft: str, name: str) -> Path:
    folder = Path(draft) / name
    folder.mkdir()
    return folder


def check(graph: Graph, path: str | Path, *, tolerance: float = TOLERANCE) -> Agreement:
    """Run an ONNX file with onnxruntime and compare it with the graph it was made from.

    Args:
        graph: the graph.
        path: the file.
        tolerance: largest difference allowed, relative to the largest output where that exceeds 1.

    Returns:
        The largest absolute difference on random inputs, and how many output elements could not be compared.

    Raises:
        EmitError: the file cannot be run, or computes something else.
    """
    return agree(graph, _runner(graph, path), tolerance, Path(path).name, roundings=ROUNDINGS)


def _runner(graph: Graph, path: str | Path) -> Run:
    """Return what runs a file on arguments of the graph.

    Raises:
        EmitError: the file cannot be loaded, or has other outputs.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    name = Path(path).name
    kinds = {t.dtype for t in graph.tensors.values() if t.is_floating_point()} - {torch.float32}
    hint = "write it in single precision: graph.to(torch.float32)" if kinds else ""
    with as_error(f"onnxruntime cannot load {name}", hint=hint):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    outputs = results(graph)
    if len(session.get_outputs()) != len(outputs):
        raise EmitError(f"{name} has {len(session.get_outputs())} outputs, and the graph {len(outputs)}")

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        with as_error(f"onnxruntime cannot run {name}"):
            inputs = zip(_names(graph)[0], given(graph, args, kwargs), strict=True)
            found = session.run(None, {n: _array(value) for n, value in inputs if n in known})
            return nested(graph, {v: _tensor(graph, v, array) for v, array in zip(outputs, found, strict=True)})

    return run


def _array(value: object) -> Any:
    tensor = torch.as_tensor(value)
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).numpy()


def _tensor(graph: Graph, value: Value, array: Any) -> torch.Tensor:
    tensor, type_ = torch.from_numpy(array.copy()), graph.type_of(value)
    apart = isinstance(type_, TensorType) and type_.dtype.is_complex and not tensor.is_complex()
    return torch.view_as_complex(tensor) if apart else tensor


def _names(graph: Graph) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs of the file; no two are the same."""
    inputs = [n.name or f"input_{i}" for i, n in enumerate(graph.inputs)]
    count = len(results(graph))
    stem = "output"
    while any(name == stem or name.startswith(f"{stem}_") for name in inputs):
        stem = f"{stem}_"
    return inputs, [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def _export(graph: Graph, opset: int | None, optimize: bool, norms: BatchNorm) -> onnx.ModelProto:
    """Return the model the exporter of torch makes of a graph."""
    bare = neutral(graph)
    args, _ = random_inputs(bare, EXAMPLE)
    dynamic = tuple(_dynamic(n.results[0]) for n in graph.inputs)
    module = bare.module().eval().requires_grad_(False)
    with (
        as_error(
            f"{graph.name} cannot be written as ONNX",
            lambda message: _place(graph, message),
            "an operator has no ONNX form, or depends on the batch size in a way ONNX cannot say",
        ),
        quiet(),
        any_length(),
        torch.no_grad(),
        # A batch of one is a batch like others: a graph may be for no more than two.
        symbolic_config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
    ):
        captured = torch.export.export(module, args, dynamic_shapes=dynamic if any(dynamic) else None, strict=False)
        _forget_strides(captured)
        program = torch.onnx.export(
            captured,
            dynamo=True,
            verbose=False,
            optimize=False,
            opset_version=opset if opset is None else max(opset, NATIVE),
            input_names=[node.name for node in bare.inputs],
        )
        assert program is not None
        if optimize:
            optimise(program, norms)
        model: onnx.ModelProto = program.model_proto
        _strip(model)
        rename(model, _true_names(graph, bare, model))
        _name_axes(graph, model)
        assert_sizes(graph, model, _names(graph)[0])
        return model if opset is None or opset_of(model) <= opset else lower(model, opset)


def _true_names(graph: Graph, bare: Graph, model: onnx.ModelProto) -> dict[str, str]:
    """Return what each input, output and stored tensor is called in the file, by its name in the model as exported.

    Inputs and outputs come first: a stored tensor with the name of one gets a number.
    """
    inputs, outputs = _names(graph)
    names = dict(zip(restore_outputs(graph, model), outputs, strict=True))
    names |= dict(zip((n.name for n in bare.inputs), inputs, strict=True))
    taken = {*inputs, *outputs}
    for old, node in zip(bare.parameters, graph.parameters, strict=True):
        assert old.parameter is not None and node.parameter is not None
        names[old.parameter.names[0]] = found = free(node.parameter.names[0], taken)
        taken.add(found)
    return names


def _forget_strides(captured: ExportedProgram) -> None:
    """Let every view be a reshape again: decompositions change the strides that a view was found to fit."""
    for node in captured.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    captured.graph_module.recompile()


def _save(model: onnx.ModelProto, file: Path, *, beside: bool) -> None:
    """Write a model, with its tensors in a second file if asked."""
    with as_error(f"{file.name} cannot be written as ONNX"):
        onnx.save(model, str(file), save_as_external_data=beside, location=f"{file.name}.data" if beside else None)


def _stored_beside(file: Path) -> Path | None:
    """Return the second file of an ONNX file that is there, if it stores tensors in one of the name written here."""
    try:
        stored = onnx.load(str(file), load_external_data=False).graph.initializer
    except (OSError, DecodeError):
        return None
    beside = f"{file.name}.data"
    places = {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"}
    return file.with_name(beside) if beside in places else None


def _read_back(file: Path, opset: int) -> None:
    """Hold a file to the operator set it was asked for."""
    with as_error(f"{file.name} is not ONNX"):
        found = opset_of(onnx.load(str(file), load_external_data=False))
        onnx.checker.check_model(str(file))
    if found != opset:
        raise EmitError(
            f"ONNX operator set {opset} cannot be written",
            why=f"an operator of the model has no form in it, and the exporter stopped at {found}",
            hint=f"give opset {found}, or none",
        )


def _place(graph: Graph, message: str) -> str:
    """Return the place in the user's program of the operator an error of the exporter names; empty if there is none."""
    named = re.findall(r"\b(?:aten|prims)[.:]+(\w+)(?:\.(\w+))?", message)
    calls = [n for n in graph.calls if n.op.startswith("aten.")]
    found = [n for name, form in named for n in calls if n.op == f"aten.{name}.{form}"]
    found += [n for name, _ in named for n in calls if _akin(n.op.split(".")[1], name)]
    return f"{found[0].op}, {found[0].location or ''}".rstrip(", ") if found else ""


def _akin(one: str, other: str) -> bool:
    """Say whether an operator is named for another: `cdist` and what it is made of, `_cdist_forward`."""
    short, long = sorted((one.replace("_", ""), other.replace("_", "")), key=len)
    return len(short) > 3 and short in long


def _dynamic(type_: Type) -> dict[int, _DimHint]:
    """Return the axes of an input that are dynamic."""
    if not isinstance(type_, TensorType):
        return {}
    return {axis: Dim.DYNAMIC for axis, size in enumerate(type_.shape) if symbols_of(size)}


def _name_axes(graph: Graph, model: onnx.ModelProto) -> None:
    """Give the dynamic axes of a file the names they have in the graph.

    The exporter calls one that its recurrent layers run along by the size it was exported with.
    """
    inputs, outputs = _names(graph)
    types = dict(zip(inputs, (node.results[0] for node in graph.inputs), strict=True))
    made = dict(zip(outputs, map(graph.type_of, results(graph)), strict=True))
    new: dict[str, str] = {}
    for value in [*model.graph.input, *model.graph.output]:
        type_ = types.get(value.name, made.get(value.name))
        if isinstance(type_, TensorType):
            for dim, size in zip(value.type.tensor_type.shape.dim, type_.shape, strict=False):
                if not isinstance(size, int) and str(size).isidentifier():
                    if dim.dim_param and value.name in types:
                        new[dim.dim_param] = str(size)
                    dim.dim_param = str(size)
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in new.values():
                whole = re.sub(r"[A-Za-z_]\w*", lambda m: new.get(m[0], m[0]), dim.dim_param)
                dim.dim_param = new.get(dim.dim_param, whole)


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
