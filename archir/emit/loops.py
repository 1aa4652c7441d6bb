"""Turns statements repeated for every submodule of a container into a loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from archir.emit.code import is_name, singular
from archir.emit.names import RESERVED

_INDEXED = re.compile(r"self((?:\.\w+)+)\[(\d+)\]")
LONGEST = 12
"""Most statements a pass of a loop may have."""


def roll(lines: Sequence[str], length_of: Callable[[str], int]) -> list[str]:
    """Return the statements with repeats over `self.layers[0]`, `self.layers[1]`, ... written as loops.

    Args:
        lines: statements.
        length_of: gives the number of submodules of the container `layers`.
    """
    out: list[str] = []
    at = 0
    while at < len(lines):
        found = _loop(lines, at, length_of)
        if found is None:
            out.append(lines[at])
            at += 1
            continue
        length, count, body = found
        out += body
        at += length * count
    return out


def _loop(lines: Sequence[str], at: int, length_of: Callable[[str], int]) -> tuple[int, int, list[str]] | None:
    for length in range(1, min(LONGEST, (len(lines) - at) // 2) + 1):
        template = [_generic(line, 0) for line in lines[at : at + length]]
        if template[-1] is None:
            return None
        if not any("[@]" in line for line in template if line):
            continue
        count = 1
        while [_generic(line, count) for line in lines[at + length * count : at + length * (count + 1)]] == template:
            count += 1
        if count > 1:
            taken = set(re.findall(r"\w+", "\n".join(lines)))
            return length, count, _written([t for t in template if t], count, taken, length_of)
    return None


def _generic(line: str, number: int) -> str | None:
    """Return the statement with the index left open, None if it has another index."""
    if any(int(m[2]) != number for m in _INDEXED.finditer(line)):
        return None
    return _INDEXED.sub(lambda m: f"self{m[1]}[@]", line)


def _written(template: Sequence[str], count: int, taken: set[str], length_of: Callable[[str], int]) -> list[str]:
    text = "\n".join(template)
    containers = list(dict.fromkeys(re.findall(r"self((?:\.\w+)+)\[@\]", text)))
    if len(containers) > 1:
        name = "i" if "i" not in taken else "i_"
        return [f"for {name} in range({count}):", *(f"    {t.replace('[@]', f'[{name}]')}" for t in template)]
    container = containers[0]
    leaf = singular(container.rpartition(".")[2])
    name = leaf if is_name(leaf) and leaf not in RESERVED and not container.endswith(leaf) else "layer"
    name = f"{name}_" if name in taken else name
    part = "" if length_of(container[1:]) == count else f"[:{count}]"
    return [
        f"for {name} in self{container}{part}:",
        *(f"    {t.replace(f'self{container}[@]', name)}" for t in template),
    ]
