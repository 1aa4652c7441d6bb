"""Runs of growth killed at random moments and gone on with: in the end, every bit is as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from archir.errors import ArchirError
from archir.ir.load import load
from tools.trust.attack import Attack, Files, Wrong
from tools.trust.growing import go_on, is_same

_EVENTS = ("open", "os.rename", "os.remove", "os.truncate")
"""What a run does to its files; a process is also killed right before one of these."""


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted.

    Attributes:
        graph: the file of what it made.
        seconds: how long it took.
        events: what it did to files.
    """

    graph: bytes
    seconds: float
    events: int


def make(dice: random.Random) -> Files:
    """Return when a run is killed, as parts of its length, by the clock or by what it does to files."""
    kills = [(dice.choice(("clock", "files")), dice.random()) for _ in range(dice.choice((1, 1, 2)))]
    return {"plan.json": json.dumps(kills).encode()}


def use(folder: Path) -> None:
    """Kill the run, go on with it, and compare what it made with what an uninterrupted one makes."""
    kills = json.loads((folder / "plan.json").read_bytes())
    directory, result, whole = folder / "run", folder / "result.archir", uninterrupted()
    for by, part in kills:
        if by == "files":
            _wait(_start(partial(_until, directory, result, round(part * whole.events))))
        else:
            child = _start(partial(go_on, directory, result))
            time.sleep(part * whole.seconds)
            os.kill(child, signal.SIGKILL)
            _wait(child)
    result.unlink(missing_ok=True)
    if _wait(_start(partial(go_on, directory, result), folder / "why")) != 0:
        raise Wrong(f"a killed run does not go on\n{(folder / 'why').read_text()}")
    (folder / "whole.archir").write_bytes(whole.graph)
    if not is_same(load(result), load(folder / "whole.archir")):
        raise Wrong("a killed run is another network, or has other weights, in the end")


KILLS = Attack("kill", make, use, full=30, short=2, seconds=120, memory=16 * 2**30, watched=False)


@cache
def uninterrupted() -> Whole:
    """Carry out a run that nothing interrupts.

    Raises:
        Wrong: it fails.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()

        def work() -> None:
            seen = _counting(lambda count: None)
            go_on(folder / "run", folder / "result.archir")
            (folder / "events").write_text(str(seen[0]))

        if _wait(_start(work, folder / "why")) != 0:
            raise Wrong(f"an uninterrupted run fails\n{(folder / 'why').read_text()}")
        seconds = time.monotonic() - started
        return Whole((folder / "result.archir").read_bytes(), seconds, int((folder / "events").read_text()))


def _until(directory: Path, result: Path, last: int) -> None:
    """Go on with a run until it has done so much to files; then the process is killed."""

    def kill(count: int) -> None:
        if count > last:
            os.kill(os.getpid(), signal.SIGKILL)

    _counting(kill)
    go_on(directory, result)


def _counting(tell: Callable[[int], None]) -> list[int]:
    """Count from now on what this process does to files, and tell of each before it is done."""
    seen = [0]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and any("run" in str(a) for a in arguments[:2]):
            seen[0] += 1
            tell(seen[0])

    sys.addaudithook(hear)
    return seen


def _start(work: Callable[[], None], why: Path | None = None) -> int:
    """Do some work in a process of its own, which says in a file why it failed, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except ArchirError as error:
        if why is not None:
            why.write_text(str(error))
    except BaseException:  # whatever it is, the process must not go on as its parent would
        if why is not None:
            why.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
