"""Reads frozen dataclasses from tables of a configuration, collecting all that is wrong with them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Generic, TypeVar

from archir.errors import GrowError, suggest
from archir.score.ranges import shown

T = TypeVar("T")
Problems = list[str]
"""What is wrong, a sentence each."""

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Fields(Generic[T]):
    """The fields of a dataclass with their types.

    Attributes:
        kind: the dataclass.
        types: type of each field, by name.
        needed: names of the fields without a default.
    """

    kind: type[T]
    types: Mapping[str, Any]
    needed: tuple[str, ...]

    def values(self, table: Mapping[str, Any], where: str, problems: Problems) -> dict[str, Any]:
        """Return the values of a table that have the types of their fields; the others become problems."""
        found: dict[str, Any] = {}
        for name, value in table.items():
            try:
                found[name] = _convert(value, self.types[name])
            except TypeError as error:
                problems.append(f"{_path(where, name)} is {shown(value)}, not {error}")
        return found

    def build(self, values: Mapping[str, Any], where: str, problems: Problems) -> T | None:
        """Return the dataclass made of values, None if it refuses them, which becomes a problem."""
        try:
            return self.kind(**values)
        except GrowError as error:
            details = "; ".join(filter(None, (error.where, error.why, error.mend)))
            problems.append(f"{where}: {error.what}" + (f" ({details})" if details else ""))
            return None


def fields_of(kind: type[T]) -> Fields[T]:
    """Return the fields of a dataclass."""
    listed: tuple[Field[Any], ...] = fields(typing.cast(Any, kind))
    needed = tuple(f.name for f in listed if f.default is MISSING and f.default_factory is MISSING)
    hints = typing.get_type_hints(kind)
    return Fields(kind, {f.name: hints[f.name] for f in listed}, needed)


def read_fields(kind: type[T], table: Mapping[str, Any], where: str, problems: Problems) -> T | None:
    """Return a dataclass made of a table, None if something is wrong with it.

    Args:
        kind: the dataclass.
        table: its fields.
        where: name of the table, for problems.
        problems: what is wrong is added here.
    """
    known = fields_of(kind)
    before = len(problems)
    check_keys(table, tuple(known.types), where, problems)
    values = known.values({k: v for k, v in table.items() if k in known.types}, where, problems)
    problems += [f"{_path(where, name)} is missing" for name in known.needed if name not in table]
    return known.build(values, where, problems) if len(problems) == before else None


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str, problems: Problems) -> None:
    """Add a problem for every key of a table that is not known, with the known keys close to it."""
    problems += [f"there is no {_path(where, key):.80}: {suggest(key, known)}" for key in table if key not in known]


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(value: Any, kind: Any) -> Any:
    """Return a value of TOML as a type has it.

    Raises:
        TypeError: it is of another type; the message says which is wanted.
    """
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _convert(value, next(k for k in typing.get_args(kind) if k is not types.NoneType))
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(value, typing.get_args(kind))
    if kind is float and type(value) in (int, float) and -1e308 < value < 1e308:
        return float(value)
    if kind is str and isinstance(value, str) and (not value.strip() or "\0" in value):
        raise TypeError("text without the character 0" if value.strip() else "text that says something")
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if typing.get_origin(kind) is Mapping and isinstance(value, dict):
        return value
    raise TypeError(_WORDS.get(kind, "a table"))


def _convert_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a list of {_WORDS.get(kinds[0], 'values')}")
    if kinds[-1] is Ellipsis:
        return tuple(_convert(v, kinds[0]) for v in value)
    if len(value) != len(kinds):
        raise TypeError(f"a list of {len(kinds)} values")
    return tuple(_convert(v, k) for v, k in zip(value, kinds, strict=True))
