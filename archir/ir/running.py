"""Runs the modules of graphs, and says which call fails where one does."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from archir.errors import ArchirError, GraphError
from archir.ir.module import LOWERED, Source


def run(module: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return what a module that was made of a graph returns.

    Raises:
        GraphError: a call of it fails, which is named.
    """
    try:
        return module(*args, **(kwargs or {}))
    except (ArchirError, MemoryError):
        raise
    except Exception as error:  # of any operator
        why = f"{type(error).__name__}: {error}"
        raise GraphError(f"{type(module).__name__} does not run", where=failing_call(error), why=why) from error


def failing_call(error: BaseException) -> str:
    """Return the line of a graph's module that an error comes from, and whose; empty if it comes from elsewhere."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        source = frame.f_globals.get("__loader__")
        if frame.f_code.co_filename.startswith(LOWERED) and isinstance(source, Source):
            return source.line(line)
    return ""
