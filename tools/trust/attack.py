"""What an attack is: it makes files a stranger could have sent, and uses them as a user would."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Files = Mapping[str, bytes]
"""Contents by path within the folder of a trial."""

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
        make: the files of one trial.
        use: reads them from a folder as a user would; that is the working directory's neighbour, not itself.
        full: number of trials of a full run.
        short: number of trials of the short run that is part of the tests.
        seconds: processor time of one trial beyond which it hangs.
        memory: bytes of address space a trial may add.
        watched: whether effects outside the folder of the trial count as faults.
    """

    name: str
    make: Callable[[random.Random], Files]
    use: Callable[[Path], None]
    full: int = 20_000
    short: int = 300
    seconds: float = 5.0
    memory: int = 2 * 2**30
    watched: bool = True


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
