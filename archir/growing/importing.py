"""Finds what a configuration names in the user's own code: `package.module:name` or `file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from archir.errors import ArchirError, FileError, GrowError, suggest


def load_object(spec: str, *, base: Path = Path()) -> Any:
    """Return the object a spec names; the modules beside it can be imported while its module is loaded.

    Args:
        spec: `package.module:name` or `path/to/file.py:name`; the name may be dotted.
        base: folder that relative paths start from, searched for modules too.

    Raises:
        FileError: there is no such file.
        GrowError: the spec has no `:`, there is no such module or name, or the module fails when it is loaded.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise GrowError(f"{spec!r} names no object", hint="write package.module:name or file.py:name")
    found: Any = _load(place, base, spec)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise GrowError(f"{place} has no {name!r}", where=spec, hint=suggest(part, known))
        found = getattr(found, part)
    return found


def load_module(place: str, *, base: Path = Path()) -> ModuleType:
    """Return a module; the modules beside it can be imported while it is loaded.

    Args:
        place: `package.module` or `path/to/file.py`.
        base: folder that relative paths start from, searched for modules too.

    Raises:
        FileError: there is no such file.
        GrowError: there is no such module, or it fails when it is loaded.
    """
    return _load(place, base, place)


def call_object(spec: str, *, base: Path = Path(), arguments: Mapping[str, Any] | None = None) -> Any:
    """Return what the function a spec names returns when it is called.

    Args:
        spec: see `load_object`.
        base: folder that relative paths start from.
        arguments: keyword arguments it is called with.

    Raises:
        FileError: there is no such file.
        GrowError: there is no such function, it is not one, or it fails.
    """
    return invoke(load_object(spec, base=base), spec, arguments)


def invoke(function: Any, spec: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Return what a function returns, whose errors are told with the user's line.

    Args:
        function: the function.
        spec: what named it.
        arguments: keyword arguments it is called with.

    Raises:
        GrowError: it is no function, or it fails.
    """
    if not callable(function):
        raise GrowError(f"{spec} is a {type(function).__name__}, not a function")
    with _explained(spec, f"{spec} failed"):
        return function(**(arguments or {}))


def _load(place: str, base: Path, spec: str) -> ModuleType:
    return _load_file(base / place, spec) if place.endswith(".py") else _load_module(place, base, spec)


def _load_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise FileError(f"there is no file {path}", where=spec)
    name = f"archir_user_{path.stem}"
    located = importlib.util.spec_from_file_location(name, path)
    if located is None or located.loader is None:
        raise FileError(f"{path} is not a Python file", where=spec)
    module = importlib.util.module_from_spec(located)
    sys.modules[name] = module
    try:
        with _explained(spec, f"{path} cannot be loaded"), _importable(path.parent):
            located.loader.exec_module(module)
    except ArchirError:
        del sys.modules[name]
        raise
    return module


def _load_module(name: str, base: Path, spec: str) -> ModuleType:
    with _importable(base):
        try:
            missing = importlib.util.find_spec(name) is None
        except (ImportError, ValueError):
            missing = True
        if missing:
            raise GrowError(
                f"there is no module {name!r}", where=spec, hint=f"it is looked for in {base.resolve()}, too"
            )
        with _explained(spec, f"the module {name} cannot be loaded"):
            return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


@contextmanager
def _explained(spec: str, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one error that names the user's line."""
    try:
        yield
    except ArchirError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error}"
        raise GrowError(what, where=f"{spec}, {last.filename}:{last.lineno}", why=why) from error
