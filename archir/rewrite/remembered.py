"""Remembers what was found out about a width, for as long as the analysis it comes from is in use."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from archir.axes.widths import Analysis, Width, Widths

Found = TypeVar("Found")


def remembered(find: Callable[[Widths, Width], Found]) -> Callable[[Widths, Width], Found]:
    """Let a function of a width answer once for each width; it reads no stored numbers, and returns no graph."""
    known: WeakKeyDictionary[Analysis, dict[Width, Found]] = WeakKeyDictionary()

    @wraps(find)
    def look_up(widths: Widths, width: Width) -> Found:
        answers = known.setdefault(widths.analysis, {})
        if width not in answers:
            answers[width] = find(widths, width)
        return answers[width]

    return look_up
