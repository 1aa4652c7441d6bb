"""What archir notes of a program in files of other kinds, which have a place for texts by name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable

from archir.errors import ParseError
from archir.ir.data import GraphData
from archir.ir.text import print_function

HISTORY = "archir.history"
"""The name of the note of the passes that led to a program."""

GUARDS = "archir.guards"
"""The name of the note of what the sizes of its inputs have to satisfy."""


def version_of(package: str) -> str:
    """Return the version of a package, `not installed` if it runs from its source."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def program_checksum(graph: GraphData) -> str:
    """Return the SHA-256 of the text form of a graph: two of one program have the same, whatever their weights are."""
    return hashlib.sha256(print_function(graph).encode(errors="surrogatepass")).hexdigest()


def write_texts(texts: Iterable[str]) -> str:
    """Return texts as JSON, which `read_texts` reads."""
    return json.dumps(list(texts))


def read_texts(note: str) -> tuple[str, ...]:
    """Return the texts of a note: the passes that led to a program, or its guards.

    Raises:
        ParseError: it is no list of texts in JSON.
    """
    try:
        found = json.loads(note)
    except (ValueError, RecursionError) as error:
        raise ParseError("this note is no list of texts", why=str(error)) from error
    if not isinstance(found, list) or not all(isinstance(text, str) and _is_whole(text) for text in found):
        raise ParseError("this note is no list of texts", hint='it looks like ["text", "text"]')
    return tuple(found)


def _is_whole(text: str) -> bool:
    """Say whether a text holds no half of a surrogate pair, which cannot be printed."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
