"""What names in a graph may be: they become attributes of modules, arguments of functions, and words of source.

PyTorch writes source of its own when a module is captured, and puts names and constant arguments between quotes there
as they are; what could end such a string or such a line is in none of them.
"""

from __future__ import annotations

import keyword
import unicodedata
from functools import lru_cache

from torch import nn

from archir.errors import GraphError

LONGEST = 200
"""The most characters of a name between two dots."""

DEEPEST = 64
"""The most parts of a path."""

_TAKEN = frozenset(dir(nn.Module())) | {"training", "forward", "__debug__"}
"""What every module has already, or can never be given."""

_QUOTES = frozenset("\"'`\\")


@lru_cache(maxsize=65536)
def check_path(path: str, what: str = "the name of a stored tensor") -> None:
    """Check the dotted name of a tensor or of a module: every part is one that a module can have.

    Args:
        path: `layers.0.weight`; any plain text between the dots.
        what: what it names, for the error.

    Raises:
        GraphError: it is too long, no plain text, or has a part that is empty or that every module has already; all
            that is wrong at once.
    """
    parts = path.split(".")
    problems = ["it has an empty part"] if "" in parts else []
    problems += [f"every module has {part!r} already" for part in dict.fromkeys(parts) if part in _TAKEN]
    problems += [f"Python reads {part!r} as another name" for part in dict.fromkeys(parts) if _is_changed(part)]
    problems += [f"it has {len(parts):,} parts, more than {DEEPEST}"] if len(parts) > DEEPEST else []
    problems += _length_faults(max(parts, key=len)) + _faults(path)
    if problems:
        raise _refused(path, what, problems, hint="rename it in the model")


@lru_cache(maxsize=65536)
def check_argument(name: str) -> None:
    """Check the name of an input or of a keyword argument: it is a Python name, spelled as Python keeps it.

    Raises:
        GraphError: it is none, or too long.
    """
    is_name = name.isidentifier() and not keyword.iskeyword(name) and name != "__debug__"
    if not is_name or _is_changed(name) or _length_faults(name):
        hint = "argument names are like Python's: letters, digits and underscores"
        raise _refused(name, "the name of an argument", [], hint)


def check_keyword(name: str) -> None:
    """Check the name of a keyword argument: one an argument may have, and not that of the module itself.

    Raises:
        GraphError: it is none.
    """
    check_argument(name)
    if name == "self":
        raise _refused(name, "the name of an argument", ["modules are called so already"], "give it by its place")


def check_title(name: str) -> None:
    """Check the name of a graph: the class of its module is called that.

    Raises:
        GraphError: it is too long, or no plain text.
    """
    if problems := _length_faults(name) + _faults(name):
        raise _refused(name, "the name of a graph", problems)


def check_text(text: str) -> None:
    """Check a text that a module is called with, as a key or a constant.

    Raises:
        GraphError: it is too long, or no plain text.
    """
    if problems := _length_faults(text) + _faults(text):
        raise _refused(text, "part of what a module is called with", problems)


def _faults(text: str) -> list[str]:
    """Return why a text may not stand in source that others write, nothing if it may."""
    if not text.isprintable():
        return ["it has characters that cannot be printed"]
    return [] if _QUOTES.isdisjoint(text) else ["it has quotes or backslashes"]


def _length_faults(text: str) -> list[str]:
    return [f"{text[:LONGEST]!r}... has more than {LONGEST} characters"] if len(text) > LONGEST else []


def _is_changed(text: str) -> bool:
    return text.isidentifier() and unicodedata.normalize("NFKC", text) != text


def _refused(name: str, what: str, problems: list[str], hint: str = "") -> GraphError:
    shown = repr(name if len(name) <= LONGEST else f"{name[:LONGEST]}...")
    return GraphError(f"{shown} cannot be {what}", why="; ".join(problems), hint=hint)
