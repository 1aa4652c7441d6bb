"""Tables in Markdown, put between marks in pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def replace_table(path: Path, mark: str, table: str) -> None:
    """Put a table between `<!-- mark -->` and `<!-- /mark -->` in a page.

    Raises:
        ValueError: the page has no such marks.
    """
    text = path.read_text()
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path.name} has no marks {start} and {end}")
    path.write_text(f"{before}{start}\n{table}{end}{after}")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
