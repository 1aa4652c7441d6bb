"""Attacks on everything archir reads and rewrites: what becomes of mutated files, of killed runs, of random nets.

Every trial is made from a fixed seed and used in a process of its own under limits of time and memory: it is accepted
(and then sound), rejected with an error of archir's own, or a fault: crashed, hung, ran (something in it had an effect
that reading must not have) or wrong. The table goes to standard error. The figures have `failures`, their number.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.trust.attack import FAULTS, OUTCOMES, Attack, Files, Outcome
from tools.trust.catalog import ATTACKS
from tools.trust.records import Records, read_record
from tools.trust.runner import Tally, pool, trials

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
        trials: number of trials of each attack, if it is not to be that of a full run.
    """
    if replay is not None:
        return _replay(Path(replay))
    names = list(ATTACKS) if only is None else only.split(",")
    attacks = [ATTACKS[name] for name in names]
    counts = [attack.full if trials is None else trials for attack in attacks]
    tallies = attack_all(attacks, counts, None if records is None else Path(records))
    print(table(tallies), file=sys.stderr)
    return figures(tallies)


def attack_all(attacks: Sequence[Attack], counts: Sequence[int], folder: Path | None = None) -> dict[str, Tally]:
    """Run so many trials of each attack, and return what became of them by its name."""
    listen = _ignore if folder is None else Records(folder, SEED)
    with pool() as workers:
        return {
            attack.name: workers.run(attack, trials(attack, count, SEED), listen)
            for attack, count in zip(attacks, counts, strict=True)
        }


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
