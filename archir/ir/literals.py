"""The words of the text form: names, constants and kinds of stored tensors, to text and back."""

from __future__ import annotations

import json
import re

import torch

from archir.errors import ParseError
from archir.ir.constants import DEVICES, LAYOUTS, MEMORY_FORMATS
from archir.ir.node import Parameter, Scalar
from archir.ir.types import dtype_name, parse_dtype

KINDS = {"param": "parameter", "buffer": "buffer", "constant": "constant"}
"""Kinds of stored tensors by the word that declares them."""

USUAL = {"parameter": (True, True), "buffer": (False, True), "constant": (False, False)}
"""Whether a tensor of a kind is trainable and persistent if no word says otherwise."""

TRAINABLE = {"frozen": False, "trainable": True}
PERSISTENT = {"transient": False, "persistent": True}
PREFIXES = frozenset([*KINDS, *TRAINABLE, *PERSISTENT])
"""Words that may stand before a stored tensor."""

_PLACES = {str(place).removeprefix("torch."): place for place in (*LAYOUTS, *MEMORY_FORMATS)}
"""Layouts and memory formats by the name torch gives them."""

_LITERALS: dict[str, Scalar] = {"True": True, "False": False, "None": None, "inf": float("inf"), "nan": float("nan")}
_PLAIN_NAME = re.compile(r"[^\W\d]\w*")
_PLAIN_PATH = re.compile(r"\w+(?:\.\w+)*")


def is_constant(word: str) -> bool:
    """Say whether a bare word is a constant, such as `True`, `f32`, `strided` or `cuda`."""
    try:
        read_constant(word)
    except ParseError:
        return False
    return True


def read_constant(word: str) -> Scalar:
    """Return the constant a bare word stands for.

    Raises:
        ParseError: it stands for none.
    """
    if word in _LITERALS:
        return _LITERALS[word]
    if word in _PLACES:
        return _PLACES[word]
    try:
        return parse_dtype(word)
    except ParseError:
        pass
    if word.partition(":")[0] not in DEVICES:
        raise ParseError(f"{word!r} is not a constant")
    try:
        return torch.device(word)
    except RuntimeError as error:
        raise ParseError(f"{word!r} is not a constant") from error


def show_constant(value: Scalar) -> str:
    """Return the text of a constant."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, torch.layout | torch.memory_format):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, torch.device) else repr(value)


def show_name(name: str) -> str:
    """Return a name as it is written, between backquotes if it is no identifier or means something else."""
    plain = _PLAIN_NAME.fullmatch(name) and name not in PREFIXES and name != "complex" and not is_constant(name)
    return name if plain else _quote(name)


def show_path(name: str) -> str:
    """Return the name of a stored tensor as it is written, `@stem.weight`."""
    return "@" + (name if _PLAIN_PATH.fullmatch(name) else _quote(name))


def read_name(text: str) -> str:
    """Return the name that `show_name` or `show_path` wrote.

    Raises:
        ParseError: a bad escape between the backquotes.
    """
    text = text.removeprefix("@")
    return read_string(f'"{text[1:-1]}"') if text.startswith("`") else text


def read_number(text: str) -> int | float:
    """Return the number a text of digits stands for.

    Raises:
        ParseError: it is an integer of more than 64 bits.
    """
    if not text.lstrip("-").isdecimal():
        return float(text)
    found = int(text) if len(text) <= 21 else 2**64
    if not -(2**63) <= found < 2**64:
        raise ParseError("integers have 64 bits at the most")
    return found


def read_string(text: str) -> str:
    """Return the string that a JSON string literal stands for.

    Raises:
        ParseError: it has a bad escape.
    """
    try:
        return str(json.loads(text))
    except json.JSONDecodeError as error:
        raise ParseError(f"{text} is not a string", why=error.msg) from error


def _quote(name: str) -> str:
    return "`" + json.dumps(name)[1:-1].replace("`", "\\u0060") + "`"


def show_kind(parameter: Parameter) -> str:
    """Return the words that tell the kind of a stored tensor: `param`, `frozen param`, `transient buffer`."""
    trainable, persistent = USUAL[parameter.kind]
    words = [w for w, on in TRAINABLE.items() if on == parameter.trainable != trainable]
    words += [w for w, on in PERSISTENT.items() if on == parameter.persistent != persistent]
    words += [w for w, kind in KINDS.items() if kind == parameter.kind]
    return " ".join(words)
