"""The commands that work on graphs: trace, show, widths, passes, sites, apply, diff, verify, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archir.cli.lazy import LazyModule

if TYPE_CHECKING:
    from archir.cli import comparing, graphs, rewriting
else:
    comparing = LazyModule("archir.cli.comparing")
    graphs = LazyModule("archir.cli.graphs")
    rewriting = LazyModule("archir.cli.rewriting")

GraphFile = Annotated[
    Path, typer.Argument(metavar="NET.archir", help="A graph written by trace, apply or grow; or an ONNX file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A module with passes of your own: package.module or file.py; may be repeated."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (trace, show, widths, passes, sites, apply, diff, verify, export):
        app.command()(command)


def trace(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="package.module:name or file.py:name of a model or its factory; or an ONNX file."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The graph to write.")],
    input: Annotated[
        list[str] | None,
        typer.Option(help="An example input: 2,3,32,32 (floats), i64:2,16 (zeros), mask=bool:2,16 (by name)."),
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="file.py:function that returns the example inputs, a tuple or a dictionary.")
    ] = None,
    arguments: Annotated[str, typer.Option(help="Arguments of the factory, as JSON.")] = "{}",
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT:AXIS=NAME",
            help="An axis that may have any size, and what that is called: x:1=T; may be repeated.",
        ),
    ] = None,
    static_batch: Annotated[
        bool, typer.Option("--static-batch", help="Capture for the batch size of the example inputs only.")
    ] = False,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Of an ONNX file: the size of an axis that has a name there."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Capture a PyTorch model, or read an ONNX file, as a graph."""
    if model.lower().endswith(".onnx"):
        if input or inputs or arguments != "{}" or dynamic or static_batch:
            told = "--input, --inputs, --arguments, --dynamic and --static-batch are of PyTorch models"
            raise typer.BadParameter("an ONNX file says what its inputs are", param_hint=told)
        graphs.read_onnx(Path(model), output, sizes=size or [])
        return
    if size:
        raise typer.BadParameter("only axes of ONNX files have names", param_hint="--size")
    if bool(input) == (inputs is not None):
        raise typer.BadParameter("give one of them", param_hint="--input or --inputs")
    graphs.trace_model(
        model,
        output,
        shapes=input or [],
        inputs=inputs,
        arguments=arguments,
        dynamic=dynamic or [],
        static_batch=static_batch,
        seed=seed,
    )


def show(
    net: GraphFile,
    widths: Annotated[bool, typer.Option("--widths", help="Name the widths where they stand.")] = False,
    locations: Annotated[bool, typer.Option("--locations", help="Show where each node comes from.")] = False,
) -> None:
    """Print a graph as text."""
    graphs.show(net, widths=widths, locations=locations)


def widths(net: GraphFile, json: Json = False) -> None:
    """List the widths of a graph, and those that may not change with the reason."""
    graphs.list_widths(net, as_json=json)


def passes(plugin: Plugins = None, json: Json = False) -> None:
    """List the passes: their options, what they preserve, and what they do."""
    rewriting.list_passes(plugin or [], as_json=json)


def sites(
    net: GraphFile,
    kind: Annotated[str, typer.Option("--pass", help="Kinds of rewrite, such as split or widen{count=2}.")] = "split",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """List where a pass applies in a graph and what that costs, and why not elsewhere."""
    rewriting.list_sites(net, kind, plugin or [], as_json=json)


def apply(
    net: GraphFile,
    specs: Annotated[
        str | None, typer.Argument(metavar="SPECS", help='Passes: "split{width=w3, units=[5]}; prune{...}", or @FILE.')
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A file of passes, one or more a line, comments after #.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The graph to write.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare the outputs before and after, in float64.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    compensate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="For prunes: let the units that stay take over, by least squares on training examples of these data "
            "(digits, a .npz, ...). The history keeps the prunes alone; replaying them does not bring the new weights.",
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Apply passes to a graph."""
    if (specs is None) == (file is None):
        raise typer.BadParameter("give one of them", param_hint="SPECS or --file")
    if output is None and not dry_run:
        raise typer.BadParameter("give a file to write, or --dry-run", param_hint="--output")
    rewriting.apply_specs(
        net, specs or f"@{file}", plugin or [], None if dry_run else output, check=check, compensate=compensate
    )


def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE.archir", help="A graph, or an ONNX file.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER.archir", help="The graph to compare it with.")],
    json: Json = False,
) -> None:
    """Tell what changed from one graph to another: operators, widths, stored tensors, cost, history."""
    comparing.diff(before, after, as_json=json)


def verify(net: GraphFile) -> None:
    """Check a graph: the file, its structure and types, and that it runs."""
    graphs.verify(net)


def export(
    net: GraphFile,
    python: Annotated[Path | None, typer.Option(help="Folder for NAME.py and NAME.safetensors.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file.")] = None,
    name: Annotated[str, typer.Option(help="Name of the Python files.")] = "net",
    opset: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Operator set of the ONNX file, 13 to 25.")
    ] = None,
    optimize: Annotated[
        bool, typer.Option("--optimize/--no-optimize", help="Fold and fuse operators of the ONNX file.")
    ] = True,
    batch_norm: Annotated[
        str | None,
        typer.Option(
            metavar="fold|keep",
            help="Fold batch normalisation of the ONNX file into the layers in front of it, or keep it, to train the "
            "file further; kept with --no-optimize, else folded.",
        ),
    ] = None,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Put stored tensors of 1 KiB and more into FILE.data.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Let onnxruntime quantise the weights of the ONNX file to 8-bit integers.")
    ] = False,
    int8_tolerance: Annotated[
        float | None,
        typer.Option(metavar="PART", help="How far that may put outputs off, as a part of the largest; 0.1."),
    ] = None,
) -> None:
    """Write a graph as PyTorch source or as ONNX, checked against it."""
    if python is None and onnx is None:
        raise typer.BadParameter("give a folder or a file to write", param_hint="--python or --onnx")
    of_onnx = {
        "--opset": opset is not None,
        "--no-optimize": not optimize,
        "--batch-norm": batch_norm is not None,
        "--external-data": external_data,
        "--int8": int8,
    }
    given = [option for option, is_given in of_onnx.items() if is_given]
    if onnx is None and given:
        raise typer.BadParameter("this is an option of ONNX files, give one", param_hint=", ".join(given))
    if int8_tolerance is not None and not int8:
        raise typer.BadParameter("this is an option of --int8", param_hint="--int8-tolerance")
    if int8 and not optimize:
        raise typer.BadParameter("leave optimize on for --int8", param_hint="--no-optimize")
    how: dict[str, Any] = {"opset": opset, "optimize": optimize, "batch_norm": batch_norm}
    how |= {"external_data": external_data, "quantise": "int8" if int8 else None}
    how |= {} if int8_tolerance is None else {"int8_tolerance": int8_tolerance}
    graphs.export(net, python=python, onnx=onnx, name=name, how=how)
