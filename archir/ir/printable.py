"""Text that prints as it is, whoever wrote it."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return a text with all characters but line ends that print nothing written out: `\x1b` for an escape.

    What is printed may come from a file of a stranger's, whose names may hold sequences that move the cursor, rename
    the window, or turn the direction of writing.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
