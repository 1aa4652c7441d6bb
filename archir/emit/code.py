"""Pieces of Python source: expressions with their precedence, literals, sizes that may become arguments."""

from __future__ import annotations

import builtins
import keyword
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from archir.errors import EmitError

ATOM, POWER, UNARY, TIMES, PLUS, BITWISE, COMPARE = 100, 85, 80, 70, 60, 55, 50
WIDTH = 120
"""Longest line of emitted source."""

GLOBALS = frozenset({"F", "Path", "Tensor"})
"""Names of the emitted file that a class of the program could take."""

LABEL = re.compile(
    r"((in|out|num)_)?(features|channels|groups|embeddings|parameters|embedding_dim|(input_|hidden_)?size)\d*"
)
"""What sizes that may become constructor arguments are called, with a number where several are."""

_SIZE = re.compile("\ue000(\\w+)=(-?\\d+)\ue001")


@dataclass(frozen=True, slots=True)
class Code:
    """An expression.

    Attributes:
        text: its source.
        binds: how tightly its outermost operator binds.
        base: for a subscript, what is subscripted.
        parts: for a subscript, the slices and indices.
    """

    text: str
    binds: int = ATOM
    base: str = ""
    parts: tuple[str, ...] = ()

    def within(self, binds: int) -> str:
        """Return the source, in parentheses if it binds less tightly than `binds`."""
        return self.text if self.binds >= binds else f"({self.text})"


@dataclass(frozen=True, slots=True)
class Size:
    """An integer in the source that may become a constructor argument, with the name it would have."""

    label: str
    value: int


def size(label: str, value: int) -> str:
    """Return the mark of an integer that may become a constructor argument called `label`, as `LABEL` says."""
    assert LABEL.fullmatch(label)
    return f"\ue000{label}={value}\ue001"


def sizes_in(text: str) -> list[Size]:
    """Return the marked integers of a text, in order."""
    return [Size(m[1], int(m[2])) for m in _SIZE.finditer(text)]


def replace_sizes(text: str, new: Callable[[Size], str]) -> str:
    """Return the text with every marked integer replaced by what `new` makes of it."""
    return _SIZE.sub(lambda m: new(Size(m[1], int(m[2]))), text)


def plain(text: str) -> str:
    """Return the text with marked integers as ordinary literals."""
    return replace_sizes(text, lambda s: str(s.value))


def literal(value: object) -> str:
    """Return the source of a constant: a number, a string, `None`, an element type, a device, or a tuple of these.

    Raises:
        EmitError: it is something else.
    """
    if isinstance(value, tuple):
        return f"[{', '.join(map(literal, value))}]"
    kind = type(value)
    if kind is str:
        return quoted(value)  # type: ignore[arg-type]
    if kind in (float, complex):
        return _number(value)  # type: ignore[arg-type]
    if value is None or kind in (bool, int):
        return repr(value)
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return f"{value}"
    if isinstance(value, torch.device):
        return f"torch.device({quoted(str(value))})"
    raise EmitError(f"a constant of type {kind.__name__} cannot be written")


def _number(value: float | complex) -> str:
    """Return the source of a number; `repr` has no source of infinity, NaN, and zeros of complex ones."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    real, imag = value.real, value.imag
    plain = (real > 0 and imag != 0) or (repr(real) == "0.0" and imag > 0)
    exact = plain and math.isfinite(real) and math.isfinite(imag)
    return repr(value) if exact else f"complex({_number(real)}, {_number(imag)})"


def quoted(text: str) -> str:
    """Return a string literal, in double quotes where the text has none."""
    shown = repr(text)
    return shown if '"' in text or shown[0] == '"' else f'"{shown[1:-1]}"'


def identifier(text: str) -> str:
    """Return the text as a lower-case Python name of ASCII letters, digits and underscores."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "value"
    return f"_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


def class_identifier(text: str) -> str:
    """Return the text as a class name: `encoder_layer` becomes `EncoderLayer`."""
    words = [w for w in re.split(r"\W+|_", text, flags=re.ASCII) if w]
    name = "".join(w[0].upper() + w[1:] for w in words) or "Module"
    taken = keyword.iskeyword(name) or name in GLOBALS or hasattr(builtins, name)
    return f"Module{name}" if taken or name[0].isdigit() else name


def is_name(text: str) -> bool:
    """Say whether a text can be an attribute: a name that Python neither folds (`ﬁ`) nor mangles (`__x`)."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("__")


def is_number(text: str) -> bool:
    """Say whether a text is how a place in a list is written: `0`, `12`, not `012`."""
    return text.isascii() and text.isdecimal() and len(text) < 10 and (text == "0" or text[0] != "0")


def singular(text: str) -> str:
    """Return the singular of a plural name: `layers` becomes `layer`."""
    return text[:-1] if len(text) > 2 and text.endswith("s") and not text.endswith("ss") else text


def wrap(line: str, indent: int = 0) -> list[str]:
    """Break a line that is too long inside its last bracket, the way formatters do.

    Args:
        line: a statement without its indentation.
        indent: number of spaces before it.
    """
    space = " " * indent
    if indent + len(line) <= WIDTH:
        return [space + line]
    start, end = _last_bracket(line)
    if start < 0:
        return [space + line]
    head, body, tail = line[: start + 1], line[start + 1 : end], line[end:]
    if not body or (tail[1:] not in ("", ":", ",") and not tail.startswith(") -> ")):
        return [space + line]
    inner = indent + 4
    if inner + len(body) <= WIDTH and not body.endswith(","):
        return [space + head, " " * inner + body, space + tail]
    each, loop, count = body.rpartition(" for _ in range(")
    if loop and count[:-1].isdecimal() and len(split_commas(body)) == 1 and each.count("(") == each.count(")"):
        return [space + head, *wrap(each, inner), " " * inner + loop.strip() + count, space + tail]
    broken = [piece for part in split_commas(body) for piece in wrap(part + ",", inner)]
    return [space + head, *broken, space + tail]


def _last_bracket(line: str) -> tuple[int, int]:
    """Return the place of the last top-level bracket pair."""
    start = end = -1
    opened: list[int] = []
    returns = line.rfind(" -> ") if line.startswith("def ") else -1
    for at, char in _outside_strings(line if returns < 0 else line[:returns]):
        if char in "([{":
            opened.append(at)
        elif char in ")]}":
            first = opened.pop()
            if not opened:
                start, end = first, at
    return start, end


def split_commas(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and strings."""
    parts, depth, begin = [], 0, 0
    for at, char in _outside_strings(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()]


def _outside_strings(text: str) -> Iterable[tuple[int, str]]:
    quote, escaped = "", False
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "\"'":
            quote = char
        else:
            yield at, char
