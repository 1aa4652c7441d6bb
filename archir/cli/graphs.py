"""The work of the commands trace, show, widths, verify and export."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from archir.api import widths as find_widths
from archir.axes.describe import axis_names
from archir.axes.widths import Width
from archir.cli.console import print_table, say
from archir.cli.nets import load_net
from archir.cost import Cost, cost
from archir.emit.check import tensors_in
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import GrowError, ParseError
from archir.growing.importing import call_object
from archir.growing.model import load_model
from archir.growing.records import from_json
from archir.ir.axis_names import parse_dynamic
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.room import too_large
from archir.ir.running import run
from archir.ir.text import print_graph
from archir.ir.types import parse_dtype
from frontends.onnx.read import from_onnx
from frontends.pytorch import trace

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def trace_model(
    model: str,
    output: Path,
    *,
    shapes: Sequence[str],
    inputs: str | None,
    arguments: str,
    dynamic: Sequence[str],
    static_batch: bool,
    seed: int,
) -> None:
    """Capture a model that is named by its place, and write its graph.

    Raises:
        CaptureError: the model cannot be captured.
        FileError: the file of the model is missing, or the graph cannot be written.
        GrowError: there is no such model, or it cannot be made.
        ParseError: an input, an axis or the arguments are not written right.
    """
    torch.manual_seed(seed)
    axes = parse_dynamic(dynamic)
    args, kwargs = _call_inputs(inputs) if inputs else _make_inputs(shapes)
    module = load_model(model, _json_object(arguments))
    _write(trace(module, args, kwargs, dynamic=axes or None, static_batch=static_batch), output)


def read_onnx(file: Path, output: Path, *, sizes: Sequence[str]) -> None:
    """Read an ONNX file, and write its graph.

    Args:
        file: the file.
        output: the graph to write.
        sizes: numbers for axes that have a name in the file, as they are written on the command line: `height=224`.

    Raises:
        CaptureError: nodes cannot be read.
        FileError: the file is missing or damaged, or the graph cannot be written.
        ParseError: a size is not written right.
    """
    found: dict[str, int] = {}
    for text in sizes:
        name, _, number = text.rpartition("=")
        if not name or not (number.isascii() and number.isdecimal()) or len(number) > _DIGITS:
            raise ParseError("this is not a size", where=text[:200], hint="write NAME=NUMBER, such as height=224")
        found[name] = int(number)
    _write(from_onnx(file, sizes=found), output)


_DIGITS = 18
"""The most digits of a size."""


def _write(graph: Graph, output: Path) -> None:
    graph.save(output)
    found = find_widths(graph)
    say(f"{output}: {_size(cost(graph))}, {len(list(graph.calls))} calls, {len(found)} free widths")


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = from_json(text)
    except ValueError as error:
        raise ParseError("the arguments are not JSON", where=text[:200], why=str(error)) from error
    if not isinstance(found, dict):
        raise ParseError("the arguments are no JSON object", where=text[:200], hint='write {"name": value}')
    return found


def _make_inputs(shapes: Sequence[str]) -> Arguments:
    """Return example inputs as they are written on the command line: `name=i64:2,16`."""
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for text in shapes:
        name, equals, rest = text.rpartition("=")
        kind, _, sizes = rest.rpartition(":")
        try:
            shape = [int(size) for size in sizes.split(",") if size]
        except ValueError as error:
            raise ParseError("this is not an input", where=text[:200], hint="write 2,3,32,32 or i64:2,16") from error
        if min(shape, default=1) < 1:
            raise ParseError("sizes are positive", where=text[:200])
        dtype = parse_dtype(kind or "f32")
        # Floats are drawn as such before they become others.
        why = too_large(math.prod(shape) * (dtype.itemsize + 4 * dtype.is_floating_point))
        if why:
            raise ParseError("this input is too large", where=text[:200], why=why)
        try:
            # Zeros are in the range of any table that whole numbers may index.
            tensor = torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        except RuntimeError as error:  # of types that hold no plain numbers
            raise ParseError("torch cannot make this input", where=text[:200], why=str(error)) from error
        if equals:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return tuple(args), kwargs


def _call_inputs(spec: str) -> Arguments:
    made = call_object(spec)
    if isinstance(made, torch.Tensor):
        return (made,), {}
    if isinstance(made, Mapping):
        return (), dict(made)
    if isinstance(made, tuple | list):
        return tuple(made), {}
    raise GrowError(f"{spec} returns {type(made).__name__}", hint="return a tensor, a tuple, or a dictionary by name")


def show(net: Path, *, widths: bool, locations: bool) -> None:
    """Print a graph as text.

    Raises:
        CaptureError: nodes of an ONNX file cannot be read.
        FileError: the file is missing or damaged.
    """
    graph = load_net(net)
    say(print_graph(graph, names=axis_names(find_widths(graph)) if widths else None, locations=locations))


def list_widths(net: Path, *, as_json: bool) -> None:
    """List the widths of a graph, free ones first.

    Raises:
        CaptureError: nodes of an ONNX file cannot be read.
        FileError: the file is missing or damaged.
    """
    widths = find_widths(load_net(net))
    if as_json:
        say(json.dumps({"free": [_width(w) for w in widths], "frozen": [_width(w) for w in widths.frozen]}, indent=2))
        return
    rows = [(w.name, w.size, ", ".join(sorted(w.roles)), _places(w)) for w in widths]
    print_table(("width", ">size", "roles", "places"), rows, title=f"{len(rows)} free widths")
    rows = [(w.name, w.size, w.reason, _places(w)) for w in widths.frozen]
    if rows:
        say("")
        print_table(("width", ">size", "why it may not change", "places"), rows, title=f"{len(rows)} frozen widths")


def _width(width: Width) -> dict[str, Any]:
    return {
        "name": width.name,
        "size": width.size,
        "roles": sorted(width.roles),
        "places": [{"parameter": p.parameter, "axis": p.axis} for p in width.places],
        "reason": width.reason,
    }


def _places(width: Width, most: int = 4) -> str:
    shown = [f"{p.parameter}[{p.axis}]" for p in width.places]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def verify(net: Path) -> None:
    """Check a graph: loading verifies the file and the structure; then it is run.

    Raises:
        CaptureError: nodes of an ONNX file cannot be read.
        FileError: the file is missing or damaged.
        GraphError: it does not run; the call that fails is named.
    """
    graph = load_net(net)
    args, kwargs = random_inputs(graph)
    with torch.no_grad():
        results = tensors_in(run(graph.module().eval(), args, kwargs))
    shapes = ", ".join(str(list(t.shape)) for t in results)
    say(f"{net} is sound: {len(list(graph.calls))} calls, {_size(cost(graph))}; on a batch of 2 it returns {shapes}")
    if graph.history:
        say(f"made by {'; '.join(graph.history)}")


def export(net: Path, *, python: Path | None, onnx: Path | None, name: str, how: Mapping[str, Any]) -> None:
    """Write a graph as PyTorch source, as ONNX, or both.

    Args:
        net: the file of the graph.
        python: folder of the source.
        onnx: the ONNX file.
        name: name of the source.
        how: options of `to_onnx`.

    Raises:
        EmitError: it cannot be written, or what is written computes something else.
        CaptureError: nodes of an ONNX file cannot be read.
        FileError: a file is missing, damaged, or cannot be written.
    """
    graph = load_net(net)
    done = []
    if onnx is not None:
        if python is not None:  # what either is asked for may be refused: the source is tried before there is a file
            with tempfile.TemporaryDirectory() as scratch:
                to_python(graph, scratch, name=name)
        done.append(to_onnx(graph, onnx, **how))
    if python is not None:
        done.insert(0, to_python(graph, python, name=name))
    for emitted in done:
        say(f"wrote {emitted.path}, {emitted.verdict}")


def _size(price: Cost) -> str:
    return f"{price.parameters:,} parameters, {price.flops:,} FLOPs"
