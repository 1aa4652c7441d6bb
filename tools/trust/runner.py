"""Runs trials in worker processes that are replaced when they crash or hang, and counts what becomes of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from tools.trust.attack import OUTCOMES, Attack, Files, Outcome, dice_of
from tools.trust.worker import serve

PROCESSES = 2
MEMORY = "/dev/shm"
"""Where Linux keeps files in memory."""

_WALL = 20.0
"""Seconds by the clock for each second of processor time a trial has: others use the machine, too."""


@dataclass
class Tally:
    """What became of the trials of one kind.

    Attributes:
        counts: number of trials by outcome.
        causes: number of trials by outcome and cause.
        seconds: how long they took.
    """

    counts: Counter[str] = field(default_factory=Counter)
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count a trial."""
        self.counts[outcome.kind] += 1
        self.causes[outcome.kind, outcome.cause] += 1

    @property
    def figures(self) -> dict[str, int]:
        """The columns of the table."""
        return {"tried": self.counts.total(), **{kind: self.counts[kind] for kind in OUTCOMES}}


Listener = Callable[[Attack, int, Files, Outcome], None]
"""Is told of every trial: the attack, its number, the files, what became of them."""


class Worker:
    """A worker process and the trial it is at."""

    def __init__(self, root: Path) -> None:
        """Start a process; it is ready when it says so.

        Args:
            root: a folder in which the process gets one of its own.
        """
        self._home = Path(tempfile.mkdtemp(dir=root))
        context = multiprocessing.get_context("forkserver")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self._home), daemon=True)
        self.process.start()
        theirs.close()
        self.trial: tuple[Attack, int, Files] | None = None
        self.deadline = time.monotonic() + 120

    def wait(self) -> None:
        """Wait until the process is ready.

        Raises:
            RuntimeError: it ended before it was.
        """
        try:
            self.connection.recv()
        except EOFError as error:
            raise RuntimeError(f"a worker cannot start: {self._home.joinpath('err').read_text()}") from error

    def give(self, attack: Attack, number: int, files: Files) -> None:
        """Hand over a trial."""
        self.trial = attack, number, files
        self.deadline = time.monotonic() + attack.seconds * _WALL
        self.connection.send((attack, files))

    def outcome(self) -> Outcome:
        """Return what became of the trial of a process that has spoken, ended, or taken too long."""
        if self.connection.poll():
            try:
                found: Outcome = self.connection.recv()
                return found
            except (EOFError, ConnectionResetError):
                self.process.join(30)
        hangs = self.process.is_alive()
        self.end()
        code = self.process.exitcode or 0
        last = self._home.joinpath("err").read_text(errors="replace")[-4000:]
        if hangs or code == -signal.SIGPROF:
            return Outcome("hung", f"at {_innermost(last)}", last)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Outcome("crashed", f"{name} at {_innermost(last)}", last)

    def end(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _innermost(trace: str) -> str:
    """Return the innermost line of the package in what `faulthandler` wrote, or the innermost of all."""
    lines = [line.strip() for line in trace.rpartition("most recent call first")[2].splitlines() if "File " in line]
    own = [line for line in lines if any(f"/{part}/" in line for part in ("archir", "passes", "frontends"))]
    chosen = next(iter(own or lines), "?")
    place, _, function = chosen.removeprefix("File ").partition(", line ")
    return f"{'/'.join(Path(place.strip(chr(34))).parts[-3:])}:{function.rpartition(' ')[2]}"


class Pool:
    """Worker processes."""

    def __init__(self, root: Path, size: int) -> None:
        """Start the processes, which work in a folder."""
        self._root = root
        self._workers = [Worker(root) for _ in range(size)]
        for worker in self._workers:
            worker.wait()

    def run(self, attack: Attack, trials: Iterator[tuple[int, Files]], listen: Listener) -> Tally:
        """Run trials and return what became of them."""
        tally, started = Tally(), time.monotonic()
        idle, busy = list(self._workers), list[Worker]()
        trial = next(trials, None)
        while True:
            while idle and trial is not None:
                worker = idle.pop()
                worker.give(attack, *trial)
                busy.append(worker)
                trial = next(trials, None)  # made while the others work
            if not busy:
                break
            for worker in self._finished(busy):
                busy.remove(worker)
                assert worker.trial is not None
                outcome = worker.outcome()
                tally.add(outcome)
                listen(*worker.trial, outcome)
                worker.trial = None
                idle.append(self._renewed(worker) if outcome.kind in ("ran", "hung") or _gone(worker) else worker)
        tally.seconds = time.monotonic() - started
        return tally

    def _finished(self, busy: list[Worker]) -> list[Worker]:
        ready = wait([w.connection for w in busy], timeout=1.0)
        now = time.monotonic()
        return [w for w in busy if w.connection in ready or now > w.deadline]

    def _renewed(self, worker: Worker) -> Worker:
        worker.end()
        fresh = Worker(self._root)
        self._workers[self._workers.index(worker)] = fresh
        fresh.wait()
        return fresh

    def end(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.end()


def _gone(worker: Worker) -> bool:
    return not worker.process.is_alive()


@contextmanager
def pool(size: int = PROCESSES) -> Iterator[Pool]:
    """Start worker processes, and end them in the end."""
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # as the workers do: what a run computes here goes on there
        # In memory where there is such a folder: nothing here has to outlast the power.
        memory = MEMORY if os.access(MEMORY, os.W_OK) else None
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="trust-", dir=memory))
        multiprocessing.get_context("forkserver").set_forkserver_preload(["tools.trust.worker", "tools.trust.preload"])
        made = Pool(Path(root).resolve(), size)
        stack.callback(made.end)
        yield made


def trials(attack: Attack, count: int, seed: int) -> Iterator[tuple[int, Files]]:
    """Make the trials of an attack: all that are known, and as many more at random as there are to be."""
    known = attack.known()
    yield from enumerate(known)
    for number in range(len(known), count):
        yield number, attack.make(dice_of(seed, attack.name, number))
