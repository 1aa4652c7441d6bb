"""Where attribute paths of a program lead: to the modules and stored tensors it has, and nowhere else."""

from __future__ import annotations

from archir.emit.code import is_number
from archir.ir.graph import Graph

ANY = "#"
"""Stands for every number: places in a list are not told apart."""


class Places:
    """The modules and stored tensors of a program, by their paths from any module they stand in."""

    def __init__(self, graph: Graph) -> None:
        """Collect the paths of a graph."""
        self._modules = {""}
        self._tensors: set[str] = set()
        paths = {node.location.module for node in graph.calls if node.location}
        names = {tuple(map(_part, name.split("."))) for name in graph.by_name}
        for parts in names | {(*map(_part, path.split(".")), "") for path in paths if path}:
            for start in range(len(parts)):
                self._modules |= {".".join(parts[start:end]) for end in range(start + 1, len(parts))}
                self._tensors |= {".".join(parts[start:])} if parts[-1] else set()

    def is_module(self, place: str | None) -> bool:
        """Say whether a module stands there, as seen from some module; that module itself is at the empty place."""
        return place in self._modules

    def is_tensor(self, place: str | None) -> bool:
        """Say whether a tensor is stored there, as seen from some module."""
        return place in self._tensors

    def below(self, place: str | None, path: str) -> str | None:
        """Return the place a path leads to from another place, None if nothing is there."""
        if place is None or not self.is_module(place):
            return None
        found = ".".join([*([place] if place else []), *map(_part, path.split("."))])
        return found if self.is_module(found) or self.is_tensor(found) else None


def _part(name: str) -> str:
    return ANY if is_number(name) else name
