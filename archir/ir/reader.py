"""Reads the small things of the text form: names, constants, sizes, types and notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from archir.errors import ParseError
from archir.ir.guards import Guard, parse_guard
from archir.ir.literals import (
    KINDS,
    PERSISTENT,
    PREFIXES,
    TRAINABLE,
    USUAL,
    read_constant,
    read_name,
    read_number,
    read_string,
    show_name,
)
from archir.ir.node import MOST_GUARDS, Leaf, Location, Parameter, Scalar, Tree
from archir.ir.scanner import Scanner, Token
from archir.ir.types import ScalarType, Size, TensorType, Type, as_size, parse_dtype, parse_size, symbol, symbols_of

DEEPEST = 64
"""The most brackets that may be open at once."""

_LONGEST_KEY = 100
"""The most characters before the `=` of a note."""

_NOTE = {"id": int, "name": str, "born": str, "module": str, "kind": str, "file": str, "line": int}
_T = TypeVar("_T")
_SCALARS = ("int", "float", "bool")


@dataclass(frozen=True, slots=True)
class Note:
    """What a `#:` comment says about a node; see `Node`."""

    id: int | None = None
    name: str = ""
    born: str = ""
    location: Location | None = None


class Reader:
    """A place in the text of a graph, and the widths that have been named so far."""

    def __init__(self, text: str) -> None:
        """Start at the beginning of a text."""
        self.scanner = Scanner(text)
        self._sizes: dict[str, int] = {}
        self._depth = 0

    def items(self, close: str, read: Callable[[], None]) -> None:
        """Read what stands between commas up to a closing bracket.

        Raises:
            ParseError: something else than a comma or the bracket follows an item, or too many brackets are open.
        """
        if self._depth == DEEPEST:
            raise self.scanner.error(self.scanner.peek(), f"more than {DEEPEST} brackets are open here")
        self._depth += 1
        while not self.scanner.accept(close):
            read()
            if not self.scanner.accept(","):
                self.scanner.expect(close, f"',' or {close!r}")
                break
        self._depth -= 1

    def name(self, what: str) -> str:
        """Read a name.

        Raises:
            ParseError: there is none, or it is a word that means something else.
        """
        token = self.scanner.peek()
        if token.kind not in ("word", "quoted"):
            raise self.scanner.unexpected(what)
        self.scanner.next()
        name = self._converted(token, read_name)
        if token.kind == "word" and show_name(name) != name:
            raise self.scanner.error(token, f"{name!r} cannot be a plain name", hint=f"write {show_name(name)}")
        return name

    def path(self, what: str = "a stored tensor, `@name`") -> str:
        """Read a path, by default the name of a stored tensor.

        Raises:
            ParseError: there is none.
        """
        token = self.scanner.peek()
        if token.kind != "path":
            raise self.scanner.unexpected(what)
        self.scanner.next()
        return self._converted(token, read_name)

    def kind(self) -> Parameter:
        """Read the words before a stored tensor, if any, and return what they say of it, names left out."""
        words: list[str] = []
        while self.scanner.peek().text in PREFIXES:
            words.append(self.scanner.next().text)
        kind = next((KINDS[w] for w in words if w in KINDS), "parameter")
        trainable, persistent = USUAL[kind]
        for word in words:
            trainable = TRAINABLE.get(word, trainable)
            persistent = PERSISTENT.get(word, persistent)
        return Parameter((), kind, trainable, persistent)

    def constant(self) -> Scalar:
        """Read a number, a string, or a word such as `True`, `f32` or `cpu`.

        Raises:
            ParseError: there is none.
        """
        token = self.scanner.peek()
        if token.kind == "number":
            self.scanner.next()
            return self._converted(token, read_number)
        if token.kind == "string":
            self.scanner.next()
            return self._converted(token, read_string)
        if token.kind != "word":
            raise self.scanner.unexpected("a value or a constant")
        self.scanner.next()
        if token.text == "complex":
            parts: list[float] = []
            self.scanner.expect("(")
            self.items(")", lambda: parts.append(self._real()))
            if len(parts) != 2:
                raise self.scanner.error(token, "a complex number has two parts", hint="write complex(0.0, 1.0)")
            return complex(*parts)
        return self._converted(token, read_constant)

    def _real(self) -> float:
        token = self.scanner.peek()
        if token.kind != "number":
            raise self.scanner.unexpected("a number")
        return float(self.scanner.next().text)

    def type(self) -> Type:
        """Read the type of a value, `f32[B, 16]` or `int(B)`.

        Raises:
            ParseError: there is none, or one of its sizes is not a size.
        """
        token = self.scanner.peek()
        if token.kind != "word" or (self.scanner.peek(1).text != "[" and token.text not in _SCALARS):
            error = self.scanner.unexpected("a type")
            raise ParseError(error.what, where=error.where, hint="types look like f32[B, 16] or int(B)")
        self.scanner.next()
        if self.scanner.accept("["):
            dtype = self._converted(token, parse_dtype)
            shape = self.shape()
            with self.scanner.blaming(token):
                return TensorType(dtype, shape)
        value: Size | None = None
        if self.scanner.accept("("):
            pieces = self.scanner.pieces(")")
            if len(pieces) != 1:
                raise self.scanner.error(token, f"{token.text} takes one size, not {len(pieces)}")
            value = self._size(pieces[0], lowest=-(2**63))
        return ScalarType(token.text, value)

    def dtype(self) -> torch.dtype:
        """Read an element type.

        Raises:
            ParseError: there is none.
        """
        token = self.scanner.peek()
        if token.kind != "word":
            raise self.scanner.unexpected("an element type")
        return self._converted(self.scanner.next(), parse_dtype)

    def shape(self) -> tuple[Size, ...]:
        """Read the sizes after an opening square bracket, and the closing one.

        Raises:
            ParseError: one of them is not a size, or the bracket is never closed.
        """
        return tuple(self._size(piece) for piece in self.scanner.pieces("]"))

    def _size(self, piece: Token, lowest: int = 0) -> Size:
        label, named, number = (part.strip() for part in piece.text.partition("="))
        if named:
            if not number.isdecimal() or len(number) > 18:
                raise self.scanner.error(piece, f"{piece.text!r} gives {label} no size", hint="write w0=16")
            known = self._sizes.setdefault(label, int(number))
            if known != int(number):
                raise self.scanner.error(piece, f"{label} is {known}, not {number}")
            return known
        if label in self._sizes:
            return self._sizes[label]
        size = self._converted(piece, parse_size)
        known_symbols = {symbol(s): self._sizes[s] for s in symbols_of(size) if s in self._sizes}
        size = size if isinstance(size, int) else as_size(size.subs(known_symbols))
        if isinstance(size, int) and not lowest <= size < 2**63:
            bounds = "sizes are between 0 and 2**63" if lowest == 0 else "numbers have 64 bits"
            raise self.scanner.error(piece, f"{piece.text!r} is not a size", why=bounds)
        return size

    def usual_sizes(self) -> tuple[tuple[str, int], ...]:
        """Read what sizes usually are, `at T = 128, H = 32`; there may be none.

        Raises:
            ParseError: one of them is not written so, or there are too many.
        """
        found: list[tuple[str, int]] = []
        while self.scanner.accept("," if found else "at"):
            name = self.scanner.peek()
            size = self._converted(name, parse_size)
            self.scanner.next()
            self.scanner.expect("=")
            number = self._converted(self.scanner.peek(), parse_size)
            if isinstance(size, int) or not size.is_Symbol or not isinstance(number, int) or len(found) == MOST_GUARDS:
                raise self.scanner.error(name, "sizes are written T = 128, each once")
            self.scanner.next()
            found.append((size.name, number))
        return tuple(found)

    def guards(self) -> tuple[Guard, ...]:
        """Read what the sizes of the inputs have to satisfy, `where B >= 3, B % 2 == 0`, up to the opening bracket.

        Raises:
            ParseError: one of them is no guard, there are too many, or the bracket is missing.
        """
        if not self.scanner.accept("where"):
            self.scanner.expect("{")
            return ()
        pieces = self.scanner.pieces("{")
        if len(pieces) > MOST_GUARDS:
            why = f"more than {MOST_GUARDS} are refused"
            raise self.scanner.error(pieces[0], f"a graph has {len(pieces)} guards", why=why)
        return tuple(self._converted(piece, parse_guard) for piece in pieces)

    def modes(self) -> frozenset[str]:
        """Read the mode of a program, `mode eval but @norm`, and return the modules that change it, `""` the outermost.

        Raises:
            ParseError: it is neither `train` nor `eval`, or a module is missing or stands twice.
        """
        self.scanner.expect("mode")
        found = [""] if self.scanner.accept("eval") else []
        if not found:
            self.scanner.expect("train", "`train` or `eval`")
        more = self.scanner.accept("but")
        while more:
            token = self.scanner.peek()
            path = self.path("a module, `@name`")
            if path in found:
                raise self.scanner.error(token, f"@{path} stands twice")
            found.append(path)
            more = self.scanner.accept(",")
        return frozenset(found)

    def tree(self, leaf: Callable[[], Leaf]) -> Leaf:
        """Read tuples, lists and dicts.

        Args:
            leaf: reads what they end in.

        Raises:
            ParseError: a key is missing or stands twice, or a bracket is not closed.
        """
        children: list[Leaf] = []
        keys: list[str] = []
        token = self.scanner.peek()

        def entry() -> None:
            if self.scanner.peek().kind != "string":
                raise self.scanner.unexpected('a key, "name"')
            keys.append(str(self.constant()))
            self.scanner.expect(":")
            children.append(self.tree(leaf))

        if self.scanner.accept("{"):
            self.items("}", entry)
            with self.scanner.blaming(token):
                return Tree("dict", tuple(children), tuple(keys))
        for kind, opening, close in (("tuple", "(", ")"), ("list", "[", "]")):
            if self.scanner.accept(opening):
                self.items(close, lambda: children.append(self.tree(leaf)))
                return Tree(kind, tuple(children))
        return leaf()

    def history_note(self) -> tuple[str, ...]:
        """Read the `#:` comment that tells the passes applied, if there is one.

        Raises:
            ParseError: the comment tells something else.
        """
        token = self.scanner.peek()
        fields = self._fields()
        history = fields.pop("history", [])
        if fields or not isinstance(history, list) or not all(isinstance(spec, str) for spec in history):
            raise self.scanner.error(token, "this note is not a history", hint='write #: history=["spec", "spec"]')
        return tuple(history)

    def node_note(self) -> Note:
        """Read the `#:` comment that tells more of a node, if there is one.

        Raises:
            ParseError: the comment tells something else.
        """
        token = self.scanner.peek()
        fields = self._fields()
        wrong = any(type(value) is not _NOTE.get(key) for key, value in fields.items())
        if wrong or any(isinstance(value, int) and not 0 <= value < 2**53 for value in fields.values()):
            raise self.scanner.error(token, "this note does not fit a node", hint='write #: id=3 module="stem" line=7')
        number = {key: value for key, value in fields.items() if isinstance(value, int)}
        text = dict.fromkeys(_NOTE, "") | {key: value for key, value in fields.items() if isinstance(value, str)}
        with self.scanner.blaming(token):
            place = Location(text["module"], text["kind"], text["file"], number.get("line", 0))
        return Note(number.get("id"), text["name"], text["born"], place if "module" in fields else None)

    def _fields(self) -> dict[str, object]:
        token = self.scanner.peek()
        fields: dict[str, object] = {}
        if token.kind != "note":
            return fields
        self.scanner.next()
        text, at = token.text.rstrip(), len("#:")
        while at < len(text):
            equals = text.find("=", at) if "=" in text[at : at + _LONGEST_KEY] else at + _LONGEST_KEY
            key = text[at:equals].strip()
            try:
                fields[key], at = json.JSONDecoder().raw_decode(text, equals + 1)
            except (ValueError, RecursionError) as error:
                raise self.scanner.error(token, f"the note gives {key!r} no value", why=str(error)) from error
        return fields

    def _converted(self, token: Token, read: Callable[[str], _T]) -> _T:
        with self.scanner.blaming(token):
            return read(token.text)
