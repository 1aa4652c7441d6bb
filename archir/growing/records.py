"""JSON as runs record it, read from files that anybody may have written."""

from __future__ import annotations

import json
import math
from typing import Any

from archir.errors import GrowError

DIGITS = 20
"""The most digits of a whole number in a record: more than any 64-bit number has."""


def to_json(value: object) -> bytes:
    """Return a value as JSON in one line.

    Raises:
        GrowError: it is not JSON, or holds a number that is not finite.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise GrowError("what a run records is JSON with finite numbers", why=str(error)) from error


def from_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, whose numbers are finite and of a size that can be computed with.

    Raises:
        ValueError: it is not JSON, is nested too deep, or holds such a number or half a character.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode()
        found = json.loads(decoded, parse_int=_whole, parse_float=_finite, parse_constant=_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if "\\ud" in decoded.lower():
        json.dumps(found, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be printed
    return found


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is not finite")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
