"""Runs a function in a process of its own, which may crash or hang without harm."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

PRELOADED = ("torch", "archir.emit.onnx", "frontends.pytorch", "tests.zoo.catalog")
"""Modules that are imported once, before the processes part."""


@dataclass(frozen=True)
class Finished:
    """What became of a call: its result, or why there is none."""

    result: Any = None
    error: str = ""


def limited(
    function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float, preloaded: Sequence[str] = PRELOADED
) -> Finished:
    """Call a function in a new process.

    Args:
        function: what to call; it and its result can be pickled.
        arguments: positional arguments.
        seconds: how long it may take, importing what is not preloaded included.
        preloaded: modules that the first call imports for all.
    """
    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
    if preloaded:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preloaded))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return Finished(error=f"not done after {seconds:g} s")
        return Finished(receiver.recv())
    except EOFError:
        process.join()
        return Finished(error=f"crashed with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))
