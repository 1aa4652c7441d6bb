"""What the sizes of dynamic axes are called, and how users write it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence

from archir.errors import ParseError
from archir.ir.sizes import FUNCTIONS

BATCH = "B"
"""What the batch size is called."""

DynamicAxes = Mapping[str, Mapping[int, str]]
"""The names of dynamic axes, by the name of the input and the number of the axis: `{"x": {1: "T"}}`."""

LONGEST = 32
"""The most characters of the name of an axis."""


def parse_dynamic(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """Return the dynamic axes that texts such as `x:1=T` name.

    Raises:
        ParseError: some are not written right, or name an axis twice; all of them are told.
    """
    found: dict[str, dict[int, str]] = {}
    problems: list[str] = []
    for text in texts:
        match = re.fullmatch(r"([^:=\s]+):(-?[0-9]{1,4})=([^:=\s]+)", text) if isinstance(text, str) else None
        if match is None:
            problems.append(f"{str(text)[:200]!r} is not an axis of an input with a name")
            continue
        name, axis = match[1], int(match[2])
        fault = "axis 0 is the batch, which is dynamic anyway and called B" if axis == 0 else name_fault(match[3])
        if axis in found.get(name, {}):
            fault = "this axis has a name already"
        problems += [f"{text[:200]!r}: {fault}"] if fault else []
        found.setdefault(name, {})[axis] = match[3]
    if problems:
        raise ParseError(
            "these are no dynamic axes",
            where="\n         ".join(problems),
            hint="write INPUT:AXIS=NAME, such as x:1=T: axis 1 of the input x is called T",
        )
    return found


def name_fault(name: object) -> str:
    """Return why a size cannot be called that; nothing if it can."""
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        return f"{str(name)[:100]!r} is no name: letters, digits and underscores, such as T or height"
    if len(name) > LONGEST:
        return f"the name {name[:20]}... has more than {LONGEST} letters"
    if name in FUNCTIONS:
        return f"{name} is the name of a function of sizes"
    return "B is the name of the batch size" if name == BATCH else ""
