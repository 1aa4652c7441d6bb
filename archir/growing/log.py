"""The log of a run: what happens is kept, written to its directory, and told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from archir.growing.ranks import first_for_all
from archir.growing.run import Event, RunDirectory
from archir.scoring.processes import ALONE, Processes

Listener = Callable[[Event], None]


class Log:
    """Collects events, writes them to the run directory, and tells the listener.

    Of several processes the first does so, and all collect its events.

    Attributes:
        events: all events, those of an interrupted run before included.
    """

    def __init__(self, run: RunDirectory | None, on_event: Listener | None, processes: Processes = ALONE) -> None:
        self._run = run
        self._on_event = on_event if processes.rank == 0 else None
        self._processes = processes
        self.events: list[Event] = first_for_all(processes, lambda: run.history() if run is not None else [])

    def __call__(self, event: str, **fields: Any) -> None:
        """Record an event."""
        line = first_for_all(self._processes, lambda: self._written(event, fields))
        self.events.append(line)
        if self._on_event is not None:
            self._on_event(line)

    def _written(self, event: str, fields: Mapping[str, Any]) -> Event:
        if self._run is not None:
            return self._run.append(event, **fields)
        return {"event": event, "time": round(time.time(), 3), **fields}

    def beside(self, name: str) -> Log:
        """Return the log of a network that is trained beside the run: its events are told by name, and not kept."""

        def tell(line: Event) -> None:
            if self._on_event is not None:
                self._on_event({**line, "beside": name})

        return Log(None, tell, self._processes)

    def damaged(self, step: int, why: str) -> None:
        """Record that the checkpoint of a step was passed over."""
        self("damaged", checkpoint=step, why=why)
