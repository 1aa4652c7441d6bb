"""Specifications of passes as text: `split{width=w3, units=[5]}; prune{width=w1, units=[0, 2]}  # a comment`.

A pass is a frozen dataclass; its options are its fields: words, numbers, truth values, passes, or tuples of them.
Printing and parsing are inverse to each other. A file of specifications holds one or more a line.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, cast

from archir.errors import ParseError, suggest
from archir.ir.scanner import STRING, Grammar, Scanner, Token
from archir.rewrite.passes import Pass

_PLAIN = r"[%\w.@\-+]+"
_GRAMMAR = Grammar(
    re.compile(r"(?:\s+|#[^\n]*)*"),
    re.compile(rf"(?P<word>{_PLAIN})|{STRING}|(?P<mark>[{{}}\[\],=;])|(?P<unknown>\S)"),
)
DEEPEST = 40
"""How deep passes may stand in the options of others."""

SHOWN = 100
"""Characters of a name that an error shows."""


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
        self.scanner = Scanner(text, _GRAMMAR)
        self.registry = registry
        self.source = source
        self.depth = 0

    def _error(self, token: Token, why: str, hint: str = "") -> ParseError:
        lines = [*([self.source] if self.source else []), *self.scanner.pointed(token)]
        return ParseError("this is not a specification of passes", where="\n         ".join(lines), why=why, hint=hint)

    def _take(self, expected: str = "", at_end: str = "") -> Token:
        token = self.scanner.next()
        if token.kind == "end":
            wanted = at_end or (repr(expected) if expected else "a word")
            raise self._error(token, f"it ends where {wanted} is expected")
        if token.kind == "unknown":
            raise self._error(token, "this character has no meaning here")
        if expected and token.text != expected:
            raise self._error(token, f"{expected!r} is expected here")
        return token

    def _items(self, close: str, read: Callable[[], None]) -> None:
        """Read what stands between commas, and the bracket that ends it."""
        while not self.scanner.accept(close):
            read()
            if self.scanner.peek().text != close:
                self._take(",", f"',' or {close!r}")

    def passes(self) -> list[Pass]:
        found: list[Pass] = []
        while self.scanner.peek().kind != "end":
            if self.scanner.accept(";"):
                continue
            found.append(self._pass())
            if self.scanner.peek().kind != "end":
                self._take(";")
        return found

    def _pass(self) -> Pass:
        name = self._take()
        if self.depth > DEEPEST:
            raise self._error(name, "passes are nested too deep here")
        kind = self.registry.get(name.text)
        if kind is None:
            raise self._error(name, f"there is no pass {name.text[:SHOWN]!r}", suggest(name.text, self.registry))
        options: dict[str, Any] = {}
        known = typing.get_type_hints(kind)
        names = [f.name for f in options_of(kind)]

        def option() -> None:
            key = self._take()
            if key.text not in names:
                raise self._error(key, f"{name.text} has no option {key.text[:SHOWN]!r}", suggest(key.text, names))
            if key.text in options:
                raise self._error(key, f"{key.text} is given twice")
            self._take("=")
            options[key.text] = self._value(known[key.text])

        if self.scanner.accept("{"):
            self._items("}", option)
        missing = [f.name for f in options_of(kind) if f.default is MISSING and f.name not in options]
        if missing:
            raise self._error(name, f"{name.text} needs the option {missing[0]!r}")
        return kind(**options)

    def _value(self, kind: Any) -> object:
        if typing.get_origin(kind) is tuple:
            items: list[object] = []
            self._take("[")
            self._items("]", lambda: items.append(self._value(typing.get_args(kind)[0])))
            return tuple(items)
        if isinstance(kind, type) and issubclass(kind, Pass):
            self.depth += 1
            found = self._pass()
            self.depth -= 1
            return found
        token = self._take()
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
        try:
            if token.kind == "mark":
                raise ValueError(token.text)
            word = json.loads(token.text) if token.kind == "string" else token.text
            return {"true": True, "false": False}[word] if kind is bool else kind(word)
        except (ValueError, KeyError) as error:
            raise self._error(token, f"{wanted} is expected here") from error


def format_specs(passes: Sequence[Pass]) -> str:
    """Return the text of several passes, separated by semicolons."""
    return "; ".join(map(format_spec, passes))
