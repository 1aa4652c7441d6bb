"""Attacks on everything archir reads and rewrites: what becomes of mutated files, of killed runs, of random nets.

Every trial is made from a fixed seed and used in a process under limits of time and memory: it is accepted
(and then sound), rejected with an error of archir's own, or a fault: crashed, hung, ran (something in it had an effect
that reading must not have) or wrong. The table goes to standard error. The figures have `failures`, their number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tools.trust.attack import FAULTS, OUTCOMES, Attack, Files, Outcome
from tools.trust.catalog import ATTACKS
from tools.trust.records import Records, read_record
from tools.trust.runner import Listener, Tally, pool, trials

SEED = 0


def run(
    records: str | None = None,
    replay: str | None = None,
    only: str | None = None,
    trials: int | None = None,
) -> Mapping[str, object]:
    """Return the figures.

    Args:
        records: a folder to keep faults in.
        replay: a record of one, to be run again; nothing else is.
        only: names of attacks, with commas between; all of them if not given.
        trials: number of trials of each attack, if it is not to be that of a full run; what is known to have been a
            danger is always tried.
    """
    if replay is not None:
        return _replay(Path(replay))
    names = list(ATTACKS) if only is None else only.split(",")
    attacks = [ATTACKS[name] for name in names]
    counts = [attack.full if trials is None else trials for attack in attacks]
    folder = None if records is None else Path(records)
    tallies = attack_all(attacks, counts, _ignore if folder is None else Records(folder, SEED), partial(_tell, folder))
    print(table(tallies), file=sys.stderr)
    return figures(tallies)


def attack_all(
    attacks: Sequence[Attack],
    counts: Sequence[int],
    listen: Listener | None = None,
    tell: Callable[[Mapping[str, Tally]], None] | None = None,
) -> dict[str, Tally]:
    """Run the trials of each attack, and return what became of them by its name.

    Args:
        attacks: the attacks.
        counts: the number of trials of each; those that are known are all run.
        listen: is told of every trial.
        tell: is told, after each attack, what became of all so far.
    """
    tallies: dict[str, Tally] = {}
    with pool() as workers:
        for attack, count in zip(attacks, counts, strict=True):
            tallies[attack.name] = workers.run(attack, trials(attack, count, SEED), listen or _ignore)
            if tell is not None:
                tell(tallies)
    return tallies


def _tell(folder: Path | None, tallies: Mapping[str, Tally]) -> None:
    """Say what became of the last attack, and keep what is known so far: a full run takes long."""
    name, tally = list(tallies.items())[-1]
    print(json.dumps({name: {**tally.figures, "seconds": round(tally.seconds, 1)}}), file=sys.stderr, flush=True)
    if folder is not None:
        (folder / "figures.json").write_text(json.dumps(figures(tallies), indent=2) + "\n")


def _ignore(attack: Attack, number: int, files: Files, outcome: Outcome) -> None:
    """Keep nothing."""


def _replay(path: Path) -> Mapping[str, object]:
    name, number, files = read_record(path)

    def show(attack: Attack, number: int, files: Files, outcome: Outcome) -> None:
        print(f"{attack.name} {number}: {outcome.kind}: {outcome.cause}\n{outcome.detail}", file=sys.stderr)

    with pool(1) as workers:
        tally = workers.run(ATTACKS[name], iter([(number, files)]), show)
    return figures({name: tally})


def figures(tallies: Mapping[str, Tally]) -> dict[str, object]:
    """Return the columns of each attack, their totals, and the number of faults."""
    found = {name: tally.figures for name, tally in tallies.items()}
    total = {key: sum(f[key] for f in found.values()) for key in ("tried", *OUTCOMES)}
    seconds = {name: round(tally.seconds, 1) for name, tally in tallies.items()}
    return {**found, "total": total, "seconds": seconds, "failures": sum(total[kind] for kind in FAULTS)}


def table(tallies: Mapping[str, Tally]) -> str:
    """Return the columns as text, and below them the causes of faults, the most frequent first."""
    columns = ("tried", *OUTCOMES)
    rows = [["attack", *columns, "seconds"]]
    for name, tally in tallies.items():
        rows.append([name, *(f"{tally.figures[key]:,}" for key in columns), f"{tally.seconds:.0f}"])
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True)) for row in rows]
    for name, tally in tallies.items():
        faults = [(count, *key) for key, count in tally.causes.most_common() if key[0] in FAULTS]
        lines += [f"{name}: {count} {kind}: {cause}" for count, kind, cause in faults]
    return "\n".join(lines)
