"""The log of a run: what happens is kept, written to its directory, and told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from archir.errors import ArchirError
from archir.growing.run import Event, RunDirectory

Listener = Callable[[Event], None]


class Log:
    """Collects events, writes them to the run directory, and tells the listener.

    Attributes:
        events: all events, those of an interrupted run before included.
    """

    def __init__(self, run: RunDirectory | None, on_event: Listener | None) -> None:
        self._run = run
        self._on_event = on_event
        self.events: list[Event] = run.history() if run is not None else []

    def __call__(self, event: str, **fields: Any) -> None:
        """Record an event."""
        line: Event = {"event": event, "time": round(time.time(), 3), **fields}
        if self._run is not None:
            line = self._run.append(event, **fields)
        self.events.append(line)
        if self._on_event is not None:
            self._on_event(line)

    def beside(self, name: str) -> Log:
        """Return the log of a network that is trained beside the run: its events are told by name, and not kept."""

        def tell(line: Event) -> None:
            if self._on_event is not None:
                self._on_event({**line, "beside": name})

        return Log(None, tell)

    def damaged(self, step: int, error: ArchirError) -> None:
        """Record that the checkpoint of a step was passed over."""
        self("damaged", checkpoint=step, why=error.why or error.what)
