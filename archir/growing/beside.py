"""Networks that are trained beside a run: by the same engine without growth steps, kept in folders of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from archir.errors import AlikeError, ArchirError, FileError, GrowError, ProcessError
from archir.growing.divergence import Recovery
from archir.growing.engine import Engine
from archir.growing.ranks import first_alone
from archir.growing.run import Checkpoint
from archir.growing.training import Metrics
from archir.ir.graph import Graph


@dataclass(frozen=True)
class Ended:
    """What became of a network that was trained beside a run.

    Attributes:
        checkpoint: the last of it that is known to be good.
        metrics: how it does on the validation split; None if its training failed.
        failure: why its training failed; empty if it did not.
    """

    checkpoint: Checkpoint
    metrics: Metrics | None
    failure: str = ""


def beside(engine: Engine, name: str) -> Engine:
    """Return a run without growth steps that is kept in a folder of another one.

    Args:
        engine: the other one.
        name: name of the folder, by which its events are told.

    Raises:
        FileError: the folder cannot be made, or is a link.
    """
    return replace(
        engine,
        options=engine.options.without_growth,
        directory=first_alone(engine.processes, lambda: engine.directory and engine.directory.beside(name)),
        log=engine.log.beside(name),
        recovery=Recovery(),
    )


def latest(engine: Engine) -> Checkpoint | None:
    """Return where the training of a network beside a run goes on, None if there is no whole checkpoint of it.

    Damaged ones, and those of another network than the one it began with, are told of.
    """
    network = str(engine.begun)

    def accept(found: Checkpoint) -> None:
        if str(found.graph) != network:
            raise GrowError("it is that of another network")
        engine.check(found)

    try:
        return engine.latest(accept)
    except FileError:  # all of them are damaged
        return None


def train_beside(engine: Engine, begin: Callable[[Engine], tuple[Engine, Checkpoint | None]], graph: Graph) -> Ended:
    """Train a network beside a run to the end; where that fails it is told, and the run goes on.

    Of several processes it goes on from what all of them find alike: from an error of one alone the others do not know.

    Args:
        engine: the run without growth.
        begin: returns it with the network, and where it goes on.
        graph: the network as it is told of if that fails.

    Raises:
        FileError: a file cannot be written, as on a full disk: all of it can go on from here.
        ProcessError: another process has failed or ended.
        ArchirError: whatever one of several processes may have failed with alone.
    """
    try:
        ready, start = begin(engine)
        done = ready.run(start)
    except (FileError, ProcessError):
        raise
    except ArchirError as error:
        if engine.processes.group is not None and not isinstance(error, AlikeError):
            raise
        nothing = Checkpoint(0, graph, {}, {"training_flops": 0, "seconds": 0.0})
        return Ended(engine.recovery.last or nothing, None, f"it failed: {error.what}")
    return Ended(done.checkpoint, done.metrics)
