"""Which attributes the forward of a model reads."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from archir.growing.trial_runs import results_of
from archir.ir.graph import Graph

Attribute = tuple[nn.Module, str]
"""An attribute of a module."""


def attributes_read(model: nn.Module, graph: Graph, among: Collection[Attribute]) -> set[Attribute]:
    """Return those of some attributes that a model reads where it is run, in evaluation mode or in training.

    The model is left as it was, as by `trained_shapes`. An attribute of which that cannot be told, since its class
    says something of it, too, counts as read.

    Args:
        model: the model.
        graph: its graph.
        among: attributes of its modules, plain ones of these objects.
    """
    if not among:
        return set()
    with _noting(among) as read:
        for training in (False, True):
            try:
                results_of(model, graph, 2, training=training)
            except Exception:  # of code of the user's: what was read so far counts
                continue
    return {(part, name) for part, name in among if (id(part), name) in read}


@contextmanager
def _noting(among: Collection[Attribute]) -> Iterator[set[tuple[int, str]]]:
    """Yield a set into which the attributes come that are read within the block, by identity of their owners."""
    read: set[tuple[int, str]] = set()
    put: list[tuple[type, str]] = []
    owners = {(type(part), name) for part, name in among}
    known = {(owner, name) for owner, name in owners if inspect.getattr_static(owner, name, _NONE) is not _NONE}
    read |= {(id(part), name) for part, name in among if (type(part), name) in known}
    try:
        for owner, name in owners - known:
            setattr(owner, name, _Noted(name, read))
            put.append((owner, name))
        yield read
    finally:
        for owner, name in put:
            delattr(owner, name)


_NONE = object()


class _Noted:
    """Stands in a class for an attribute that its objects have, and notes of which of them it is read."""

    def __init__(self, name: str, read: set[tuple[int, str]]) -> None:
        self.name, self.read = name, read

    def __get__(self, owner: object, kind: type) -> Any:
        if owner is None or self.name not in vars(owner):
            raise AttributeError(f"{kind.__name__} has no attribute {self.name}", name=self.name, obj=owner or kind)
        self.read.add((id(owner), self.name))
        return vars(owner)[self.name]

    def __set__(self, owner: object, value: Any) -> None:
        vars(owner)[self.name] = value

    def __delete__(self, owner: object) -> None:
        del vars(owner)[self.name]
