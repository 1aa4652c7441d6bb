"""The work of the commands that are about one graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from archir.api import candidates
from archir.api import widths as find_widths
from archir.axes.describe import axis_names
from archir.axes.widths import Width
from archir.cli.console import print_table, say
from archir.cost import Cost, cost
from archir.emit.check import tensors_in
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.errors import GrowError, ParseError, PassError
from archir.grow.model import load_model
from archir.grow.objects import call_object
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.load import load
from archir.ir.text import print_graph
from archir.ir.types import parse_dtype
from archir.rewrite.morphism import Morphism, Pass, WidthMorphism
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.spec import format_spec, options_of, parse_specs
from frontends.pytorch import trace
from passes.catalog import PASSES

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def trace_model(
    model: str, output: Path, *, shapes: Sequence[str], inputs: str | None, arguments: str, seed: int
) -> None:
    """Capture a model that is named by its place, and write its graph.

    Raises:
        CaptureError: the model cannot be captured.
        FileError: the file of the model is missing, or the graph cannot be written.
        GrowError: there is no such model, or it cannot be made.
        ParseError: an input or the arguments are not written right.
    """
    torch.manual_seed(seed)
    args, kwargs = _call_inputs(inputs) if inputs else _make_inputs(shapes)
    graph = trace(load_model(model, _json_object(arguments)), args, kwargs)
    graph.save(output)
    found = find_widths(graph)
    say(f"{output}: {_size(cost(graph))}, {len(list(graph.calls))} calls, {len(found)} free widths")


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ParseError("the arguments are not JSON", where=text, why=str(error)) from error
    if not isinstance(found, dict):
        raise ParseError("the arguments are no JSON object", where=text, mend='write {"name": value}')
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
            raise ParseError("this is not an input", where=text, mend="write 2,3,32,32 or i64:2,16") from error
        if min(shape, default=1) < 1:
            raise ParseError("sizes are positive", where=text)
        dtype = parse_dtype(kind or "f32")
        # Zeros are in the range of any table that whole numbers may index.
        tensor = torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
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
    raise GrowError(f"{spec} returns {type(made).__name__}", mend="return a tensor, a tuple, or a dictionary by name")


def show(net: Path, *, widths: bool, locations: bool) -> None:
    """Print a graph as text.

    Raises:
        FileError: the file is missing or damaged.
    """
    graph = load(net)
    say(print_graph(graph, names=axis_names(find_widths(graph)) if widths else None, locations=locations))


def list_widths(net: Path, *, as_json: bool) -> None:
    """List the widths of a graph, free ones first.

    Raises:
        FileError: the file is missing or damaged.
    """
    widths = find_widths(load(net))
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


def list_passes() -> None:
    """List the passes that come with archir, with their options."""
    rows = [(name, _kind(kind), ", ".join(_options(kind)), kind.summary) for name, kind in sorted(PASSES.items())]
    print_table(("pass", "kind", "options", "what it does"), rows)


def _kind(kind: type[Pass]) -> str:
    return "morphism" if issubclass(kind, Morphism) else "pass"


def _options(kind: type[Pass]) -> list[str]:
    return [f"{f.name}: {f.type}" for f in options_of(kind)]


def read_morphisms(text: str) -> list[Morphism]:
    """Return the kinds of rewrite that specifications name.

    Raises:
        ParseError: it is no specification, or names no known pass.
        PassError: a pass is no morphism, or there is none.
    """
    found: list[Morphism] = []
    for pass_ in parse_specs(text, PASSES):
        if not isinstance(pass_, Morphism):
            raise PassError(f"{format_spec(pass_)} is no morphism, so it has no candidates")
        found.append(pass_)
    if not found:
        raise PassError("no kind of rewrite is named", mend="write split; prune")
    return found


def list_sites(net: Path, kind: str, *, as_json: bool) -> None:
    """List the families of candidates of a morphism, and where it does not apply.

    Raises:
        FileError: the file is missing or damaged.
        ParseError: there is no such pass.
        PassError: the pass is no morphism.
    """
    graph = load(net)
    morphisms = read_morphisms(kind)
    rows: list[dict[str, Any]] = []
    for morphism in morphisms:
        prices = {c.spec: c.cost for c in candidates(graph, [morphism])}
        for site in morphism.sites(graph):
            specs = [s for s in map(format_spec, site.members) if s in prices]
            if specs:
                row = {"site": site.label, "pass": morphism.name, "candidates": len(specs), "first": specs[0]}
                rows.append(row | asdict(prices[specs[0]]))
    misses = [m for morphism in morphisms for m in _misses(graph, morphism, {r["site"] for r in rows})]
    if as_json:
        say(json.dumps({"sites": rows, "misses": misses}, indent=2))
        return
    columns = ("site", "pass", "candidates", "parameters", "flops", "first")
    head = ("site", "pass", ">candidates", ">parameters", ">FLOPs", "first")
    cells = [[f"{r[c]:+,}" if c in ("parameters", "flops") else r[c] for c in columns] for r in rows]
    print_table(head, cells, title=f"{sum(r['candidates'] for r in rows)} candidates")
    if misses:
        say("")
        names = ("site", "pass", "reason")
        print_table(names, [[m[n] for n in names] for m in misses], title="where it does not apply")


def _misses(graph: Graph, morphism: Morphism, found: set[str]) -> list[dict[str, str]]:
    if not isinstance(morphism, WidthMorphism):
        return []
    first: dict[str, Any] = {"units": (0,)} if any(f.name == "units" for f in options_of(morphism)) else {}
    rows: list[dict[str, str]] = []
    for width in find_widths(graph):
        miss = None if width.name in found else replace(morphism, width=width.name, **first).match(graph)
        if miss is not None:
            rows.append({"site": width.name, "pass": morphism.name, "reason": miss.reason})
    return rows


def apply_specs(net: Path, specs: str, output: Path | None, *, check: bool) -> None:
    """Apply passes to a graph and write the result.

    Args:
        net: the graph.
        specs: the passes.
        output: the file to write, None for none.
        check: whether to compare outputs before and after, in float64.

    Raises:
        FileError: a file is missing, damaged, or cannot be written.
        ParseError: the text is no specification.
        PassError: a pass does not apply.
    """
    graph = load(net)
    result = apply_passes(graph, parse_specs(specs, PASSES))
    before, after = cost(graph), cost(result)
    rows = [
        (name, f"{old:,}", f"{new:,}", f"{new - old:+,}")
        for name, old, new in (
            ("parameters", before.parameters, after.parameters),
            ("FLOPs of one example", before.flops, after.flops),
            ("bytes of activations", before.bytes, after.bytes),
        )
    ]
    print_table(("", ">before", ">after", ">change"), rows)
    if check:
        worst, scale = difference(graph, result)
        say(f"largest difference of outputs, in float64: {worst:.3g} (largest output {scale:.3g})")
    if output is not None:
        result.save(output)
        say(f"wrote {output}")


def difference(one: Graph, other: Graph, *, batch: int = 4) -> tuple[float, float]:
    """Return the largest difference of the outputs of two graphs on random inputs in float64, and the largest output.

    Raises:
        PassError: the outputs differ in number or shape.
    """
    one, other = one.to(torch.float64), other.to(torch.float64)
    args, kwargs = random_inputs(one, batch)
    with torch.no_grad():
        wanted, found = (tensors_in(g.module().eval()(*args, **kwargs)) for g in (one, other))
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise PassError("the graphs return different shapes")
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, found, strict=True) if a.numel()]
    return max(float((a - b).abs().max()) for a, b in pairs), max(float(a.abs().max()) for a, _ in pairs)


def verify(net: Path) -> None:
    """Check a graph: loading verifies the file and the structure; then it is run.

    Raises:
        FileError: the file is missing or damaged.
        GraphError: it does not run.
    """
    graph = load(net)
    args, kwargs = random_inputs(graph)
    with torch.no_grad():
        results = tensors_in(graph.module().eval()(*args, **kwargs))
    shapes = ", ".join(str(list(t.shape)) for t in results)
    say(f"{net} is sound: {len(list(graph.calls))} calls, {_size(cost(graph))}; on a batch of 2 it returns {shapes}")
    if graph.history:
        say(f"made by {'; '.join(graph.history)}")


def export(net: Path, *, python: Path | None, onnx: Path | None, name: str) -> None:
    """Write a graph as PyTorch source, as ONNX, or both.

    Raises:
        EmitError: it cannot be written, or what is written computes something else.
        FileError: a file is missing, damaged, or cannot be written.
    """
    graph = load(net)
    done = []
    if python is not None:
        done.append(to_python(graph, python, name=name))
    if onnx is not None:
        done.append(to_onnx(graph, onnx))
    for emitted in done:
        say(f"wrote {emitted.path}, largest difference from the graph {emitted.difference:.3g}")


def _size(price: Cost) -> str:
    return f"{price.parameters:,} parameters, {price.flops:,} FLOPs"
