"""The nodes of a graph and the places where their results are used, copied cheaply when a graph is changed."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType

import networkx as nx

from archir.errors import GraphError
from archir.ir.node import INPUT, OUTPUT, PARAMETER, Node, Use, Value

_RANK = {INPUT: 0, PARAMETER: 1, OUTPUT: 3}

_Users = tuple[tuple[Use, int], ...]


class Structure:
    """Nodes by id, and who uses them; never changed.

    Attributes:
        by_id: the nodes.
        users: by node id, each use of its results with the number of the result.
    """

    def __init__(self, by_id: Mapping[int, Node], users: Mapping[int, _Users]) -> None:
        """Take over nodes and users, which nobody may change afterwards."""
        self.by_id = MappingProxyType(by_id)
        self.users = MappingProxyType(users)

    def uses(self, value: Value) -> list[Use]:
        """Return all places that use a value, in order of node id and argument."""
        return _sorted_uses(self.users, value)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Node ids in topological order: inputs, parameters, then calls by id as far as their operands allow.

        Raises:
            GraphError: there is a cycle.
        """
        by_id, last = self.by_id, max(self.by_id, default=0) + 1
        keys = {i: _RANK.get(node.op, 2) * last + i for i, node in by_id.items()}
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
    def rank(self) -> Mapping[int, int]:
        """Position of each node in the topological order, by id.

        Raises:
            GraphError: there is a cycle.
        """
        return {id_: i for i, id_ in enumerate(self.order)}

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

    While no operand changes, the order is that of the structure it started from.

    Attributes:
        by_id: the nodes.
    """

    def __init__(self, base: Structure) -> None:
        """Start from a structure, which stays as it is."""
        self._base: Structure | None = base
        self.by_id = dict(base.by_id)
        self._users = dict(base.users)

    def put(self, node: Node) -> None:
        """Add a node, or put it in the place of that with its id."""
        old = self.by_id.get(node.id)
        self.by_id[node.id] = node
        was, now = old.operands() if old else (), node.operands()
        if old and was == now:
            return
        self._base = None
        for id_ in {value.node for _, value in was}:
            self._users[id_] = tuple((use, i) for use, i in self._users[id_] if use.node != node.id)
        for use, value in now:
            self._users[value.node] = (*self._users.get(value.node, ()), (use, value.index))

    def remove(self, id_: int) -> None:
        """Remove a node that nothing uses."""
        self._base = None
        self.put(Node(id_, self.by_id[id_].op))
        del self.by_id[id_]

    def uses(self, value: Value) -> list[Use]:
        """Return all places that use a value as things stand now, in order of node id and argument."""
        return _sorted_uses(self._users, value)

    def users(self, id_: int) -> list[int]:
        """Return the ids of the nodes that use any result of a node, in order."""
        return sorted({use.node for use, _ in self._users.get(id_, ())})

    def names(self) -> set[str]:
        """Return the names of all stored tensors."""
        return {name for node in self.by_id.values() if node.parameter for name in node.parameter.names}

    def paths(self) -> set[str]:
        """Return the paths of all modules that calls belong to or tensors are stored in."""
        places = {node.location.module for node in self.by_id.values() if node.location}
        places |= {name.rpartition(".")[0] for name in self.names()}
        found: set[str] = set()
        for path in places:
            while path and path not in found:
                found.add(path)
                path = path.rpartition(".")[0]
        return found

    def finished(self) -> Structure:
        """Return the structure; the draft is of no use afterwards.

        Raises:
            GraphError: there is a cycle in the structure it started from.
        """
        structure = Structure(self.by_id, self._users)
        if self._base is not None:
            structure.order = self._base.order
        return structure


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
