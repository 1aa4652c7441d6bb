"""Specifications of passes as text: `split{width=w3, units=[5]}; prune{width=w1, units=[0, 2]}  # a comment`.

A pass is a frozen dataclass; its options are its fields: words, numbers, truth values, passes, or tuples of them.
Printing and parsing are inverse to each other. A file of specifications holds one or more a line.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, cast

from archir.errors import ParseError, suggest
from archir.rewrite.passes import Pass

_PLAIN = r"[%\w.@\-+]+"
_TOKEN = re.compile(rf'(?P<word>{_PLAIN})|(?P<string>"(?:[^"\\]|\\.)*")|(?P<sign>[{{}}\[\],=;])')
DEEPEST = 40
"""How deep passes may stand in the options of others."""

SHOWN = 100
"""Characters of a line that an error shows around the word it points at."""

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    start: int
    kind: str


def options_of(pass_: Pass | type[Pass]) -> tuple[Field[Any], ...]:
    """Return the options of a pass: the fields of its dataclass."""
    return fields(cast(Any, pass_))


def format_spec(pass_: Pass) -> str:
    """Return the text of a pass; options equal to their defaults are left out."""
    shown = []
    for field in options_of(pass_):
        value = getattr(pass_, field.name)
        if field.default is MISSING or value != field.default:
            shown.append(f"{field.name}={format_value(value)}")
    return f"{pass_.name}{{{', '.join(shown)}}}" if shown else pass_.name


def format_value(value: object) -> str:
    """Return the text of the value of an option: `[1, 2]`, `true`, `"two words"`."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, Pass):
        return format_spec(value)
    if isinstance(value, str):
        return value if is_word(value) else json.dumps(value)
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def is_word(text: str) -> bool:
    """Say whether a text is a word of a specification, as the names of passes are."""
    return re.fullmatch(_PLAIN, text) is not None


def parse_specs(text: str, registry: Mapping[str, type[Pass]]) -> list[Pass]:
    """Parse passes separated by semicolons.

    Args:
        text: the specifications.
        registry: the known passes by name.

    Raises:
        ParseError: the text is not a specification, or names an unknown pass or option; it points at the word.
    """
    return _Parser(text, registry).passes()


def parse_spec_lines(text: str, registry: Mapping[str, type[Pass]], *, source: str) -> list[Pass]:
    """Parse the content of a file of specifications: one or more a line, comments after `#`.

    Args:
        text: the content of the file.
        registry: the known passes by name.
        source: name of the file, for errors.

    Raises:
        ParseError: a line is not a specification; it names the file and the line, and points at the word.
    """
    lines = enumerate(text.splitlines(), start=1)
    return [pass_ for number, line in lines for pass_ in _Parser(line, registry, f"{source}:{number}").passes()]


class _Parser:
    def __init__(self, text: str, registry: Mapping[str, type[Pass]], source: str = "") -> None:
        self.text = text
        self.registry = registry
        self.source = source
        self.tokens = self._tokens()
        self.position = 0
        self.depth = 0

    def _tokens(self) -> list[_Token]:
        tokens: list[_Token] = []
        position = self._after_blanks(0)
        while position < len(self.text):
            found = _TOKEN.match(self.text, position)
            if found is None:
                raise self._error("this character has no meaning here", position, 1)
            tokens.append(_Token(found.group(), position, found.lastgroup or "word"))
            position = self._after_blanks(found.end())
        return tokens

    def _after_blanks(self, position: int) -> int:
        blank = _BLANK.match(self.text, position)
        return blank.end() if blank else position

    def _error(self, why: str, start: int, length: int, mend: str = "") -> ParseError:
        place = f"{self.source}\n         " if self.source else ""
        line = self.text.replace("\n", " ").replace("\t", " ")
        first = max(0, start - SHOWN) if len(line) > 2 * SHOWN else 0
        shown, length = line[first : first + 2 * SHOWN], min(length, SHOWN)
        pointer = f"{place}{shown}\n         {' ' * (start - first)}{'^' * max(length, 1)}"
        return ParseError("this is not a specification of passes", where=pointer, why=why, mend=mend)

    def _error_at_end(self, expected: str) -> ParseError:
        last = self.tokens[-1]
        return self._error(f"it ends where {expected} is expected", last.start + len(last.text), 1)

    def _peek(self) -> str:
        return self.tokens[self.position].text if self.position < len(self.tokens) else ""

    def _take(self, expected: str = "") -> _Token:
        if self.position >= len(self.tokens):
            raise self._error_at_end(repr(expected) if expected else "a word")
        token = self.tokens[self.position]
        if expected and token.text != expected:
            raise self._error(f"{expected!r} is expected here", token.start, len(token.text))
        self.position += 1
        return token

    def _take_comma(self, end: str) -> None:
        """Take the comma after a part, unless the list ends here."""
        if self._peek() != end:
            if self.position >= len(self.tokens):
                raise self._error_at_end(f"',' or {end!r}")
            self._take(",")

    def passes(self) -> list[Pass]:
        found: list[Pass] = []
        while self.position < len(self.tokens):
            if self._peek() == ";":
                self._take()
                continue
            found.append(self._pass())
            if self.position < len(self.tokens):
                self._take(";")
        return found

    def _pass(self) -> Pass:
        name = self._take()
        if self.depth > DEEPEST:
            raise self._error("passes are nested too deep here", name.start, len(name.text))
        kind = self.registry.get(name.text)
        if kind is None:
            raise self._error(
                f"there is no pass {name.text[:SHOWN]!r}", name.start, len(name.text), suggest(name.text, self.registry)
            )
        options: dict[str, Any] = {}
        known = typing.get_type_hints(kind)
        names = [f.name for f in options_of(kind)]
        if self._peek() == "{":
            self._take()
            while self._peek() != "}":
                key = self._take()
                if key.text not in names:
                    why = f"{name.text} has no option {key.text!r}"
                    raise self._error(why, key.start, len(key.text), suggest(key.text, names))
                if key.text in options:
                    raise self._error(f"{key.text} is given twice", key.start, len(key.text))
                self._take("=")
                options[key.text] = self._value(known[key.text])
                self._take_comma("}")
            self._take("}")
        missing = [f.name for f in options_of(kind) if f.default is MISSING and f.name not in options]
        if missing:
            raise self._error(f"{name.text} needs the option {missing[0]!r}", name.start, len(name.text))
        return kind(**options)

    def _value(self, kind: Any) -> object:
        if typing.get_origin(kind) is tuple:
            self._take("[")
            items: list[object] = []
            while self._peek() != "]":
                items.append(self._value(typing.get_args(kind)[0]))
                self._take_comma("]")
            self._take("]")
            return tuple(items)
        if isinstance(kind, type) and issubclass(kind, Pass):
            self.depth += 1
            found = self._pass()
            self.depth -= 1
            return found
        token = self._take()
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
        try:
            if token.kind == "sign":
                raise ValueError(token.text)
            word = json.loads(token.text) if token.kind == "string" else token.text
            return {"true": True, "false": False}[word] if kind is bool else kind(word)
        except (ValueError, KeyError) as error:
            raise self._error(f"{wanted} is expected here", token.start, len(token.text)) from error


def format_specs(passes: Sequence[Pass]) -> str:
    """Return the text of several passes, separated by semicolons."""
    return "; ".join(map(format_spec, passes))
