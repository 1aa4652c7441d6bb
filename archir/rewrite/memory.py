"""Remembers what was found out about the widths of a graph, for as long as these widths are in use."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from archir.axes.widths import Width, Widths

Found = TypeVar("Found")


def remembered(find: Callable[[Widths, Width], Found]) -> Callable[[Widths, Width], Found]:
    """Let a function of a width answer once for each width; nothing it returns may refer to the widths or the graph."""
    known: WeakKeyDictionary[Widths, dict[Width, Found]] = WeakKeyDictionary()

    @wraps(find)
    def look_up(widths: Widths, width: Width) -> Found:
        answers = known.setdefault(widths, {})
        if width not in answers:
            answers[width] = find(widths, width)
        return answers[width]

    return look_up
