"""The work of the commands passes, sites and apply."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from archir.api import prune_with_compensation
from archir.api import widths as find_widths
from archir.cli.console import print_table, say
from archir.cost import Cost, cost
from archir.emit.check import tensors_in
from archir.errors import FileError, PassError
from archir.growing.batches import Batches
from archir.growing.data import load_data
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.ir.load import load
from archir.ir.running import run
from archir.kinds import morphisms
from archir.plugins import Registry, find_passes, type_name
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, Site, UnitMorphism
from archir.rewrite.passes import Pass
from archir.rewrite.pipeline import apply_passes
from archir.rewrite.set_cost import cost_of
from archir.rewrite.spec import format_spec, format_value, options_of, parse_spec_lines, parse_specs
from passes.prune import Prune


def list_passes(plugins: Sequence[str], *, as_json: bool) -> None:
    """List every pass: its options, what it preserves, and what it does.

    Raises:
        FileError: the file of a plugin is missing.
        PassError: a plugin cannot be loaded, or its passes cannot be used.
    """
    found = [_pass(kind) for _, kind in sorted(find_passes(plugins).items())]
    if as_json:
        say(json.dumps(found, indent=2))
        return
    rows = [(p["name"], p["kind"], _options(p["options"]), p["preserves"], p["summary"]) for p in found]
    print_table(("pass", "kind", "options", "preserves", "what it does"), rows)


def _pass(kind: type[Pass]) -> dict[str, Any]:
    types = get_type_hints(kind)
    return {
        "name": kind.name,
        "kind": "morphism" if issubclass(kind, Morphism) else "pass",
        "options": [{"name": f.name, "type": type_name(types[f.name])} | _default(f) for f in options_of(kind)],
        "preserves": kind.preserves,
        "summary": kind.summary,
    }


def _default(field: Field[Any]) -> dict[str, Any]:
    """Return the default of an option; there is none if it must be given."""
    return {} if field.default is MISSING else {"default": field.default}


def _options(options: Sequence[dict[str, Any]]) -> str:
    """Return options as one would declare them, one a line: `units: tuple[int, ...] = []`."""
    return "\n".join(
        f"{o['name']}: {o['type']}" + (f" = {format_value(o['default'])}" if "default" in o else "") for o in options
    )


def list_sites(net: Path, kinds: str, plugins: Sequence[str], *, as_json: bool) -> None:
    """List the families of candidates of morphisms, and where they do not apply.

    Args:
        net: the graph.
        kinds: specifications of the morphisms.
        plugins: modules whose passes are known, too.
        as_json: print JSON.

    Raises:
        FileError: a file is missing or damaged.
        ParseError: there is no such pass.
        PassError: a pass is no morphism, or a plugin cannot be used.
    """
    graph = load(net)
    rows = [row for morphism in morphisms(kinds, registry=find_passes(plugins)) for row in _sites(graph, morphism)]
    sites, misses = ([r for r in rows if ("reason" in r) == missed] for missed in (False, True))
    if as_json:
        say(json.dumps({"sites": sites, "misses": misses}, indent=2))
        return
    columns = ("site", "pass", ">candidates", ">parameters", ">FLOPs", ">bytes", "first")
    cells = [
        (r["site"], r["pass"], r["candidates"], *(f"{r[c]:+,}" for c in ("parameters", "flops", "bytes")), r["first"])
        for r in sites
    ]
    print_table(columns, cells, title=f"{sum(r['candidates'] for r in sites)} candidates")
    if misses:
        say("")
        names = ("site", "pass", "reason")
        print_table(names, [[m[n] for n in names] for m in misses], title="where it does not apply")


def _sites(graph: Graph, morphism: Morphism) -> Iterator[dict[str, Any]]:
    """Yield a row for each site of a morphism: its candidates and the cost of the first, or why there are none."""
    seen: set[str] = set()
    for site in morphism.sites(graph):
        seen.add(site.label)
        yield {"site": site.label, "pass": morphism.name} | _candidates(graph, site)
    if isinstance(morphism, UnitMorphism):
        first: dict[str, Any] = {"units": (0,)} if any(f.name == "units" for f in options_of(morphism)) else {}
        for width in find_widths(graph):
            found = None if width.name in seen else replace(morphism, width=width.name, **first).match(graph)
            if isinstance(found, Miss):
                yield {"site": width.name, "pass": morphism.name, "reason": found.reason}


def _candidates(graph: Graph, site: Site) -> dict[str, Any]:
    try:
        price = cost_of(graph, site)
    except PassError as error:
        return {"reason": f"{error.what}: {error.why}" if error.why else error.what}
    return {"candidates": len(site.members), **asdict(price), "first": format_spec(site.members[0])}


def read_specs(text: str, registry: Registry) -> list[Pass]:
    """Return passes given as text, or as `@` and the name of a file.

    Raises:
        FileError: the file cannot be read.
        ParseError: it is no specification; in a file, the line is named.
    """
    if not text.startswith("@"):
        return parse_specs(text, registry)
    path = Path(text.removeprefix("@"))
    try:
        return parse_spec_lines(path.read_text(encoding="utf-8"), registry, source=str(path))
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path}", why=str(error)) from error


EXAMPLES, BATCH = 1000, 100
"""Training examples that compensation looks at, and how many of them at a time."""


def apply_specs(
    net: Path, specs: str, plugins: Sequence[str], output: Path | None, *, check: bool, compensate: str | None = None
) -> None:
    """Apply passes to a graph and write the result.

    Args:
        net: the graph.
        specs: the passes, or `@` and a file of them.
        plugins: modules whose passes are known, too.
        output: the file to write, None for none.
        check: whether to compare outputs before and after, in float64.
        compensate: what `load_data` takes, for prunes whose units are compensated for on the training data.

    Raises:
        FileError: a file is missing, damaged, or cannot be written.
        GrowError: the data make no sense.
        ParseError: the text is no specification.
        PassError: a pass does not apply or cannot be compensated, or a plugin cannot be used.
        ScoreError: the graph cannot be evaluated on the data.
    """
    graph, passes = load(net), read_specs(specs, find_passes(plugins))
    result = apply_passes(graph, passes) if compensate is None else _compensated(graph, passes, compensate)
    print_table(("", ">before", ">after", ">change"), cost_rows(cost(graph), cost(result)))
    if check:
        worst, scale = difference(graph, result)
        say(f"largest difference of outputs, in float64: {worst:.3g} (largest output {scale:.3g})")
    if output is not None:
        result.save(output)
        say(f"wrote {output}")


def _compensated(graph: Graph, passes: Sequence[Pass], data: str) -> Graph:
    prunes = [p for p in passes if isinstance(p, Prune)]
    if len(prunes) < len(passes):
        others = ", ".join(sorted({p.name for p in passes if not isinstance(p, Prune)}))
        raise PassError(
            f"only removed units are compensated for, not {others}", hint="apply the other passes before or after"
        )
    train = load_data(data).train
    batches = Batches(train.take(slice(0, EXAMPLES)), BATCH)
    return prune_with_compensation(graph, batches, prunes)


def cost_rows(before: Cost, after: Cost) -> list[tuple[str, str, str, str]]:
    """Return the cells of a table of two costs: name, before, after, change."""
    return [
        (name, f"{old:,}", f"{new:,}", f"{new - old:+,}")
        for name, old, new in (
            ("parameters", before.parameters, after.parameters),
            ("FLOPs of one example", before.flops, after.flops),
            ("bytes of activations", before.bytes, after.bytes),
            ("bytes alive at once", before.peak_bytes, after.peak_bytes),
        )
    ]


def difference(one: Graph, other: Graph, *, batch: int = 4) -> tuple[float, float]:
    """Return the largest difference of the outputs of two graphs on random inputs in float64, and the largest output.

    Raises:
        GraphError: one of them does not run.
        PassError: the outputs differ in number or shape.
    """
    one, other = one.to(torch.float64), other.to(torch.float64)
    args, kwargs = random_inputs(one, batch)
    with torch.no_grad():
        wanted, found = (tensors_in(run(g.module().eval(), args, kwargs)) for g in (one, other))
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise PassError("the graphs return different shapes")
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, found, strict=True) if a.numel()]
    return max(float((a - b).abs().max()) for a, b in pairs), max(float(a.abs().max()) for a, _ in pairs)
