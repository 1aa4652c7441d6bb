"""The commands that need data: score, grow, compress, report, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archir.cli.graph_commands import GraphFile, Json, Plugins, Seed
from archir.cli.lazy import LazyModule

if TYPE_CHECKING:
    import archir.cli.demo as demonstration
    import archir.cli.growing as growing
    import archir.cli.scoring as scoring
    import archir.cli.shrinking as shrinking
    import archir.scoring.options as score_options
else:
    demonstration = LazyModule("archir.cli.demo")
    growing = LazyModule("archir.cli.growing")
    scoring = LazyModule("archir.cli.scoring")
    shrinking = LazyModule("archir.cli.shrinking")
    score_options = LazyModule("archir.scoring.options")

PASSES = "split; prune"
"""Kinds of rewrite that are scored where no others are asked for."""

REFINE = 64
"""Number of candidates that are refined where no other is asked for."""

Device = Annotated[
    str | None,
    typer.Option(help="Compute on another device than the file's: auto, cpu, cuda, cuda:1, ...", show_default=False),
]

Sharded = Annotated[
    bool | None,
    typer.Option(
        "--sharded/--whole",
        help="Let each process hold a shard of what is trained, or all of it, whatever the file says.",
        show_default=False,
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (score, grow, compress, report, demo):
        app.command()(command)


def score(
    net: GraphFile,
    data: Annotated[str, typer.Option(help="digits, a .npz, IDX files, a folder of class folders, file.py:function.")],
    loss: Annotated[
        str, typer.Option(help="cross_entropy, mse, bce_with_logits, or file.py:function.")
    ] = "cross_entropy",
    passes: Annotated[
        str | None, typer.Option(help="Kinds of rewrite: split; prune, or prune with --shrink-to.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of candidates to list.")] = 20,
    examples: Annotated[int, typer.Option(help="Held-out examples to score on.")] = 1000,
    batch_size: Annotated[int, typer.Option()] = 128,
    learn_steps: Annotated[int, typer.Option(help="Steps of learning.")] = 100,
    refine: Annotated[int, typer.Option(help="Number of candidates to refine in forward mode.")] = REFINE,
    chunk: Annotated[
        int | None, typer.Option(help="Most tangents pushed through at once; as many as fit if not given.")
    ] = None,
    batch_statistics: Annotated[
        bool, typer.Option("--batch-statistics", help="Normalise by each batch, as in training.")
    ] = False,
    members: Annotated[
        int | None,
        typer.Option("--set", min=1, metavar="K", help="Choose a set of so many at most, and learn it together."),
    ] = None,
    shrink_to: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="Choose units to remove until the network is within a budget: 0.5 (of its FLOPs), parameters=0.5, "
            "flops=120000, ...; several with commas between.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the chosen units into this file, for apply --file.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds to choose them in, each scored on what the last one left.")
    ] = None,
    plugin: Plugins = None,
    seed: Seed = 0,
    json: Json = False,
    save: Annotated[Path | None, typer.Option(help="Write all scores into this file, as JSON.")] = None,
    annotate: Annotated[
        Path | None, typer.Option(help="Write the graph's text into this file, the best prediction at each place.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="List them in the order of another rule: random, gradmax, ...")
    ] = None,
) -> None:
    """Predict what each candidate rewrite, or a set of them, would do to the loss."""
    if shrink_to is None and (output is not None or rounds is not None):
        raise typer.BadParameter("it goes with --shrink-to", param_hint="--rounds" if output is None else "--output")
    if shrink_to is not None:
        if save or annotate or members is not None or chunk is not None or refine != REFINE:
            why = "units are chosen to come down to the budget, and nothing is listed, saved or learned"
            raise typer.BadParameter(why, param_hint="--shrink-to")
        if passes not in (None, "prune"):
            raise typer.BadParameter("only units are removed: leave it out", param_hint="--passes")
        subject = scoring.read_subject(
            net, data, loss, "prune", examples=examples, batch_size=batch_size, seed=seed, plugins=plugin or []
        )
        options = score_options.ScoreOptions(steps=0, batch_statistics=batch_statistics, seed=seed)
        shrinking.shrink_to(subject, shrink_to, options, rule=rule, rounds=rounds, output=output, as_json=json)
        return
    if rule is not None:
        if save or annotate:
            raise typer.BadParameter("only scores can be saved, not the order of a rule", param_hint="--rule")
        if members is not None or refine != REFINE or chunk is not None:
            why = "a rule gives an order; candidates are refined, and a set is chosen, without one"
            raise typer.BadParameter(why, param_hint="--rule")
        if batch_statistics:
            raise typer.BadParameter("rules take running statistics", param_hint="--batch-statistics")
    options = score_options.ScoreOptions(
        steps=learn_steps,
        refine=refine,
        chunk=chunk,
        batch_statistics=batch_statistics,
        seed=seed,
    )
    subject = scoring.read_subject(
        net,
        data,
        loss,
        passes or "split; prune",
        examples=examples,
        batch_size=batch_size,
        seed=seed,
        plugins=plugin or [],
    )
    if rule is None:
        scoring.score(subject, options, top=top, as_json=json, members=members, save=save, annotate=annotate)
    else:
        scoring.list_order(subject, rule, options, top=top, as_json=json)


def grow(
    config: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The configuration of the run.")],
    data: Annotated[str | None, typer.Option(help="Other data than the file's.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Choose candidates by another rule than the file's: random, first-order, ...")
    ] = None,
    device: Device = None,
    sharded: Sharded = None,
    out: Annotated[Path | None, typer.Option(help="Another directory than the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="Train the seed and a uniformly widened one as long, to compare.")
    ] = False,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Train a network and let it grow under a budget."""
    growing.grow(
        config,
        data=data,
        rule=rule,
        device=device,
        sharded=sharded,
        plugins=plugin or [],
        out=out,
        resume=resume,
        controls=controls,
        quiet=quiet,
    )


def compress(
    config: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The configuration; its model is a trained one.")],
    data: Annotated[str | None, typer.Option(help="Other data than the file's.")] = None,
    rule: Annotated[str | None, typer.Option(help="Choose candidates by another rule than the file's.")] = None,
    device: Device = None,
    sharded: Sharded = None,
    out: Annotated[Path | None, typer.Option(help="Another directory than the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Contract a trained network into a budget step by step, and train it on in between."""
    growing.compress(
        config,
        data=data,
        rule=rule,
        device=device,
        sharded=sharded,
        plugins=plugin or [],
        out=out,
        resume=resume,
        quiet=quiet,
    )


def report(
    run: Annotated[Path, typer.Argument(metavar="RUNDIR", help="The directory of a run.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the plot into this file.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    json: Json = False,
) -> None:
    """Tell what a run did."""
    growing.report(run, picture=plot, markdown=markdown, as_json=json)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path("demo"),
    quiet: Quiet = False,
) -> None:
    """Grow a small U-Net on canvases of scikit-learn's digits, and compare it with networks that did not grow."""
    demonstration.demo(out, quiet=quiet)
