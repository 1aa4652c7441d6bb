"""What names in a graph may be: they become attributes of modules, arguments of functions, and words of source."""

from __future__ import annotations

import keyword
from functools import lru_cache

from torch import nn

from archir.errors import GraphError

DEEPEST = 100
"""The most modules within one another; the interpreter reads no source that is nested much deeper."""

_TAKEN = frozenset(dir(nn.Module())) | {"training", "forward"}
"""What every module has already."""


@lru_cache(maxsize=65536)
def check_path(path: str, what: str = "the name of a stored tensor") -> None:
    """Check the dotted name of a tensor or of a module: every part is one that a module can have.

    Args:
        path: `layers.0.weight`; any characters between the dots.
        what: what it names, for the error.

    Raises:
        GraphError: a part is empty, or is something that every module has already; all such parts at once.
    """
    parts = path.split(".")
    problems = ["it has an empty part"] if "" in parts else []
    problems += [f"it has {len(parts):,} parts, more than {DEEPEST}"] if len(parts) > DEEPEST else []
    problems += [f"every module has {part!r} already" for part in dict.fromkeys(parts) if part in _TAKEN]
    problems += [] if _is_text(path) else ["it cannot be written to a file"]
    if problems:
        raise GraphError(f"{path!r} cannot be {what}", why="; ".join(problems), mend="rename it in the model")


@lru_cache(maxsize=65536)
def check_argument(name: str) -> None:
    """Check the name of an input or of a keyword argument: it is a Python name.

    Raises:
        GraphError: it is none.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        mend = "argument names are like Python's: letters, digits and underscores"
        raise GraphError(f"{name!r} cannot be the name of an argument", mend=mend)


def check_title(name: str) -> None:
    """Check the name of a graph: the class of its module is called that.

    Raises:
        GraphError: it has a null character, or cannot be written to a file.
    """
    if "\0" in name or not _is_text(name):
        raise GraphError(f"{name!r} cannot be the name of a graph")


def _is_text(text: str) -> bool:
    """Say whether a string can be written to a file: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
