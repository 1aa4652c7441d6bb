"""Passes and kinds of rewrite as users give them: texts, objects, or lists of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from archir.errors import PassError
from archir.plugins import find_passes
from archir.rewrite.morphism import Morphism
from archir.rewrite.passes import Pass
from archir.rewrite.spec import format_spec, parse_specs
from passes.catalog import morphisms as default_morphisms

Kinds = str | Morphism | Sequence[str | Morphism]
"""Kinds of rewrite, as text, as objects, or as a list of either."""

Passes = str | Pass | Sequence[str | Pass]
"""Passes, likewise."""

COMPRESSING = "prune"
"""The kinds of rewrite that networks are compressed by unless others are asked for."""


def morphisms(specs: Kinds | None = None, *, registry: Mapping[str, type[Pass]] | None = None) -> tuple[Morphism, ...]:
    """Return kinds of rewrite: a text (`"split; residual-branch{hidden=8}"`), an object, or a list of such.

    Args:
        specs: the kinds; split and prune if not given.
        registry: the passes a text may name; those of `archir.passes()` if not given.

    Raises:
        ParseError: a text is no specification, or names no known pass.
        PassError: one is no morphism, or there is none.
    """
    if specs is None:
        return default_morphisms()
    found: list[Morphism] = []
    for pass_ in named_passes(specs, registry=registry):
        if not isinstance(pass_, Morphism):
            raise PassError(f"{format_spec(pass_)} is no morphism, so it has no candidates")
        found.append(pass_)
    if not found:
        raise PassError("no kind of rewrite is named", hint="write split; prune")
    return tuple(found)


def named_passes(given: Passes, *, registry: Mapping[str, type[Pass]] | None = None) -> list[Pass]:
    """Return the passes that a user means, in order; the text of each in a list may be several.

    Args:
        given: a text, an object, or a list of such.
        registry: the passes a text may name; those of `archir.passes()` if not given.

    Raises:
        ParseError: a text is no specification, or names no known pass.
        PassError: something is neither a text nor a pass.
    """
    known: list[Mapping[str, type[Pass]]] = [] if registry is None else [registry]

    def read(text: str) -> list[Pass]:
        if not known:
            known.append(find_passes())
        return parse_specs(text, known[0])

    listed = [given] if isinstance(given, str | Pass) or not isinstance(given, Sequence) else list(given)
    return [pass_ for one in listed for pass_ in _read(one, read)]


def _read(one: Any, read: Callable[[str], list[Pass]]) -> Iterator[Pass]:
    if isinstance(one, str):
        yield from read(one)
    elif isinstance(one, Pass):
        yield one
    elif isinstance(one, type) and issubclass(one, Pass):
        raise PassError(f"{one.__name__} is a class of passes, not a pass", hint=f"write {one.__name__}(...)")
    else:
        raise PassError(
            f"a {type(one).__name__} is no pass", hint='name passes as text ("split; prune") or give objects, or lists'
        )
