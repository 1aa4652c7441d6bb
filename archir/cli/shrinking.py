"""The work of `score --shrink-to`: the units to remove for a network to be within a budget, as a file of passes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from archir.cli.console import print_table, say, standard_error
from archir.cli.rewriting import BATCH, EXAMPLES, cost_rows
from archir.cli.scoring import Subject
from archir.cost import cost
from archir.errors import FileError, GrowError, ScoreError, suggest
from archir.growing.batches import Batches
from archir.growing.feasibility import check_reachable
from archir.ir.files import write_file
from archir.scoring.budget import Budget
from archir.scoring.options import ScoreOptions
from archir.scoring.shrink import ROUNDS, SHRINKING, Shrunk, shrink
from passes.prune import Prune


def shrink_to(
    subject: Subject,
    wanted: str,
    options: ScoreOptions,
    *,
    rule: str | None,
    rounds: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Choose the units to remove for a network to come down to a budget, and write them as passes.

    Between rounds the network is compensated on training examples, as `apply --compensate` does it.

    Args:
        subject: what is scored, and on what.
        wanted: the budget, see `read_budget`.
        options: how units are scored.
        rule: the strategy that scores and chooses.
        rounds: number of rounds.
        output: where to write the passes, one a line.
        as_json: print JSON.

    Raises:
        FileError: the file cannot be written.
        GrowError: the budget is none, is above the network, or cannot be reached.
        ScoreError: the network cannot be scored on the data.
    """
    now = cost(subject.graph)
    budget = read_budget(wanted).resolved(now)
    if budget.allows(now):
        raise GrowError("the network is within the budget already", why=f"budget: {budget}", hint="give a smaller one")
    check_reachable(budget, subject.graph, (Prune(),))
    examples = subject.learn.split
    with standard_error().status("scoring"):
        found = shrink(
            subject.graph,
            budget,
            prune=Prune(),
            loss=subject.loss,
            batches=list(subject.batches),
            compensate=list(Batches(examples.take(slice(0, EXAMPLES)), BATCH)),
            strategy=SHRINKING if rule is None else rule,
            options=options,
            rounds=ROUNDS if rounds is None else rounds,
        )
    if not budget.allows(found.cost):
        raise ScoreError(
            f"no set of units was found that is within {budget}", hint="take another rule, or a round more"
        )
    if output is not None:
        _write(output, found)
    if as_json:
        reached = {name: getattr(found.cost, name) for name in ("parameters", "flops", "peak_bytes")}
        said = {"specs": found.specs, "predicted": found.predicted, "budget": budget.limits, **reached}
        say(json.dumps(said, indent=2))
        return
    say(f"{sum(len(p.units) for p in found.prunes if isinstance(p, Prune))} units of {len(found.prunes)} widths go")
    print_table(("", ">before", ">after", ">change"), cost_rows(now, found.cost))
    if output is not None:
        say(f"wrote {output}: archir apply NET --file {output} --compensate DATA")


def read_budget(text: str) -> Budget:
    """Return a budget given as text: `0.5` (of the FLOPs), `parameters=0.5`, `flops=120000`, with commas between.

    Raises:
        GrowError: it names no limit, one twice, or a limit is no number in range.
    """
    known = [f.name for f in fields(Budget) if f.name != "latency"]
    limits: dict[str, int | float] = {}
    for part in text.split(","):
        name, _, amount = part.rpartition("=")
        name = name.strip() or "flops"
        if name not in known:
            raise GrowError(f"there is no limit {name:.60} to shrink to", hint=suggest(name, known))
        if name in limits:
            raise GrowError(f"the limit on {name} is given twice", where=text)
        try:
            limits[name] = int(amount)
        except ValueError:
            try:
                limits[name] = float(amount)
            except ValueError:
                raise GrowError(f"{amount.strip()[:60]!r} is no number", hint="write 0.5, or flops=120000") from None
    return Budget(**limits)


def _write(path: Path, found: Shrunk) -> None:
    """Write passes into a file, all of them or nothing."""
    try:
        write_file(path, ("\n".join(found.specs) + "\n").encode())
    except OSError as error:
        raise FileError(f"cannot write {path}", why=str(error), hint="name a file in a folder that exists") from error
