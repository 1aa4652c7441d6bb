"""What archir notes of a program in files of other kinds, which have a place for texts by name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json

from archir.errors import ParseError
from archir.ir.data import GraphData
from archir.ir.text import print_graph

HISTORY = "archir.history"
"""The name of the note of the passes that led to a program."""


def version_of(package: str) -> str:
    """Return the version of a package, `not installed` if it runs from its source."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def program_checksum(graph: GraphData) -> str:
    """Return the SHA-256 of the text form of a graph: two of one program have the same, whatever their weights are."""
    return hashlib.sha256(print_graph(graph).encode(errors="surrogatepass")).hexdigest()


def write_history(history: tuple[str, ...]) -> str:
    """Return the passes that led to a program as JSON, which `read_history` reads."""
    return json.dumps(history)


def read_history(text: str) -> tuple[str, ...]:
    """Return the passes that a note tells.

    Raises:
        ParseError: it is no list of texts in JSON.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParseError("this note is not a history", why=str(error)) from error
    if not isinstance(found, list) or not all(isinstance(spec, str) and _is_whole(spec) for spec in found):
        raise ParseError("this note is not a history", hint='it is a list of texts: ["spec", "spec"]')
    return tuple(found)


def _is_whole(text: str) -> bool:
    """Say whether a text holds no half of a surrogate pair, which cannot be printed."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
