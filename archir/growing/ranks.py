"""What the processes of a run agree on: what the first does for all, when batches end, and that they have the same."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from archir.errors import ArchirError, ProcessError, Told
from archir.growing.fingerprint import differences
from archir.ir.graph import Graph
from archir.ir.notes import program_checksum
from archir.scoring.processes import Processes

T = TypeVar("T")


def first_alone(processes: Processes, action: Callable[[], T]) -> T | None:
    """Let the first process do something that the others wait for; they get None.

    Raises:
        ArchirError: it failed; the error is the same on all of them.
        ProcessError: it failed with something else, on the others.
    """
    found: T | None = _done(processes, action, tell=False)
    return found


def first_for_all(processes: Processes, action: Callable[[], T]) -> T:
    """Let the first process do something, and return what came of it on all of them.

    Raises:
        ArchirError: it failed; the error is the same on all of them.
        ProcessError: it failed with something else, on the others.
    """
    found: T = _done(processes, action, tell=True)
    return found


def _done(processes: Processes, action: Callable[[], T], *, tell: bool) -> Any:
    if processes.group is None:
        return action()
    if processes.rank:
        failure, found = processes.told(None)
        if failure is not None:
            raise failure.error() from Told("the first process has failed")
        return found
    try:
        found = action()
    except BaseException as error:
        processes.told((_Failure.of(error), None))
        raise
    processes.told((None, found if tell else None))
    return found


def all_or_none(processes: Processes, action: Callable[[], T]) -> T:
    """Do something on every process that may fail on some of them; it fails on all of them then.

    Nothing is exchanged by the action.

    Raises:
        ArchirError: it failed on this one.
        ProcessError: it failed on another one.
    """
    try:
        found = action()
    except ArchirError:
        processes.total(True)
        raise
    if processes.group is not None and processes.total(False)[0]:
        raise ProcessError("another process cannot begin the run", hint="see what it has said")
    return found


@contextmanager
def entered_by_first(processes: Processes, manager: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """Enter a context on the first process alone, while the others wait; they get None.

    Raises:
        ArchirError: it could not be entered; the error is the same on all of them.
    """
    with ExitStack() as stack:
        yield first_alone(processes, lambda: stack.enter_context(manager()))


@dataclass(frozen=True)
class _Failure:
    """What others are told of an error."""

    kind: type[ArchirError]
    what: str
    where: str = ""
    why: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        if isinstance(error, ArchirError):
            kind = type(error) if type(error).__init__ is ArchirError.__init__ else ProcessError
            return cls(kind, error.what, error.where, error.why, error.hint)
        return cls(ProcessError, "the first process has failed", why=f"{type(error).__name__}: {error}")

    def error(self) -> ArchirError:
        return self.kind(self.what, where=self.where, why=self.why, hint=self.hint)


def in_step(processes: Processes, items: Iterable[T]) -> Iterator[T]:
    """Yield items, such as batches, as long as all processes have one; all stop at the same.

    Raises:
        ProcessError: some have ended where others have not, or reading failed on another process.
        ArchirError: whatever was raised by reading on this one.
    """
    if processes.group is None:
        yield from items
        return
    iterator, nothing = iter(items), object()
    while True:
        error: ArchirError | None = None
        item: Any = nothing
        try:
            item = next(iterator, nothing)
        except ArchirError as found:
            error = found
        ended, failed = processes.total(item is nothing and error is None, error is not None)
        if error is not None:
            raise error
        if failed:
            raise ProcessError("another process cannot read its examples", hint="see what it has said")
        if ended == processes.size:
            return
        if ended:
            raise ProcessError(
                f"the batches of {int(ended)} of {processes.size} processes have ended before those of the others",
                hint="give all of them the same data: each takes its own part of every batch",
            ) from _told_by_first(processes)
        yield item


def check_alike(processes: Processes, decided: Callable[[], Mapping[str, Any]]) -> None:
    """Check that what decides a run is the same for all processes.

    Raises:
        ProcessError: it is not; the differences are listed, on all of them.
    """
    if processes.group is None:
        return
    here = decided()
    of_first = processes.told(here)
    every = processes.everyones(differences(of_first, here))
    found = [f"process {rank}: {line}" for rank, lines in enumerate(every) for line in lines]
    if found:
        raise ProcessError(
            "the processes were started with different runs",
            why="\n         ".join(found),
            hint="give all the same data, options and model; seed torch before the model is made",
        ) from _told_by_first(processes)


def check_devices(processes: Processes, device: torch.device) -> None:
    """Check that all processes compute on devices of one kind, each on an accelerator of its own.

    Raises:
        ProcessError: they do not; where each computes is listed, on all of them.
    """
    if processes.group is None:
        return
    # Its number is that among the GPUs that the process sees, which may be others than another one sees.
    own = torch.cuda.get_device_properties(device).uuid if device.type == "cuda" else device
    every = processes.everyones((device.type, socket.gethostname(), str(device), str(own)))
    kinds = {kind for kind, *_ in every}
    there = [(host, own) for kind, host, _, own in every if kind != "cpu"]
    if len(kinds) == 1 and len(set(there)) == len(there):
        return
    raise ProcessError(
        "the processes compute on devices of different kinds"
        if len(kinds) > 1
        else f"{len(there)} processes have {len(set(there))} devices",
        why="\n         ".join(f"process {rank}: {name} of {host}" for rank, (_, host, name, _) in enumerate(every)),
        hint="start no more processes on a machine than it has GPUs, without a number of the device; or --device cpu",
    ) from _told_by_first(processes)


def check_same_graph(processes: Processes, graph: Graph, specs: Sequence[str]) -> None:
    """Check that all processes have rewritten a network in the same way: that their programs are the same.

    Their weights differ by rounding at most, where the processes run on machines of different kinds.

    Raises:
        ProcessError: they have not; what each did is listed, on all of them.
    """
    if processes.group is None:
        return
    every = processes.everyones(("; ".join(specs), program_checksum(graph)))
    if len(set(every)) > 1:
        raise ProcessError(
            "the processes have grown different networks",
            why="\n         ".join(f"process {i}: {did[:200] or 'nothing'}" for i, (did, _) in enumerate(every)),
            hint="run all of them on machines of one kind, and let passes depend on nothing but the network",
        ) from _told_by_first(processes)


def _told_by_first(processes: Processes) -> Told | None:
    """Return the cause of an error that all processes raise."""
    return Told("all processes have found this") if processes.rank else None
