"""The work of the command diff."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from archir.cli.console import print_table, say
from archir.cli.nets import load_net
from archir.cli.rewriting import cost_rows
from archir.comparison import Difference, Side, WidthChange, compare

ABSENT = "-"
"""What stands in a table for something a graph does not have."""

MOST = 4
"""Places of a width, or names of tensors, that are shown."""

Rows = list[tuple[str, ...]]
"""The cells of a table."""


def diff(one: Path, other: Path, *, as_json: bool) -> None:
    """Tell what changed from one graph to another.

    Raises:
        CaptureError: nodes of an ONNX file cannot be read.
        FileError: a file is missing or damaged.
    """
    found = compare(load_net(one), load_net(other))
    if as_json:
        say(json.dumps(asdict(found), indent=2))
        return
    if found.is_empty:
        say("the graphs are the same" + ("" if found.history[0] == found.history[1] else ", but for their history"))
    print_table(("", ">before", ">after", ">change"), cost_rows(found.before, found.after))
    for title, columns, rows in _tables(found):
        say("")
        say(title)
        print_table(columns, rows)
    for line in _lines(found):
        say("")
        say(line)


def _tables(found: Difference) -> Iterator[tuple[str, tuple[str, ...], Rows]]:
    if found.operators:
        counts: Rows = [(o.op, str(o.before), str(o.after), f"{o.after - o.before:+}") for o in found.operators]
        added = sum(max(o.after - o.before, 0) for o in found.operators)
        removed = sum(max(o.before - o.after, 0) for o in found.operators)
        yield f"calls: {added} added, {removed} removed", ("operator", ">before", ">after", ">change"), counts
    if found.widths:
        rows: Rows = [(_name(w), _size(w.before), _size(w.after), _shortened(w.places)) for w in found.widths]
        yield f"{len(rows)} widths changed", ("width", ">before", ">after", "places"), rows
    if found.tensors:
        kinds = [(t.before is None, t.after is None) for t in found.tensors]
        added, removed = kinds.count((True, False)), kinds.count((False, True))
        changed = len(kinds) - added - removed
        rows = [(t.name, t.before or ABSENT, t.after or ABSENT) for t in found.tensors]
        title = f"{added} added, {removed} removed, {changed} resized"
        yield "{} -> {} stored tensors: {}".format(*found.stored, title), ("tensor", "before", "after"), rows


def _lines(found: Difference) -> Iterator[str]:
    if found.altered:
        yield f"other numbers of the same shape in {len(found.altered)} stored tensors: {_shortened(found.altered)}"
    if not (found.same_program or found.operators or found.widths or found.tensors):
        yield "the same operators are called with other arguments, or in another order"
    before, after = found.history
    shared = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    for which, specs in (("first", before[shared:]), ("second", after[shared:])):
        if specs:
            yield f"only the {which} was rewritten by {'; '.join(specs)}"


def _name(width: WidthChange) -> str:
    names = dict.fromkeys(side.name for side in (width.before, width.after) if side)
    return " -> ".join(names)


def _size(side: Side | None) -> str:
    return ABSENT if side is None else f"{side.size}" if side.free else f"{side.size} frozen"


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
