"""Tables in Markdown, put between marks in pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def replace_table(path: Path, mark: str, table: str) -> None:
    """Put a table between `<!-- mark -->` and `<!-- /mark -->` in a page.

    Raises:
        ValueError: the page has no such marks.
    """
    before, _, after = _parts(path, mark)
    path.write_text(f"{before}\n{table}{after}")


def columns(path: Path, mark: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells that a table has in the columns of these names, by the first cell of their row.

    Raises:
        ValueError: the page has no such marks.
    """
    header, *rows = _cells(_parts(path, mark)[1])
    places = [header.index(name) for name in names if name in header]
    return {row[0]: [row[i] for i in places] for row in rows} if len(places) == len(names) else {}


def replace_columns(path: Path, mark: str, names: Sequence[str], cells: Mapping[str, Sequence[str]]) -> None:
    """Put columns at the end of a table, in place of those of the same names; a row without cells gets `-`.

    Args:
        path: the page.
        mark: the table's.
        names: of the columns.
        cells: one a column, by the first cell of the row.

    Raises:
        ValueError: the page has no such marks.
    """
    header, *rows = _cells(_parts(path, mark)[1])
    kept = [i for i, name in enumerate(header) if name not in names]
    missing = ["-"] * len(names)
    made = [[*(row[i] for i in kept), *cells.get(row[0], missing)] for row in rows]
    replace_table(path, mark, markdown([*(header[i] for i in kept), *names], made))


def _parts(path: Path, mark: str) -> tuple[str, str, str]:
    """Return the text up to a mark and with it, the table, and the rest."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = path.read_text().partition(start)
    table, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path.name} has no marks {start} and {end}")
    return f"{before}{start}", table, f"{end}{after}"


def _cells(table: str) -> list[list[str]]:
    """Return the rows of a table, the header first and the line under it left out."""
    lines = [line for line in table.splitlines() if line.strip()]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return rows[:1] + rows[2:] if rows else [[]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
