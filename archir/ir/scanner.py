"""Reads the words of a text one after the other and says where an error is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from archir.errors import GraphError, ParseError

SHOWN = 160
"""The longest piece of a line that an error shows."""


class Grammar(NamedTuple):
    """What the words of a text are.

    Attributes:
        blank: what is passed over, comments too.
        token: the words; the name of the group that matches is the kind.
    """

    blank: re.Pattern[str]
    token: re.Pattern[str]


STRING = r"""(?P<string>"(?:[^"\\\n]|\\.)*")"""
GRAPHS = Grammar(
    re.compile(r"(?:\s+|#(?!:)[^\n]*)*"),
    re.compile(
        rf"""(?P<note>\#:[^\n]*)
          | {STRING}
          | (?P<path>@(?:`[^`\n]*`|\w+(?:\.\w+)*))
          | (?P<value>%\d+(?:\.\d+)?)
          | (?P<number>-?(?:\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+|inf\b|nan\b))
          | (?P<word>[^\W\d]\w*(?:\.\w+)*(?::\d+)?)
          | (?P<quoted>`[^`\n]*`)
          | (?P<mark>[()\[\]{{}},:=])
          | (?P<unknown>\S)""",
        re.VERBOSE,
    ),
)
"""Of the text form of a graph, in which `#:` comments are words."""


class Token(NamedTuple):
    """A word of a text.

    Attributes:
        kind: `note`, `string`, `path`, `value`, `number`, `word`, `quoted`, `mark`, `unknown` or `end`; a grammar need
            not have all of them.
        text: the word.
        start: offset of its first character.
    """

    kind: str
    text: str
    start: int


class Scanner:
    """A place in a text."""

    def __init__(self, text: str, grammar: Grammar = GRAPHS) -> None:
        """Start at the beginning of a text."""
        self._text = text
        self._grammar = grammar
        self._at = 0

    def peek(self, ahead: int = 0) -> Token:
        """Return the next token, or one further ahead, without passing it."""
        at = self._at
        for _ in range(ahead + 1):
            token = self._token(at)
            at = token.start + len(token.text)
        return token

    def next(self) -> Token:
        """Return the next token and pass it."""
        token = self._token(self._at)
        self._at = token.start + len(token.text)
        return token

    def since(self, token: Token) -> Token:
        """Return everything from a token up to here as one."""
        return Token("span", self._text[token.start : self._at], token.start)

    def accept(self, text: str) -> bool:
        """Pass the next token if it is `text`, and say whether it was."""
        found = self.peek()
        if found.kind in ("mark", "word") and found.text == text:
            self.next()
            return True
        return False

    def expect(self, text: str, what: str = "") -> None:
        """Pass the next token.

        Raises:
            ParseError: it is not `text`.
        """
        if not self.accept(text):
            raise self.unexpected(what or f"{text!r}")

    def pieces(self, close: str) -> list[Token]:
        """Pass everything up to a closing bracket, and the bracket; return what stands between the commas.

        Raises:
            ParseError: the line ends before the bracket comes.
        """
        pieces: list[Token] = []
        depth, start = 0, self._at
        for at in range(self._at, len(self._text)):
            char = self._text[at]
            if char == "\n":
                break
            closing = char == close and depth == 0
            if closing or (char == "," and depth == 0):
                piece = self._text[start:at]
                if piece.strip() or not closing or pieces:
                    blank = len(piece) - len(piece.lstrip())
                    pieces.append(Token("size", piece.strip(), start + blank))
                start = at + 1
            if closing:
                self._at = at + 1
                return pieces
            depth += (char == "(") - (char == ")")
        opening = Token("mark", self._text[self._at - 1], self._at - 1)
        raise self.error(opening, f"{opening.text!r} is never closed")

    def unexpected(self, wanted: str) -> ParseError:
        """Return the error that something else than the next token was expected."""
        token = self.peek()
        found = "the end of the text" if token.kind == "end" else repr(_short(token.text))
        return self.error(token, f"expected {wanted}, found {found}")

    def error(self, token: Token, what: str, *, why: str = "", hint: str = "") -> ParseError:
        """Return an error at a token: its line and column, the line, and a caret under the token."""
        number, column = self._position(token)
        shown = "\n    ".join(self.pointed(token))
        return ParseError(what, where=f"line {number}, column {column + 1}\n    {shown}", why=why, hint=hint)

    def pointed(self, token: Token) -> tuple[str, str]:
        """Return the line a token stands in, or a piece of it, and a line with carets under the token."""
        _, column = self._position(token)
        line = self._text[token.start - column :].partition("\n")[0].replace("\t", " ")
        bare = line.partition("  #:")[0]
        shown = bare if column < len(bare) else line
        first = max(0, column - SHOWN // 2) if len(shown) > SHOWN else 0
        carets = "^" * max(1, min(len(token.text), SHOWN - (column - first)))
        return shown[first : first + SHOWN], " " * (column - first) + carets

    def _position(self, token: Token) -> tuple[int, int]:
        """Return the line of a token, counted from 1, and its column, counted from 0."""
        before = self._text[: token.start]
        return before.count("\n") + 1, token.start - (before.rfind("\n") + 1)

    @contextmanager
    def blaming(self, token: Token) -> Iterator[None]:
        """Say of what goes wrong inside that it is wrong at a token.

        Raises:
            ParseError: something inside was refused.
        """
        try:
            yield
        except (GraphError, ParseError) as error:
            raise self.error(token, error.what, why=error.why, hint=error.hint) from error

    def _token(self, at: int) -> Token:
        blank = self._grammar.blank.match(self._text, at)
        found = self._grammar.token.match(self._text, blank.end() if blank else at)
        if found is None:
            return Token("end", "", at)
        return Token(found.lastgroup or "", found.group(), found.start())


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
