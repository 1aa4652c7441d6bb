"""What an attack is: it makes files a stranger could have sent, and uses them as a user would."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Files = Mapping[str, bytes]
"""Contents by path within the folder of a trial; `LINK` and `PIPE` before a path say that it is no plain file."""

LINK, PIPE = "link:", "pipe:"
"""A link to where the content says, and a pipe nobody writes into."""

OUTCOMES = ("accepted", "rejected", "crashed", "hung", "ran", "wrong")
"""What becomes of a trial; the last four are faults."""

FAULTS = OUTCOMES[2:]


class Wrong(Exception):
    """What was accepted is not sound, or computes something else than it should."""


class Ran(Exception):
    """Something that came from a file is code, or has had an effect."""


@dataclass(frozen=True)
class Attack:
    """One kind of attack.

    Attributes:
        name: what the table and the records call it.
        make: the files of one trial, drawn at random.
        use: reads them from a folder as a user would; that is the working directory's neighbour, not itself.
        known: the files of the trials that every run begins with: whatever is known to have been a danger.
        full: number of trials of a full run.
        short: number of trials of the short run that is part of the tests.
        seconds: processor time of one trial beyond which it hangs.
        memory: bytes of address space a trial may add.
        watched: whether effects outside the folder of the trial count as faults.
        reads: whether the folder must be in the end as it was.
    """

    name: str
    make: Callable[[random.Random], Files]
    use: Callable[[Path], None]
    known: Callable[[], Sequence[Files]] = tuple
    full: int = 20_000
    short: int = 300
    seconds: float = 10.0
    memory: int = 2 * 2**30
    watched: bool = True
    reads: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        kind: one of `OUTCOMES`.
        cause: the error in a few words, the same for faults that are likely to be one.
        detail: everything else there is to know, such as the traceback.
    """

    kind: str
    cause: str = ""
    detail: str = ""


def dice_of(seed: int, attack: str, number: int) -> random.Random:
    """Return the source of randomness of one trial, the same in every process."""
    return random.Random(f"{seed} {attack} {number}")


def place(files: Files, folder: Path) -> None:
    """Put the files of a trial into a folder."""
    for name, content in files.items():
        kind, path = next(((k, name.removeprefix(k)) for k in (LINK, PIPE) if name.startswith(k)), ("", name))
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == LINK:
            target.symlink_to(content.decode())
        elif kind == PIPE:
            os.mkfifo(target)
        else:
            target.write_bytes(content)


def changes(files: Files, folder: Path) -> list[str]:
    """Return what is not in a folder as `place` left it."""
    plain = {name: content for name, content in files.items() if not name.startswith((LINK, PIPE))}
    wanted = {name.removeprefix(LINK).removeprefix(PIPE) for name in files}
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    gone = [f"removed {name}" for name in sorted(wanted - found)]
    made = [f"made {name}" for name in sorted(found - wanted)]
    return (
        gone + made + [f"changed {n}" for n, c in plain.items() if n in found and folder.joinpath(n).read_bytes() != c]
    )
