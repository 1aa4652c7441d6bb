"""Reads an ONNX file as data: nothing in it runs, and no file is opened but those beside it.

Source: ours, on top of `onnx_ir`.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx_ir.passes.common import InlinePass

from archir.errors import CaptureError, FileError, ParseError
from archir.ir.graph import Graph
from archir.ir.guards import parse_guard
from archir.ir.node import MOST_GUARDS
from archir.ir.notes import GUARDS, HISTORY, read_texts
from archir.ir.room import too_large
from frontends.onnx.operators.table import OPERATORS
from frontends.onnx.translate import CONTROL, DOMAINS, translate

OPSETS = range(9, 26)
"""The operator sets of `ai.onnx` that are read."""

MOST_NODES = 200_000
"""The most nodes of a file, functions inlined."""

SUFFIX = ".onnx"
"""How the names of ONNX files end."""


def from_onnx(path: str | os.PathLike[str], *, sizes: Mapping[str, int] | None = None) -> Graph:
    """Read an ONNX file as a graph, whose stored tensors train.

    The first dynamic axis that an input begins with is the batch size `B`; other axes with names stay dynamic and keep
    them, or are called `B1`, `B2`, ... where a size cannot be called so.
    Initialisers of floating-point numbers are parameters, statistics of batch normalisation buffers; names are kept
    where they are not numbers an exporter gave, and so is the history that archir notes in files it writes. What the
    file checks of the sizes of its inputs, as those do that archir writes, guards the graph.

    Args:
        path: the file; tensors that it keeps elsewhere are read from the folder it is in, and from nowhere else.
        sizes: numbers for axes that have a name in the file: `{"height": 224}`.

    Raises:
        CaptureError: the file has nodes that cannot be read, or of an operator set that is not; all of them are named.
        FileError: it is missing, damaged, no ONNX file, or what it keeps elsewhere is.

    Source: ours.
    """
    path = Path(path)
    _check_sizes(sizes or {})
    proto = _parsed(path)
    _check_opsets(path, proto)
    _check_text(path, proto)
    _check_inputs(path, proto)
    _check_nodes(path, proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # whatever it meets in a file that is none
        raise _damaged(path, error) from error
    _check_tensors(path, model)
    _inline(path, model)
    name = re.sub(r"\W", "_", model.graph.name or "")
    stem = re.sub(r"\W", "_", path.stem)[:100] or "net"
    history, guards = (_noted(path, proto, key) for key in (HISTORY, GUARDS))
    try:
        known = tuple(map(parse_guard, guards[:MOST_GUARDS]))
    except ParseError as error:
        raise FileError(f"{path} is damaged", where=f"metadata {GUARDS}", why=str(error)) from error
    return translate(model, stem if name in _UNNAMED else name[:100], sizes or {}, known).with_history(*history)


def _noted(path: Path, proto: onnx.ModelProto, key: str) -> tuple[str, ...]:
    """Return the texts that archir has noted in a file it wrote; none if it did not."""
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        return read_texts(notes.get(key, "[]"))
    except ParseError as error:
        raise FileError(f"{path} is damaged", where=f"metadata {key}", why=error.why or error.hint) from error


_UNNAMED = ("", "main_graph", "main", "torch_jit", "torch_jit_export")
"""What exporters call graphs that have no name."""


def _check_sizes(sizes: Mapping[str, int]) -> None:
    wrong = [f"{name} = {size!r}" for name, size in sizes.items() if type(size) is not int or size < 1]
    if wrong:
        raise CaptureError("sizes are positive integers", where=", ".join(wrong))


def _parsed(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    size = path.stat().st_size
    if why := too_large(3 * size):
        raise FileError(f"{path} is too large", why=why)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise FileError(f"cannot read {path}", why=str(error)) from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise FileError(f"{path} is damaged or no ONNX file", why="it has no graph, or no operator set")
    return proto


def _damaged(path: Path, error: Exception) -> FileError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return FileError(f"{path} is damaged or no ONNX file", why=lines[0][:300])


def _check_opsets(path: Path, proto: onnx.ModelProto) -> None:
    own = {function.domain for function in proto.functions}
    problems = []
    found = [entry.version for entry in proto.opset_import if entry.domain in DOMAINS]
    if not found and not own:
        problems.append("it imports no operators of ai.onnx")
    problems += [
        f"operator set {version} of ai.onnx: {OPSETS.start} to {OPSETS.stop - 1} are read"
        for version in found
        if version not in OPSETS
    ]
    if problems:
        hint = "write it in another operator set: onnx.version_converter.convert_version"
        raise CaptureError(f"{path} cannot be read", why="; ".join(problems), hint=hint)


def _check_text(path: Path, proto: onnx.ModelProto) -> None:
    """Hold a file to text that is text, and to element types that there are."""
    for message in _messages(proto):
        for field, value in message.ListFields():
            if field.type == field.TYPE_STRING:
                texts = [value] if isinstance(value, str | bytes) else value
                if not all(isinstance(text, str) for text in texts):
                    raise FileError(f"{path} is damaged", why=f"a {field.name} in it is no text")
        if isinstance(message, onnx.TensorProto) and message.data_type not in _TYPES:
            why = f"the tensor {message.name} has elements of type {message.data_type}, which there is not"
            raise FileError(f"{path} is damaged", why=why)


_TYPES = {int(kind) for kind in ir.DataType} - {int(ir.DataType.UNDEFINED)}
"""The element types of ONNX."""


def _messages(message: Message) -> Iterator[Message]:
    """Yield a message and all messages in it."""
    todo = [message]
    while todo:
        found = todo.pop()
        yield found
        for field, value in found.ListFields():
            if field.type == field.TYPE_MESSAGE:
                todo += [value] if isinstance(value, Message) else list(value)


def _check_inputs(path: Path, proto: onnx.ModelProto) -> None:
    """Hold a file to inputs whose axes are told; what is told of other values is of no use, and need not be."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    untold = [
        value.name
        for value in proto.graph.input
        if value.name not in stored
        and value.type.HasField("tensor_type")
        and not value.type.tensor_type.HasField("shape")
    ]
    if untold:
        why = f"it does not say how many axes its inputs have: {', '.join(untold)}"
        raise CaptureError(f"{path} cannot be read", why=why, hint="give them shapes: onnx.shape_inference")
    for graph in _messages(proto):
        if isinstance(graph, onnx.GraphProto):
            for value in (*graph.output, *graph.input, *graph.value_info):
                if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
                    value.type.tensor_type.shape.SetInParent()  # the checker wants one


