"""The work of the commands `grow`, `compress` and `report`: a run from its configuration to its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from archir.captured import trace_on
from archir.cli.console import RunProgress, print_table, say
from archir.cli.nets import load_net
from archir.cost import cost
from archir.emit.onnx import to_onnx
from archir.emit.python import to_python
from archir.growing.compress import compress_graph
from archir.growing.config import RunConfig, read_config
from archir.growing.controls import Control, train_controls
from archir.growing.data import Dataset
from archir.growing.device import find_device, moved
from archir.growing.grow import Run, grow_graph
from archir.growing.input_types import input_types
from archir.growing.latency import measure_latency
from archir.growing.launch import launched
from archir.growing.lock import lock_run
from archir.growing.model import load_model
from archir.growing.options import GrowOptions
from archir.growing.plot import plot
from archir.growing.report import Report, make_report
from archir.growing.report_tables import (
    columns,
    columns_of_endings,
    columns_of_test,
    notes,
    notes_on_test,
    rows,
    rows_of_endings,
    rows_of_test,
)
from archir.growing.run import RunDirectory, open_run
from archir.growing.training import evaluate
from archir.ir.axis_names import parse_dynamic
from archir.ir.graph import Graph
from archir.kinds import COMPRESSING, morphisms
from archir.plugins import find_passes
from archir.scoring.losses import Loss
from archir.scoring.processes import ALONE, Processes

ENDINGS = "validation data: what the run might have ended with (training FLOPs, seconds: of each alone)"
"""The title of the table of the networks beside the grown one."""

INTERRUPTED = 130
"""Exit code of a run that was interrupted."""


def grow(
    path: Path,
    *,
    data: str | None,
    rule: str | None,
    device: str | None,
    sharded: bool | None,
    plugins: Sequence[str],
    out: Path | None,
    resume: bool,
    controls: bool,
    quiet: bool,
) -> None:
    """Carry out the run of a configuration file, and write the grown network.

    All processes that `torchrun` has started carry it out together; the first of them writes and prints.

    Args:
        path: the configuration.
        data: other data than the file's.
        rule: another rule to choose candidates by than the file's.
        device: another device to compute on than the file's.
        sharded: whether each process holds a shard of what is trained, if not as the file says.
        plugins: modules whose passes are known, beside those the file names.
        out: another directory than the file's.
        resume: go on with the run in the directory.
        controls: train networks that do not grow, too, to compare with.
        quiet: show no progress.

    Raises:
        ArchirError: of whatever part goes wrong; nothing has been written unless the training had begun.
        SystemExit: it was interrupted.
    """
    config = _configured(path, data, rule, device, sharded)
    directory = config.output if out is None else out
    with launched() as processes:
        others = processes.rank > 0
        quiet = quiet or others
        found = _carried_out(config, directory, plugins, processes, resume=resume, quiet=quiet)
        dataset, loss, graph, run = found
        trained: list[Control] = []
        if controls:
            limits, spent, options = config.budget.resolved(cost(graph)), training_flops_of(run), config.options
            with RunProgress(quiet=quiet) as progress, _interruptible(progress, directory, "--resume --controls"):
                trained = train_controls(
                    graph, limits, spent, dataset, loss, options, directory, on_event=progress, processes=processes
                )
    if others:
        return
    title = f"{path.stem}: {cost_line(run.graph)}"
    finish(run, dataset, loss, directory, config.options, title=title, controls=trained)


def compress(
    path: Path,
    *,
    data: str | None,
    rule: str | None,
    device: str | None,
    sharded: bool | None,
    plugins: Sequence[str],
    out: Path | None,
    resume: bool,
    quiet: bool,
) -> None:
    """Contract the trained network of a configuration file into its budget, and write what it has become.

    All processes that `torchrun` has started do so together, see `grow`.

    Args:
        path: the configuration; the model is the trained network.
        data: other data than the file's.
        rule: another rule to choose candidates by than the file's.
        device: another device to compute on than the file's.
        sharded: whether each process holds a shard of what is trained, if not as the file says.
        plugins: modules whose passes are known, beside those the file names.
        out: another directory than the file's.
        resume: go on with the run in the directory.
        quiet: show no progress.

    Raises:
        ArchirError: of whatever part goes wrong; nothing has been written unless the first contraction had begun.
        SystemExit: it was interrupted.
    """
    config = _configured(path, data, rule, device, sharded)
    directory = config.output if out is None else out
    with launched() as processes:
        others = processes.rank > 0
        quiet = quiet or others
        found = _carried_out(config, directory, plugins, processes, resume=resume, quiet=quiet, compresses=True)
    if others:
        return
    dataset, loss, graph, run = found
    title = f"{path.stem}: {cost_line(graph)} -> {cost_line(run.graph)}"
    before = Control("before", graph, graph.module().eval())
    finish(run, dataset, loss, directory, config.options, title=title, controls=[before])


def _configured(path: Path, data: str | None, rule: str | None, device: str | None, sharded: bool | None) -> RunConfig:
    """Return a configuration, with other data, rule, device or shards than the file's if they are given.

    Raises:
        GrowError: there is no such rule, or no such device.
    """
    config = read_config(path).on(device, sharded=sharded)
    find_device(config.options.device)
    config = config if data is None else config.with_data(data)
    return config if rule is None else config.with_rule(rule)


def _carried_out(
    config: RunConfig,
    directory: Path,
    plugins: Sequence[str],
    processes: Processes,
    *,
    resume: bool,
    quiet: bool,
    compresses: bool = False,
) -> tuple[Dataset, Loss, Graph, Run]:
    """Return the examples, the loss, and the network before and after a run."""
    with RunProgress(quiet=quiet) as progress:
        loss = config.find_loss()
        graph, dataset = seed_and_data(config)
        dataset = dataset.changed(input_types(graph))
        with _interruptible(progress, directory, "--resume"):
            run = start(
                config,
                graph,
                dataset,
                loss,
                directory,
                progress,
                plugins=plugins,
                resume=resume,
                compresses=compresses,
                processes=processes,
            )
    return dataset, loss, graph, run


@contextmanager
def _interruptible(progress: RunProgress, directory: Path, options: str) -> Iterator[None]:
    """Tell whoever interrupts the block with which options the run goes on, and end the program."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        progress.line(f"interrupted; the run in {directory} goes on with {options}")
        raise SystemExit(INTERRUPTED) from interrupt


