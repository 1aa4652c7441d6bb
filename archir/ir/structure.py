"""The nodes of a graph and the places where their results are used, copied cheaply when a graph is changed."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, MutableMapping, Set
from functools import cached_property
from itertools import chain

import networkx as nx

from archir.errors import GraphError
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Node, Use, Value
from archir.ir.overlay import copy_of, frozen

_KIND_ORDER = {INPUT: 0, PARAMETER: 1, OUTPUT: 3}

_Users = tuple[tuple[Use, int], ...]


class Structure:
    """Nodes by id, and who uses them; never changed.

    Attributes:
        by_id: the nodes.
        users: by node id, each use of its results with the number of the result.
    """

    def __init__(self, by_id: Mapping[int, Node], users: Mapping[int, _Users]) -> None:
        """Take over nodes and users, which nobody may change afterwards."""
        self.by_id = frozen(by_id)
        self.users = frozen(users)

    def uses(self, value: Value) -> list[Use]:
        """Return all places that use a value, in order of node id and argument."""
        return _sorted_uses(self.users, value)

    def draft(self) -> tuple[MutableMapping[int, Node], MutableMapping[int, _Users]]:
        """Return copies of the nodes and users that may be changed."""
        return copy_of(self.by_id), copy_of(self.users)

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """The ids of the input nodes, in order."""
        return tuple(sorted(i for i, node in self.by_id.items() if node.op == INPUT))

    @cached_property
    def output(self) -> int:
        """The id of the output node."""
        return next(i for i, node in self.by_id.items() if node.op == OUTPUT)

    @cached_property
    def next_id(self) -> int:
        """An id above all that nodes have, or had before edits removed them."""
        return max(self.by_id, default=-1) + 1

    @cached_property
    def names(self) -> Mapping[str, int]:
        """The parameter node of every name of a stored tensor."""
        return {name: i for i, n in self.by_id.items() if n.parameter for name in n.parameter.names}

    @cached_property
    def paths(self) -> Set[str]:
        """The paths of all modules that calls belong to or tensors are stored in, and of those these are in."""
        return _paths(self.by_id.values())

    @cached_property
    def position(self) -> Mapping[int, int]:
        """The position of each node in the topological order.

        Raises:
            GraphError: there is a cycle.
        """
        return {id_: i for i, id_ in enumerate(self.order)}

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Node ids in topological order: inputs, parameters, then calls by id as far as their operands allow.

        Raises:
            GraphError: there is a cycle.
        """
        by_id, last = self.by_id, max(self.by_id, default=0) + 1
        keys = {i: _KIND_ORDER.get(node.op, 2) * last + i for i, node in by_id.items()}
        if all(keys[value.node] < keys[i] for i, node in by_id.items() for value in node.values if value.node in keys):
            # No call waits for an operand with a higher id, so the order is that of the keys; sorting is much quicker.
            return tuple(sorted(keys, key=keys.__getitem__))
        waiting = {i: sum(v.node in keys for v in node.values) for i, node in by_id.items()}
        ready = [keys[i] for i, count in waiting.items() if not count]
        heapq.heapify(ready)
        found: list[int] = []
        while ready:
            id_ = heapq.heappop(ready) % last
            found.append(id_)
            for use, _ in self.users.get(id_, ()):
                waiting[use.node] -= 1
                if not waiting[use.node]:
                    heapq.heappush(ready, keys[use.node])
        if len(found) < len(keys):
            raise GraphError("the graph has a cycle", where=str(nx.find_cycle(self.networkx)))
        return tuple(found)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in topological order.

        Raises:
            GraphError: there is a cycle.
        """
        return tuple(map(self.by_id.__getitem__, self.order))

    @cached_property
    def calls(self) -> tuple[Node, ...]:
        """The nodes that call operators, in topological order; the text form numbers them so.

        Raises:
            GraphError: there is a cycle.
        """
        return tuple(node for node in self.nodes if node.is_call)

    @cached_property
    def numbers(self) -> Mapping[int, int]:
        """The number of each call in the text form, by id.

        Raises:
            GraphError: there is a cycle.
        """
        return {node.id: number for number, node in enumerate(self.calls)}

    @cached_property
    def networkx(self) -> nx.MultiDiGraph:
        """The same as a networkx graph: node attribute `node`, edge key (argument, position, result)."""
        graph = nx.MultiDiGraph()
        graph.add_nodes_from((i, {"node": node}) for i, node in self.by_id.items())
        for node in self.by_id.values():
            for use, value in node.operands():
                graph.add_edge(value.node, node.id, key=(use.argument, use.position, value.index))
        return nx.freeze(graph)


class Draft:
    """Nodes and their users while they are changed.

    Attributes:
        by_id: the nodes.
        next_id: an id that no node has had.
        touched: ids of the nodes added or changed so far.
        rewired: those of them whose operands differ from those they had.
        removed: ids of the nodes of the structure it started from that are gone.
    """

    def __init__(self, base: Structure) -> None:
        """Start from a structure, which stays as it is."""
        self._base = base
        self.by_id, self._users = base.draft()
        self.next_id = base.next_id
        self.touched: set[int] = set()
        self.rewired: set[int] = set()
        self.removed: set[int] = set()

    def put(self, node: Node) -> None:
        """Add a node, or put it in the place of that with its id."""
        old = self.by_id.get(node.id)
        self.by_id[node.id] = node
        self.touched.add(node.id)
        self.next_id = max(self.next_id, node.id + 1)
        if old and old.operands() == node.operands():
            return
        self.rewired.add(node.id)
        if old:
            self._let_go(old)
        for use, value in node.operands():
            self._users[value.node] = (*self._users.get(value.node, ()), (use, value.index))

    def remove(self, id_: int) -> None:
        """Remove a node that nothing uses."""
        self._let_go(self.by_id.pop(id_))
        self._users.pop(id_, None)
        self.touched.discard(id_)
        self.rewired.discard(id_)
        if id_ in self._base.by_id:
            self.removed.add(id_)

    def _let_go(self, node: Node) -> None:
        """Take a node from the users of its operands."""
        for id_ in {value.node for value in node.values}:
            self._users[id_] = tuple((use, i) for use, i in self._users[id_] if use.node != node.id)

    def uses(self, value: Value) -> list[Use]:
        """Return all places that use a value as things stand now, in order of node id and argument."""
        return _sorted_uses(self._users, value)

    def users(self, id_: int) -> list[int]:
        """Return the ids of the nodes that use any result of a node, in order."""
        return sorted({use.node for use, _ in self._users.get(id_, ())})

    def is_name(self, name: str) -> bool:
        """Say whether a stored tensor has a name."""
        near = {i for i in self.touched if self.by_id[i].parameter} | {self._base.names.get(name, -1)}
        found = (self.by_id[i].parameter for i in near if i in self.by_id)
        return any(p is not None and name in p.names for p in found)

    def stores(self, path: str) -> bool:
        """Say whether a tensor is stored in a module or in one below it."""
        stem = f"{path}."
        kept = (n for n, i in self._base.names.items() if i not in self.touched and i not in self.removed)
        added = (n for i in self.touched if (p := self.by_id[i].parameter) for n in p.names)
        return any(n.startswith(stem) for n in chain(kept, added))

    def is_path(self, path: str) -> bool:
        """Say whether calls belong to a module or tensors are stored in it, or did before they went."""
        return path in self._base.paths or path in _paths(self.by_id[i] for i in self.touched)

    def paths(self) -> Set[str]:
        """Return the paths of all modules that calls belong to or tensors are stored in, or did before they went."""
        return self._base.paths | _paths(self.by_id[i] for i in self.touched)

    def finished(self) -> Structure:
        """Return the structure; the draft is of no use afterwards.

        Raises:
            GraphError: there is a cycle in the structure it started from.
        """
        structure = Structure(self.by_id, self._users)
        structure.next_id = self.next_id
        if not self.removed.intersection(self._base.inputs):
            structure.inputs = self._base.inputs
        if self._base.output in self.by_id:
            structure.output = self._base.output
        if not self.rewired and not self.removed:
            structure.order = self._base.order
        return structure


def _paths(nodes: Iterable[Node]) -> Set[str]:
    found: set[str] = set()
    for node in nodes:
        names = node.parameter.names if node.parameter else ()
        for path in (*(n.rpartition(".")[0] for n in names), node.location.module if node.location else ""):
            while path and path not in found:
                found.add(path)
                path = path.rpartition(".")[0]
    return found


def structure_of(nodes: Iterable[Node]) -> Structure:
    """Return the structure of some nodes."""
    by_id: dict[int, Node] = {}
    users: dict[int, list[tuple[Use, int]]] = {}
    for node in nodes:
        by_id[node.id] = node
        for use, value in node.operands():
            users.setdefault(value.node, []).append((use, value.index))
    return Structure(by_id, {id_: tuple(found) for id_, found in users.items()})


def _sorted_uses(users: Mapping[int, _Users], value: Value) -> list[Use]:
    found = [use for use, index in users.get(value.node, ()) if index == value.index]
    return found if len(found) < 2 else sorted(found, key=lambda u: (u.node, u.argument, u.position))