def _check_nodes(path: Path, proto: onnx.ModelProto) -> None:
    """Hold a file to what ONNX says of its nodes; operators that are not read are named first, all of them."""
    functions = {(f.domain, f.name) for f in proto.functions}
    nodes = [message for message in _messages(proto) if isinstance(message, onnx.NodeProto)]
    unknown = [
        f"{node.name or ', '.join(node.output)} ({node.op_type} of {node.domain or 'ai.onnx'})"
        for node in nodes
        if (node.domain, node.op_type) not in functions and not _is_read(node)
    ]
    try:
        onnx.checker.check_model(_without_data(proto))
    except Exception as error:  # what the checker raises is open
        if unknown:
            told = ", ".join(unknown[:_TOLD]) + (f" and {len(unknown) - _TOLD} more" if len(unknown) > _TOLD else "")
            raise CaptureError(f"{path} has operators that cannot be read", why=told) from error
        raise FileError(f"{path} is not sound ONNX", why=_first_lines(error)) from error


_TOLD = 50
"""The most nodes an error names."""


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]


def _is_read(node: onnx.NodeProto) -> bool:
    return node.domain in DOMAINS and (node.op_type in OPERATORS or node.op_type in CONTROL)


def _without_data(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without the places of tensors that are elsewhere, which are checked for themselves."""
    elsewhere = onnx.TensorProto.EXTERNAL
    if not any(isinstance(m, onnx.TensorProto) and m.data_location == elsewhere for m in _messages(proto)):
        return proto
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for tensor in _messages(bare):
        if isinstance(tensor, onnx.TensorProto) and tensor.data_location == elsewhere:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = b""
            tensor.dims[:] = [0]
    return bare


def _check_tensors(path: Path, model: ir.Model) -> None:
    """Hold tensors that are kept elsewhere to files in the folder of the model, and to what these hold.

    Raises:
        FileError: a file is missing, too short, not in the folder, or no plain file; all of them are named.
    """
    folder = path.parent.resolve()
    problems: list[str] = []
    total = 0
    for tensor in _tensors(model):
        size = math.ceil(math.prod(tensor.shape.numpy()) * float(tensor.dtype.itemsize))
        total += size
        if isinstance(tensor, ir.ExternalTensor):
            problem = _external_problem(folder, tensor, size)
            problems += [f"{tensor.name}: {problem}"] if problem else []
            tensor.base_dir = folder
    if problems:
        told = "; ".join(problems[:20]) + (f" and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise FileError(f"{path} keeps tensors where they cannot be read", why=told)
    if why := too_large(2 * total):
        raise FileError(f"{path} holds tensors that are too large", why=why)


def _external_problem(folder: Path, tensor: ir.ExternalTensor, size: int) -> str:
    text = str(tensor.location)
    where = Path(text)
    shown = repr(text[:200])
    if not text or text.endswith("/") or where.is_absolute() or ".." in where.parts or "\\" in text or "\0" in text:
        return f"{shown} is no place in the folder of the model"
    file = folder / where
    try:
        found = os.lstat(file)
        inside = file.resolve(strict=True).is_relative_to(folder)
    except OSError as error:
        return f"there is no file {shown}" if isinstance(error, FileNotFoundError) else f"{shown}: {error.strerror}"
    if not inside:
        return f"{shown} leads out of the folder of the model"
    if not stat.S_ISREG(found.st_mode):
        return f"{shown} is no plain file"
    start, length = tensor.offset or 0, size if tensor.length is None else tensor.length
    if start < 0 or length != size or start + length > found.st_size:
        return f"{shown} has {found.st_size:,} bytes, and {size:,} from {start:,} on are wanted"
    return ""


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor of a model."""
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
    for node in _all_nodes(model):
        for attribute in node.attributes.values():
            if isinstance(attribute, ir.Attr) and not attribute.is_ref():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _inline(path: Path, model: ir.Model) -> None:
    """Put the nodes of functions where they are called."""
    if not model.functions:
        return
    counts: dict[ir.OperatorIdentifier, int] = {}

    def count(nodes: Iterator[ir.Node], inside: frozenset[ir.OperatorIdentifier]) -> int:
        total = 0
        for node in nodes:
            called = node.op_identifier()
            if called in inside:
                raise FileError(f"{path} has a function that calls itself", where=":".join(called))
            if called in model.functions:
                if called not in counts:
                    counts[called] = count(model.functions[called].all_nodes(), inside | {called})
                total += counts[called]
            total += 1
        return total

    try:
        if count(model.graph.all_nodes(), frozenset()) > MOST_NODES:
            raise FileError(f"{path} is too large", why=f"it has more than {MOST_NODES:,} nodes with functions inlined")
        InlinePass()(model)
    except FileError:
        raise
    except Exception as error:  # whatever it meets in functions that make no sense
        raise _damaged(path, error) from error
