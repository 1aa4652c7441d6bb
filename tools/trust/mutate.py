"""Mutations of bytes and of texts, drawn from a source of randomness."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`\n]*`|[@%]?[\w.]+|#:|\s+|.', re.DOTALL)
_EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_DEPTHS = (20, 200, 2000, 20_000)


def mutate_bytes(dice: random.Random, data: bytes, most: int = 4) -> bytes:
    """Return bytes with a few bits flipped, parts removed, repeated, moved, or overwritten by extreme numbers."""
    found = bytearray(data)
    for _ in range(dice.randint(1, most)):
        size = len(found)
        at = dice.randrange(size + 1)
        length = min(dice.choice((1, 2, 4, 8, 16, 64, 512)), size - at)
        match dice.randrange(9):
            case 0 if at < size:
                found[at] ^= 1 << dice.randrange(8)
            case 1 if at < size:
                found[at] = dice.choice(
                    (0, 1, 10, 32, 34, 44, 91, 92, 93, 123, 125, 127, 128, 255, dice.randrange(256))
                )
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                found[at:at] = dice.randbytes(length)
            case 5:
                del found[at:]
            case 6:
                number = struct.pack(dice.choice(("<Q", ">Q", "<I", ">I")), dice.choice(_EXTREMES) % 2**32)
                found[at : at + len(number)] = number
            case 7:
                other = dice.randrange(size + 1)
                found[at : at + length] = found[other : other + length]
            case _:
                found[at:at] = b"\0" * dice.choice((1, 8, 4096))
    return bytes(found)


def mutate_text(dice: random.Random, text: str, words: Sequence[Sequence[str]], most: int = 4) -> str:
    """Return a text with a few tokens or lines replaced, removed, repeated, swapped or nested.

    Args:
        dice: the source of randomness.
        text: the text.
        words: kinds of words to put in the places of others; every kind is as likely as any.
        most: number of mutations, where it is not one.
    """
    for _ in range(dice.choice((1, 1, most))):
        text = dice.choice(_MUTATIONS)(dice, text, words)
    return text


def _replaced(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    return _at_token(dice, text, lambda _: dice.choice(dice.choice(words)))


def _inserted(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    return _at_token(dice, text, lambda token: f"{token}{dice.choice(dice.choice(words))}")


def _removed(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    return _at_token(dice, text, lambda _: "")


def _copied(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    other = dice.choice(_tokens(text))
    return _at_token(dice, text, lambda _: other)


def _nested(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    opening, close = dice.choice(("()", "[]", "{}", ("-", ""), ("floor(", ")"), ('{"a": ', "}"), ("[1, ", "]")))
    depth = dice.choice(_DEPTHS)
    return _at_token(dice, text, lambda token: opening * depth + token + close * depth)


def _edited(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    def edit(token: str) -> str:
        at = dice.randrange(len(token) + 1)
        return (
            token[:at]
            + chr(dice.choice((0, 9, 10, 34, 39, 92, 96, 123, 0x2028, 0xFF, dice.randrange(0xD7FF))))
            + token[at:]
        )

    return _at_token(dice, text, edit)


def _numbered(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    """Change one number."""
    places = [m.span() for m in re.finditer(r"\d+", text)]
    if not places:
        return text
    start, end = dice.choice(places)
    old = int(text[start:end][:18])
    new = dice.choice((0, old + 1, old - 1, old * 2, -old, *_EXTREMES, 10**30))
    return f"{text[:start]}{new}{text[end:]}"


def _lines(dice: random.Random, text: str, words: Sequence[Sequence[str]]) -> str:
    lines = text.splitlines(keepends=True)
    at, other = dice.randrange(len(lines) + 1), dice.randrange(len(lines) + 1)
    match dice.randrange(4):
        case 0:
            lines[at:at] = lines[other : other + 1]
        case 1:
            del lines[at : at + 1]
        case 2:
            lines[at:at] = lines[other : other + 1] * dice.choice((3, 30, 300))
        case _:
            lines[at : at + 1], lines[other : other + 1] = lines[other : other + 1], lines[at : at + 1]
    return "".join(lines)


def _at_token(dice: random.Random, text: str, change: Callable[[str], str]) -> str:
    tokens = _tokens(text)
    at = dice.randrange(len(tokens))
    return "".join([*tokens[:at], change(tokens[at]), *tokens[at + 1 :]])


def _tokens(text: str) -> list[str]:
    return [t for t in _TOKEN.findall(text) if t] or [""]


_MUTATIONS = (_replaced, _replaced, _replaced, _inserted, _removed, _copied, _nested, _edited, _numbered, _lines)