def seed_and_data(config: RunConfig) -> tuple[Graph, Dataset]:
    """Return the seed network of a configuration, and its examples, which go by the names of its arguments.

    Raises:
        CaptureError: the model cannot be captured on the examples, or nodes of an ONNX file cannot be read.
        FileError: a file is missing or damaged.
        GrowError: there is no such model, or it cannot be made; or the source of the data makes no sense.
        ScoreError: examples that are mappings have no entry of targets.
    """
    source = config.model
    if source.graph is not None:
        graph = load_net(config.base / source.graph)
        return graph, config.load_data(input_types(graph).keywords)
    torch.manual_seed(config.options.seed)
    model = load_model(source.factory or "", source.arguments, base=config.base)
    dataset = config.load_data(input_types(model).keywords)
    return trace_on(model, dataset.train, parse_dynamic(source.dynamic)), dataset


def start(
    config: RunConfig,
    graph: Graph,
    dataset: Dataset,
    loss: Loss,
    directory: Path,
    progress: RunProgress,
    *,
    plugins: Sequence[str] = (),
    resume: bool = False,
    replace: bool = False,
    compresses: bool = False,
    processes: Processes = ALONE,
) -> Run:
    """Carry out a run, of growth or of compression; everything that can be is checked before its directory is made.

    Raises:
        ArchirError: of whatever part goes wrong.
    """
    registry = find_passes(plugins, known=find_passes(config.plugins, base=config.base))
    default = COMPRESSING if compresses else config.options.kinds
    kinds = morphisms("; ".join(config.passes) or default, registry=registry)
    carry_out = compress_graph if compresses else grow_graph
    return carry_out(
        graph,
        train=dataset.train,
        validation=dataset.validation,
        loss=loss,
        budget=config.budget,
        options=config.options,
        morphisms=kinds,
        directory=directory,
        config=config.text,
        resume=resume,
        replace=replace,
        on_event=progress,
        processes=processes,
    )


