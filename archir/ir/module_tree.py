"""The modules a program has: which stand in which, and in what order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from archir.ir.data import GraphData


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """The modules of a program: those that hold its tensors, and those its calls come from.

    Attributes:
        children: by the path of each module, the outermost one included, the names of those in it, in order.
        lists: the paths of those that have no tensors of their own and whose modules are numbered 0, 1, ...
    """

    children: Mapping[str, tuple[str, ...]]
    lists: frozenset[str]


def module_tree(graph: GraphData) -> ModuleTree:
    """Return the modules of a program.

    Args:
        graph: the program.
    """
    children: dict[str, dict[str, None]] = {"": {}}

    def add(path: str) -> bool:
        """Add a module and those it is in, unless one of them is the name of a tensor."""
        if path in children:
            return True
        outer, _, name = path.rpartition(".")
        if path in graph.by_name or not add(outer):
            return False
        children[outer][name] = None
        children[path] = {}
        return True

    owners = dict.fromkeys(name.rpartition(".")[0] for name in graph.by_name)
    for path in owners:
        add(path)
    stored = {path: tuple(names) for path, names in children.items()}
    for path in dict.fromkeys(node.location.module for node in graph.calls if node.location):
        add(path)
    found: dict[str, tuple[str, ...]] = {}
    lists: set[str] = set()
    for path, names in children.items():
        found[path] = tuple(names)
        if names and path not in owners and names.keys() == {str(i) for i in range(len(names))}:
            counted = tuple(str(i) for i in range(len(names)))
            # Tensors keep the order they have in the graph: modules are put in order only where that moves none.
            before = stored.get(path, ())
            if sorted(before, key=int) == list(before):
                found[path] = counted
                lists.add(path)
    return ModuleTree(found, frozenset(lists))


def modes(paths: Iterable[str], changes: frozenset[str]) -> dict[str, bool]:
    """Return whether each module is in training mode.

    Args:
        paths: of the modules, each after the one it stands in.
        changes: of those that are not in the mode of the one they stand in; the outermost, `""`, stands in training.
    """
    found = dict[str, bool]()
    for path in paths:
        around = found[path.rpartition(".")[0]] if path else True
        found[path] = around != (path in changes)
    return found


def mode_changes(paths: Iterable[str], modes: Mapping[str, bool]) -> frozenset[str]:
    """Return the modules that are not in the mode of the one they stand in.

    Args:
        paths: of the modules, each after the one it stands in.
        modes: whether they are in training mode; one that is not here is as the one it stands in.
    """
    found = dict[str, bool]()
    changes = list[str]()
    for path in paths:
        around = found[path.rpartition(".")[0]] if path else True
        found[path] = modes.get(path, around)
        if found[path] != around:
            changes.append(path)
    return frozenset(changes)
