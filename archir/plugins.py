"""Passes of other people: found in modules that are named, and in installed packages that offer them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from archir.errors import GrowError, PassError
from archir.growing.importing import load_module, load_object
from archir.rewrite.passes import Pass
from archir.rewrite.spec import is_word, options_of
from passes.catalog import PASSES

GROUP = "archir.passes"
"""The group of entry points under which an installed package offers a module of passes, or one pass."""

Plugin = str | ModuleType | type[Pass]
"""A module of passes or one pass: itself, or `package.module`, `path/to/file.py`, either with `:name` for one pass."""

Registry = Mapping[str, type[Pass]]
"""Passes by the names they have in specifications."""


def find_passes(plugins: Iterable[Plugin] = (), *, base: Path = Path(), known: Registry | None = None) -> Registry:
    """Return passes by name: those that come with archir, those of installed packages, and those of plugins.

    Args:
        plugins: modules whose passes are added, or passes; a module in Python's path or a file.
        base: folder that the paths of files start from; modules are looked for there, too.
        known: passes to begin with; those of archir and of installed packages if not given.

    Raises:
        FileError: there is no such file.
        PassError: a module cannot be loaded or defines no pass, a pass is not made as passes are, or its name is taken.
    """
    found: dict[str, type[Pass]] = {}
    if known is None:
        known = PASSES
        for entry in installed():
            _add(found, known, load_entry(entry), _source(entry))
    for plugin in plugins:
        loaded = load_plugin(plugin, base) if isinstance(plugin, str) else plugin
        _add(found, known, loaded, plugin if isinstance(plugin, str) else plugin.__name__)
    return MappingProxyType({**known, **found})


@cache
def installed() -> tuple[EntryPoint, ...]:
    """Return the entry points of installed packages that offer passes; they are looked for once in a process."""
    return tuple(entry_points(group=GROUP))


def load_entry(entry: EntryPoint) -> object:
    """Return the module or the pass that an installed package offers.

    Raises:
        PassError: it cannot be loaded.
    """
    try:
        return entry.load()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise PassError(
            f"the passes of {_source(entry)} cannot be loaded", why=why, hint="mend or uninstall the package"
        ) from error


def load_plugin(plugin: str, base: Path = Path()) -> object:
    """Return the module or the pass that is named.

    Raises:
        FileError: there is no such file.
        PassError: there is no such module or name, or the module fails when it is loaded.
    """
    try:
        return load_object(plugin, base=base) if ":" in plugin else load_module(plugin, base=base)
    except GrowError as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
        raise PassError(f"the plugin {plugin} cannot be loaded", where=error.where, why=why, hint=error.hint) from error


def _source(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name}" if entry.dist else ""
    return f"the entry point {entry.name} = {entry.value}{package}"


def _add(found: dict[str, type[Pass]], known: Registry, loaded: object, source: str) -> None:
    """Add the passes of a module, or one pass.

    Raises:
        PassError: there is none, one is not made as passes are, or its name is taken.
    """
    for kind in _passes_in(loaded, source):
        problem = _problem(kind)
        if problem:
            raise PassError(f"{_full_name(kind)} of {source} is not made as a pass is", why=problem)
        other = known.get(kind.name) or found.get(kind.name, kind)
        if other is not kind:
            raise PassError(
                f"{source} defines the pass {kind.name!r} anew",
                where=_full_name(kind),
                why=f"it is the name of {_full_name(other)}",
                hint="give it another name",
            )
        found[kind.name] = kind


def _passes_in(loaded: object, source: str) -> list[type[Pass]]:
    if isinstance(loaded, type) and issubclass(loaded, Pass):
        return [loaded]
    if not isinstance(loaded, ModuleType):
        raise PassError(f"{source} is no module and no pass", why=f"it is {loaded!r:.60}")
    home = loaded.__name__
    found = [
        kind
        for kind in vars(loaded).values()
        if isinstance(kind, type) and issubclass(kind, Pass) and f"{kind.__module__}.".startswith(f"{home}.")
        if not inspect.isabstract(kind) or hasattr(kind, "name")  # without a name it is there to be derived from
    ]
    if not found:
        hint = "a pass is a frozen dataclass that derives from Pass or Morphism and has a name"
        raise PassError(f"{source} defines no pass", hint=hint)
    return list(dict.fromkeys(found))


def _full_name(kind: type[Pass]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _problem(kind: type[Pass]) -> str:
    """Say what keeps a class from being written as a specification and read back; nothing if nothing does."""
    if inspect.isabstract(kind):
        return f"it lacks {', '.join(sorted(kind.__abstractmethods__))}"
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not is_word(name):
        return f"its name is {name!r}, which is no word" if name else "it has no name"
    made = vars(kind).get("__dataclass_params__")
    if made is None or not made.frozen:
        return "it is no frozen dataclass"
    types = typing.get_type_hints(kind)
    wrong = [f.name for f in options_of(kind) if not _is_written(types[f.name])]
    kinds = "a word, number, truth value, pass or tuple"
    return f"option {wrong[0]} is of type {type_name(types[wrong[0]])}, not {kinds}" if wrong else ""


def type_name(type_: Any) -> str:
    """Return the type of an option as one writes it: `int`, `tuple[int, ...]`."""
    return type_.__name__ if isinstance(type_, type) and typing.get_origin(type_) is None else str(type_)


def _is_written(type_: Any) -> bool:
    """Say whether an option of a type can be written in a specification."""
    if typing.get_origin(type_) is tuple:
        item, *rest = typing.get_args(type_)
        return rest == [Ellipsis] and _is_written(item)
    return type_ in (int, float, bool, str) or (isinstance(type_, type) and issubclass(type_, Pass))
