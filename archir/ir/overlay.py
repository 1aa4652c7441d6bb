"""Mappings that differ in a few places from one they share, so that a small change of a large one costs little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")

SMALL = 1024
"""Mappings of so many entries are simply copied."""

SHARE = 16
"""An overlay that differs in more than one of so many entries is copied into one mapping."""


class FrozenDict(dict[K, V]):
    """A dictionary that may not be changed."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("it may not be changed")

    def __reduce__(self) -> tuple[type[FrozenDict[K, V]], tuple[dict[K, V]]]:
        return FrozenDict, (dict(self),)  # copied whole: entry by entry it may not be filled

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse


class Overlay(MutableMapping[K, V]):
    """A mapping that shares most entries with another one, which nobody may change any more."""

    __slots__ = ("_base", "_changed", "_frozen", "_removed")

    def __init__(self, base: Mapping[K, V], changed: dict[K, V], removed: set[K]) -> None:
        """Lay entries over those of a mapping, and hide some of it."""
        self._base, self._changed, self._removed, self._frozen = base, changed, removed, False

    def __getitem__(self, key: K) -> V:
        if key in self._changed:
            return self._changed[key]
        if key in self._removed:
            raise KeyError(key)
        return self._base[key]

    def get(self, key: K, default: Any = None) -> Any:
        """Return the value of a key, or something else if it has none."""
        if key in self._changed:
            return self._changed[key]
        return default if key in self._removed else self._base.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._changed or (key in self._base and key not in self._removed)

    def __setitem__(self, key: K, value: V) -> None:
        self._require_open()
        self._changed[key] = value

    def __delitem__(self, key: K) -> None:
        self._require_open()
        if key not in self:
            raise KeyError(key)
        self._changed.pop(key, None)
        if key in self._base:
            self._removed.add(key)

    def __iter__(self) -> Iterator[K]:
        kept = (key for key in self._base if key not in self._removed)
        return chain(kept, filter(self._is_appended, self._changed))

    def __len__(self) -> int:
        return len(self._base) - len(self._removed) + sum(map(self._is_appended, self._changed))

    def _is_appended(self, key: K) -> bool:
        """Say whether a changed key stands behind those of the base, as one does that was removed and came back."""
        return key not in self._base or key in self._removed

    def _require_open(self) -> None:
        if self._frozen:
            raise TypeError("it may not be changed")

    def freeze(self) -> None:
        """Allow no changes any more."""
        self._frozen = True

    def copy(self) -> MutableMapping[K, V]:
        """Return a copy that may be changed."""
        if SHARE * (len(self._changed) + len(self._removed)) > len(self._base):
            return dict(self.items())
        return Overlay(self._base, self._changed.copy(), self._removed.copy())


Frozen = FrozenDict[K, V] | Overlay[K, V]
"""A mapping that may not be changed."""


def frozen(mapping: Mapping[K, V]) -> Frozen[K, V]:
    """Return a mapping that may not be changed: an overlay as it is, from now on, or a copy of another mapping."""
    if isinstance(mapping, Overlay):
        mapping.freeze()
        return mapping
    return mapping if isinstance(mapping, FrozenDict) else FrozenDict(mapping)


def copy_of(mapping: Mapping[K, V]) -> MutableMapping[K, V]:
    """Return a copy of a mapping that may not be changed, which may."""
    if isinstance(mapping, Overlay):
        return mapping.copy()
    return dict(mapping) if len(mapping) <= SMALL else Overlay(mapping, {}, set())