def finish(
    run: Run,
    dataset: Dataset,
    loss: Loss,
    directory: Path,
    options: GrowOptions,
    *,
    title: str,
    controls: Sequence[Control] = (),
) -> None:
    """Test the network, tell what the run did, and write the plot, the PyTorch source and the ONNX file.

    The test data are read here, once everything is chosen. The network is emitted last: where that fails, all else is
    there.

    Args:
        run: the run.
        dataset: the examples.
        loss: what is measured.
        directory: the directory of the run.
        options: those of the run: the networks are tested where it was computed, on as many examples at once as in
            training, for the value of a coupled loss may depend on it.
        title: what stands above the plot.
        controls: networks to test beside it.

    Raises:
        EmitError: the network cannot be emitted, or what is emitted computes something else.
        FileError: a file cannot be written, another process writes into the directory, or the test data are damaged.
        GrowError: the loss on the test data is not finite.
    """
    kept = open_run(directory)
    with lock_run(directory):
        _test(run, dataset, loss, kept, options, controls)
        report = make_report(kept.history())
        plot(report, directory / "growth.png", title=title)
        _print_report(report)
        python = to_python(run.graph, directory, name="net")
        onnx = to_onnx(run.graph, directory / "net.onnx")
        kept.append("emitted", python=python.difference, onnx=onnx.difference)
    say(f"largest difference from the graph: PyTorch source {python.difference:.2g}, ONNX {onnx.difference:.2g}")
    say(f"written into {directory}: net.py, net.safetensors, net.onnx, history.jsonl, growth.png")


def _test(
    run: Run, dataset: Dataset, loss: Loss, kept: RunDirectory, options: GrowOptions, controls: Sequence[Control]
) -> None:
    """Record how the grown network and those beside it do on the test data."""
    report = make_report(kept.history())
    timed, device = "latency" in report.costs, find_device(options.device)
    name = f"{'compressed' if report.compresses else 'grown'}{', retrained' if report.kept == 'retrained' else ''}"
    ours = Control(name, run.graph, run.model, training_flops_of(run))
    for control in (*controls, ours):
        module, price = moved(control.graph, device).module(), cost(control.graph)
        metrics = None if control.failure else evaluate(module, dataset.test, loss, batch_size=options.batch_size)
        kept.append(
            "tested" if control is ours else "control",
            name=control.name,
            parameters=price.parameters,
            flops=price.flops,
            training_flops=control.training_flops,
            peak_bytes=price.peak_bytes,
            latency=measure_latency(module, dataset.validation) if timed else None,
            loss=metrics and metrics.loss,
            accuracy=metrics and metrics.accuracy,
            failure=control.failure,
        )


def training_flops_of(run: Run) -> int:
    """Return the FLOPs that a finished run has spent on training and on growth steps."""
    return next(int(e["training_flops"]) for e in reversed(run.history) if e["event"] == "finished")


def cost_line(graph: Graph) -> str:
    """Return the size of a graph in words."""
    price = cost(graph)
    return f"{price.parameters:,} parameters, {price.flops:,} FLOPs"


def _print_report(found: Report) -> None:
    """Print the tables of a finished run."""
    print_table(columns(found), rows(found), title=f"{found.kind} (predicted, realised: changes of the loss)")
    for note in notes(found):
        say(note)
    if found.endings:
        say("")
        print_table(columns_of_endings(), rows_of_endings(found), title=ENDINGS)
    say("")
    print_table(columns_of_test(found), rows_of_test(found), title=_test_title(found))
    for note in notes_on_test(found):
        say(note)
    say("")


def _test_title(report: Report) -> str:
    return f"test data, after {report.steps} steps{' each' if len(report.tested) > 1 else ''}"


def report(directory: Path, *, picture: Path | None, markdown: bool, as_json: bool) -> None:
    """Tell what a run did, finished or not.

    Raises:
        FileError: there is no run, its history is damaged, or the plot cannot be written.
        GrowError: the run has not begun.
    """
    found = make_report(open_run(directory).history())
    if picture is not None:
        plot(found, picture, title=directory.name)
    if as_json:
        say(json.dumps(asdict(found), indent=2))
        return
    tables = [(columns(found), rows(found))]
    tables += [(columns_of_endings(), rows_of_endings(found))] if found.endings else []
    tables += [(columns_of_test(found), rows_of_test(found))] if found.tested else []
    for number, (names, cells) in enumerate(tables):
        if number:
            say("")
        if markdown:
            say(markdown_table(names, cells))
        else:
            print_table(names, cells)
    for note in notes_on_test(found):
        say(note)


def markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown; columns whose names begin with `>` are aligned to the right."""
    head = [c.removeprefix(">") for c in columns]
    rule = ["---:" if c.startswith(">") else ":---" for c in columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *cells))
