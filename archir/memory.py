"""The memory a forward pass takes while it runs, and how a change of the graph changes it, without a second pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from archir.ir.graph import Graph, Patch
from archir.ir.node import Node
from archir.ir.structure import Structure

Sizes = Callable[[Node], int]
"""Gives the bytes of the results of a call."""

_known: WeakKeyDictionary[Structure, dict[Hashable, Memory]] = WeakKeyDictionary()


class Memory:
    """The results of all calls in the order they are made, with the bytes and the time each is kept.

    Each is made when its call is due and released after its last use. A view keeps what it is a view of.

    Attributes:
        total: bytes of all results, views left out.
        peak: the most bytes that are kept at once.
    """

    def __init__(self, graph: Graph, bytes_of: Sizes, is_view: Callable[[str], bool]) -> None:
        """Follow the results of a graph; that graph is not kept.

        Args:
            graph: the graph.
            bytes_of: gives the bytes of the results of a call.
            is_view: says whether an operator returns a view of its first operand.
        """
        calls = graph.structure.calls
        self._bytes_of, self._is_view = bytes_of, is_view
        self._position = {node.id: i for i, node in enumerate(calls)}
        self._owner: dict[int, int] = {}
        last: dict[int, int] = {}
        for node in (*calls, graph.output):
            self._owner[node.id] = owner = self._owner_of(node, lambda i: self._owner.get(i, i))
            at = self._position.get(node.id, len(calls))
            last |= dict.fromkeys((owner, *(self._owner.get(v.node, v.node) for v in node.values)), at)
        count = len(calls)
        self._made = np.array([bytes_of(n) if self._owner[n.id] == n.id else 0 for n in calls], dtype=np.int64)
        self._last = np.array([last.get(n.id, i) for i, n in enumerate(calls)], dtype=np.int64).reshape(count)
        self._latest = np.array(
            [max((self._position.get(v.node, -1) for v in n.values), default=-1) for n in calls], dtype=np.int64
        ).reshape(count)
        steps = np.zeros(count + 2, dtype=np.int64)
        np.add.at(steps, np.arange(count), self._made)
        np.add.at(steps, self._last + 1, -self._made)
        self._kept = steps.cumsum()[:count]
        self.total, self.peak = int(self._made.sum()), int(self._kept.max(initial=0))

    def _owner_of(self, node: Node, owner: Callable[[int], int]) -> int:
        """Return the call that has made the memory of a result, given that of its operands."""
        views = node.is_call and bool(node.values) and self._is_view(node.op)
        return owner(node.values[0].node) if views else node.id

    def resized(self, made: Mapping[int, int]) -> tuple[int, int]:
        """Return the total and the peak where the results of some calls have other sizes.

        Args:
            made: the bytes of each of them.
        """
        total, kept = self.followed(made)
        return total, int(kept.max(initial=0))

    def followed(self, made: Mapping[int, int]) -> tuple[int, npt.NDArray[np.int64]]:
        """Return the total, and the bytes kept while each call runs, where the results of some have other sizes.

        Args:
            made: the bytes of each of them.
        """
        own = [(self._position[i], n) for i, n in made.items() if self._owner[i] == i]
        at, new = np.array([p for p, _ in own], dtype=np.int64), np.array([n for _, n in own], dtype=np.int64)
        more = new - self._made[at]
        steps = np.zeros(len(self._kept) + 2, dtype=np.int64)
        np.add.at(steps, at, more)
        np.add.at(steps, self._last[at] + 1, -more)
        return self.total + int(more.sum()), self._kept + steps.cumsum()[: len(self._kept)]

    def patched(self, patch: Patch) -> tuple[int, int]:
        """Return the total and the peak after a change of the graph.

        Where the new calls run one after another between two old ones, only what changes is followed.
        """
        new = [n for n in patch.added if n.is_call]
        start = self._insertion(patch, [n.id for n in new])
        if start is None:
            found = Memory(patch.after, self._bytes_of, self._is_view)
            return found.total, found.peak
        return self._inserted(patch, new, start)

    def _insertion(self, patch: Patch, new: list[int]) -> int | None:
        """Return the position before which all new calls run in the new order, None if there is no such position.

        All old calls from there on have to wait for the new ones: each uses their last, or something that waits.
        """
        after, before, users = patch.after, patch.before, patch.after.structure.users
        end = len(self._kept)
        rewired = [n for n in patch.changed if n.values != before.node(n.id).values]
        if any(n.is_call and self._is_view(n.op) != self._is_view(before.node(n.id).op) for n in patch.changed):
            return None
        if not new:
            return end if self._wait_alike(rewired, 0) else None
        inside, last = set(new), new[-1]
        if any(not any(u.node in inside for u, _ in users.get(i, ())) for i in new[:-1]):
            return None
        if any(v.node > i for i in new for v in after.node(i).values if v.node in inside):
            return None
        for node in rewired:
            if last not in (v.node for v in node.values):
                return None
        if any(i != last and any(u.node not in inside for u, _ in users.get(i, ())) for i in new):
            return None
        places = [self._position.get(n.id, end) for n in rewired]
        start = min(places, default=end)
        if any(self._position.get(v.node, -1) >= start for i in new for v in after.node(i).values):
            return None
        free = int((self._latest[start:] < start).sum())
        expected = sum(p < end and self._latest[p] < start for p in places)
        return start if free == expected and self._wait_alike(rewired, start) else None

    def _wait_alike(self, nodes: Iterable[Node], start: int) -> bool:
        """Say whether the last old call from a position on that each call waits for is the one it waited for."""
        for node in nodes:
            now = max((self._position.get(v.node, -1) for v in node.values), default=-1)
            if node.is_call and max(now, start - 1) != max(self._latest[self._position[node.id]], start - 1):
                return False
        return True

    def _inserted(self, patch: Patch, new: list[Node], start: int) -> tuple[int, int]:
        after, count, end = patch.after, len(new), len(self._kept)
        places = {n.id: start + i for i, n in enumerate(new)}

        def position(node: int) -> int:
            if node in places:
                return places[node]
            found = self._position.get(node, end)
            return found if found < start else found + count

        made_by: dict[int, int] = {}

        def owner(node: int) -> int:
            return made_by[node] if node in made_by else self._owner.get(node, node)

        for node in new:
            made_by[node.id] = self._owner_of(node, owner)
        near = {*patch.touched, *patch.removed, *(n.id for n in patch.affected)}
        old = {self._owner[i] for i in near if i in self._position}
        for graph, ids in ((patch.before, near & self._owner.keys()), (after, near - patch.removed)):
            for id_ in ids:
                node = graph.node(id_)
                old |= {owner(v.node) for v in node.values}
        old &= self._position.keys()
        steps = np.zeros(end + count + 2, dtype=np.int64)
        for id_ in old:
            at = self._position[id_]
            steps[position(id_)] -= self._made[at]
            last = int(self._last[at])
            steps[(last if last < start else last + count) + 1] += self._made[at]
        alive = [after.node(i) for i in old if i in after]
        total = self.total - sum(int(self._made[self._position[i]]) for i in old)
        for node in (*alive, *(n for n in new if made_by[n.id] == n.id)):
            made = self._bytes_of(node)
            total += made
            steps[position(node.id)] += made
            steps[self._last_use(patch, node.id, position) + 1] -= made
        crossing = int(self._kept[start] - self._made[start]) if start < end else self._reaching_the_end()
        kept = np.insert(self._kept, start, [crossing] * count) if count else self._kept
        return total, int((kept + steps.cumsum()[: end + count]).max(initial=0))

    def _reaching_the_end(self) -> int:
        return int(self._made[self._last >= len(self._kept)].sum())

    def _last_use(self, patch: Patch, owner: int, position: Callable[[int], int]) -> int:
        """Return the position of the last call that uses the result of a call, or a view of it."""
        users, waiting, found = patch.after.structure.users, [owner], position(owner)
        while waiting:
            id_ = waiting.pop()
            for use, _ in users.get(id_, ()):
                user = patch.after.node(use.node)
                found = max(found, position(user.id))
                if user.is_call and self._is_view(user.op) and user.values[0].node == id_:
                    waiting.append(user.id)
        return found


def memory_of(graph: Graph, sizes: Hashable, make: Callable[[], Memory]) -> Memory:
    """Return the memory of a graph for the size of a batch, and other sizes; it is made once."""
    known = _known.setdefault(graph.structure, {})
    if sizes not in known:
        known[sizes] = make()
    return known[sizes]
