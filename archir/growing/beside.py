"""Networks that are trained beside a run: by the same engine without growth steps, kept in folders of the run."""

from __future__ import annotations

from dataclasses import replace

from archir.errors import FileError, GrowError
from archir.growing.divergence import Recovery
from archir.growing.engine import Engine
from archir.growing.run import Checkpoint


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
        directory=None if engine.directory is None else engine.directory.beside(name),
        log=engine.log.beside(name),
        recovery=Recovery(),
    )


def latest(engine: Engine) -> Checkpoint | None:
    """Return where the training of a network beside a run goes on, None if there is no whole checkpoint of it.

    Damaged ones, and those of another network than the one it began with, are told of.
    """
    if engine.directory is None:
        return None
    network = str(engine.begun)

    def accept(found: Checkpoint) -> None:
        if str(found.graph) != network:
            raise GrowError("it is that of another network")
        engine.check(found)

    try:
        return engine.directory.latest(accept=accept, on_damage=engine.log.damaged)
    except FileError:  # all of them are damaged
        return None
