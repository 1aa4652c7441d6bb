"""A checksum of the user's code: the same for the same function in another process, another for a changed one."""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def checksum_of_code(value: object) -> str:
    """Return a checksum of a function, class, module or dataclass, and of all that it uses of the user's own.

    That is its bytecode and constants, its defaults, what it closes over, the tensors of modules, and the functions,
    classes and values that its code names in the module it is defined in, or in modules of the user's that it names
    there. What belongs to installed packages counts by its name, and objects of theirs by their class and by what they
    say of themselves, where that says no address.
    """
    digest = hashlib.sha256()
    for part in _parts(value, {}):
        digest.update(part + b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, object]) -> Iterator[bytes]:
    if isinstance(value, PLAIN):
        yield repr(value).encode(errors="surrogatepass")
        return
    if id(value) in seen:
        yield b"again"
        return
    seen[id(value)] = value  # kept, for ids are used again
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        yield f"{plain.dtype} {list(plain.shape)}".encode()
        yield plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype} {list(value.shape)}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, tuple | list):
        yield type(value).__name__.encode()
        for item in value:
            yield from _parts(item, seen)
    elif isinstance(value, set | frozenset):
        # The order of a set differs from process to process.
        yield b"set"
        yield from sorted(b" ".join(_parts(item, {})) for item in value)
    elif isinstance(value, Mapping):
        yield b"mapping"
        for key, item in value.items():
            yield from _parts(key, seen)
            yield from _parts(item, seen)
    elif isinstance(value, FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, CodeType):
        yield from _code(value, seen)
    elif isinstance(value, MethodType):
        yield from _parts(value.__func__, seen)
        yield from _parts(value.__self__, seen)
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords), seen)
    elif isinstance(value, type):
        yield from _class(value, seen)
    elif isinstance(value, ModuleType | BuiltinFunctionType):
        yield _name(value)
    else:
        yield from _object(value, seen)


def _function(function: FunctionType, seen: dict[int, object]) -> Iterator[bytes]:
    yield _name(function)
    if _is_installed(function.__module__):
        if function.__closure__:  # made by a package of something of the user's
            yield from (part for cell in function.__closure__ for part in _parts(_content(cell), seen))
        return
    yield from _code(function.__code__, seen)
    yield from _parts((function.__defaults__, function.__kwdefaults__), seen)
    for cell in function.__closure__ or ():
        yield from _parts(_content(cell), seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            found = function.__globals__[name]
            yield name.encode()
            yield from _parts(found, seen)
            if isinstance(found, ModuleType) and not _is_installed(found.__name__):
                yield from _members(found, _names(function.__code__), seen)


def _members(module: ModuleType, names: set[str], seen: dict[int, object]) -> Iterator[bytes]:
    """Yield what code may name as attributes of a module of the user's."""
    for name in sorted(names & vars(module).keys()):
        yield name.encode()
        yield from _parts(vars(module)[name], seen)


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty yet
        return None


def _code(code: CodeType, seen: dict[int, object]) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)).encode()
    for constant in code.co_consts:
        yield from _parts(constant, seen)


def _names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _class(kind: type, seen: dict[int, object]) -> Iterator[bytes]:
    yield _name(kind)
    if _is_installed(kind.__module__):
        return
    for base in kind.__bases__:
        yield from _parts(base, seen)
    for name, member in sorted(vars(kind).items()):
        if isinstance(member, staticmethod | classmethod):
            member = member.__func__
        elif isinstance(member, property):
            member = (member.fget, member.fset)
        if isinstance(member, (FunctionType, tuple, type, *PLAIN)) and name not in _INCIDENTAL:
            yield name.encode()
            yield from _parts(member, seen)


_INCIDENTAL = frozenset({"__doc__", "__module__", "__firstlineno__", "__dict__", "__weakref__"})


def _object(value: Any, seen: dict[int, object]) -> Iterator[bytes]:
    yield from _parts(type(value), seen)
    if isinstance(value, nn.Module):
        yield str(value).encode(errors="surrogatepass")
        yield from _parts(dict(value.state_dict()), seen)
        # Options of losses such as ignore_index, which not every module shows.
        options = {k: v for k, v in vars(value).items() if not k.startswith("_") and isinstance(v, PLAIN)}
        yield from _parts(dict(sorted(options.items())), seen)
    elif is_dataclass(value):
        for f in fields(value):
            yield f.name.encode()
            yield from _parts(getattr(value, f.name), seen)
    elif _is_installed(type(value).__module__):
        yield _told(value)
    else:
        # With the fields of classes that have slots.
        yield from _parts(object.__getstate__(value), seen)


def _told(value: object) -> bytes:
    """Return what an object says of itself; nothing if that differs from process to process, or fails."""
    try:
        text = repr(value)
    except Exception:  # of whatever package it is
        return b""
    return b"" if " at 0x" in text else text.encode(errors="surrogatepass")


def _name(value: Any) -> bytes:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}".encode()


def _is_installed(module: str | None) -> bool:
    """Say whether a module is archir's, Python's or that of an installed package, which has a version."""
    name = module or ""
    if name.partition(".")[0] in ("archir", "passes", "frontends"):
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return name in sys.builtin_module_names
    return any(Path(file).is_relative_to(folder) for folder in _PACKAGES)


_PACKAGES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
