"""The perturbation of any rewrite, derived from what it changes in the graph.

What is new or altered is evaluated anew, its inputs held at their present values; where what comes out of it is used
by calls that stayed as they were, the difference is Δ. Only what the patch names is looked at.

Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import TopologicalSorter

import torch

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.execute import Call, compile_call
from archir.ir.graph import Patch
from archir.ir.node import OUTPUT, PARAMETER, Argument, Node, Use, Value, map_values
from archir.ir.ops import same_types
from archir.ir.types import is_float
from archir.rewrite.miss import Miss
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.subgraph import Values, members_of
from archir.rewrite.theta import Added, Key, Theta, noise_like


@dataclass(frozen=True)
class DerivedPerturbation:
    """What one rewrite does to the activations: `Δ(θ) = f'(θ) − f` where its results are used.

    θ is added to what the rewrite brings: new stored tensors, in the order they were made, and the new elements of
    those that grew.

    Attributes:
        edges: the edges it changes.
        theta: the tensor each part of θ is measured by.
        claims: the calls it removes, alters or is attached to; two rewrites that claim the same do not go together.
        stored: stored tensors of the rewritten graph that its calls read.
        added: the new stored tensors, in the order of their numbers.
        calls: the calls to evaluate, in order.
        changes: for each edge, the value on it now and the value in its place.
        masks: the elements that may change, where not all may.
        needs: the values of the unchanged program that are read.
    """

    edges: Mapping[Edge, Members]
    theta: Theta
    claims: frozenset[int]
    stored: Mapping[int, torch.Tensor]
    added: tuple[int, ...]
    calls: Mapping[int, Call]
    changes: Mapping[Edge, tuple[Value, Value]]
    masks: Theta
    needs: frozenset[Value]

    @property
    def members(self) -> int:
        """One."""
        return 1

    def initial_theta(self, values: Values, seed: int) -> Theta:
        """Return a hundredth of the scale of each tensor, at random."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[Key, torch.Tensor] = {}
        for key, like in self.theta.items():
            found[key] = self._masked(key, noise_like(like, generator) * like.square().mean().sqrt() * 0.01)
        return found

    def delta(self, values: Values, theta: Theta) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every edge."""
        masked = {key: self._masked(key, change) for key, change in theta.items()}
        new = {Value(i): t for i, t in _add_theta(self.stored, self.added, masked).items()}

        def look_up(value: Value) -> torch.Tensor:
            return new[value] if value in new else values[value]

        for id_, call in self.calls.items():
            for i, result in enumerate(call(look_up)):
                new[Value(id_, i)] = result
        return {edge: look_up(after) - values[before] for edge, (before, after) in self.changes.items()}

    def _masked(self, key: Key, change: torch.Tensor) -> torch.Tensor:
        return change * self.masks[key] if key in self.masks else change


def _added_tensors(patch: Patch) -> tuple[int, ...]:
    """Return the trainable stored tensors a rewrite has added, in the order it made them."""
    return tuple(n.id for n in patch.added if n.is_trainable)


def _add_theta(tensors: Mapping[int, torch.Tensor], added: Sequence[int], theta: Theta) -> dict[int, torch.Tensor]:
    """Return stored tensors with θ added, which is for some of them or for those that a rewrite has added, in order."""
    changes = {added[key.number] if isinstance(key, Added) else key: change for key, change in theta.items()}
    return {i: t + changes[i].to(t) if i in changes else t for i, t in tensors.items()}


def with_theta(patch: Patch, theta: Theta) -> Patch:
    """Return a rewrite with θ, found for it, added to what it stores.

    Raises:
        PassError: the rewrite has brought other tensors than θ was found for, as it may after other rewrites.
    """
    after, added = patch.after, _added_tensors(patch)
    nodes = {Added(i): node for i, node in enumerate(added)}
    for key, change in theta.items():
        node = nodes.get(key) if isinstance(key, Added) else key
        shape = after.tensors[node].shape if node is not None and node in after.tensors else None
        if change.shape != shape:
            raise PassError(
                "what the rewrite learned does not fit the tensors it brings",
                where=after.history[-1] if after.history else "",
                why=f"{list(change.shape)} was learned, {list(shape or ())} is there",
                hint="rewrites before it have changed its surroundings: apply it first, or alone",
            )
    near = {node: after.tensors[node] for node in {*added, *(key for key in theta if isinstance(key, int))}}
    return replace(patch, after=after.with_stored(_add_theta(near, added, theta)))


def derive_perturbation(patch: Patch) -> DerivedPerturbation | Miss:
    """Return what a rewrite does to the activations of a graph.

    Args:
        patch: what it changes; the function is kept, or what is removed is known.
    """
    before, after, found = patch.before, patch.after, _Change(patch)
    changes = found.edges()
    if not changes:
        return Miss("it changes no value that anything uses")
    widths = infer_widths(before)
    edges: dict[Edge, Members] = {}
    for edge, (old, new) in changes.items():
        if not same_types((before.type_of(old),), (after.type_of(new),), before.signature.guards):
            return Miss("a value has another shape after it", (old.node,))
        if not is_float(before.type_of(old)):
            return Miss("a value it changes holds no real numbers", (old.node,))
        if before.node(old.node).parameter:
            return Miss("what it changes is a stored tensor, which no example has a part in", (old.node,))
        edges[edge] = members_of(widths, old, None)
    added = _added_tensors(patch)
    theta: dict[Key, torch.Tensor] = {Added(i): _measure(after.tensors[id_]) for i, id_ in enumerate(added)}
    masks: dict[Key, torch.Tensor] = {}
    for id_, by in patch.maps.items():
        old_tensor, tensor = before.tensors[id_], after.tensors[id_]
        if not after.node(id_).is_trainable or tensor.shape == old_tensor.shape:
            continue
        fresh = None if by is None else by.fresh(old_tensor)
        if fresh is not None and bool(fresh.any()):
            masks[id_] = fresh.to(tensor.dtype)
        if id_ in masks or by is None or not added:
            theta[id_] = _measure(tensor)
    outer = {*found.read, *(new for _, new in changes.values() if new.node not in found.evaluated)}
    return DerivedPerturbation(
        edges=edges,
        theta=theta,
        claims=found.claims(changes),
        stored={v.node: after.tensors[v.node] for v in outer if v.node in after.tensors},
        added=added,
        calls={n.id: compile_call(n, device=after.device) for n in found.calls},
        changes=changes,
        masks=masks,
        needs=frozenset({v for v in outer if v.node not in after.tensors} | {old for old, _ in changes.values()}),
    )


def _measure(tensor: torch.Tensor) -> torch.Tensor:
    """Return what changes of a stored tensor are measured by: itself, or its usual size if it is zero.

    That is `1/√fan-in` for a matrix or kernel, 1 for a vector.
    """
    if bool(tensor.any()):
        return tensor
    fan_in = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 1
    return torch.full_like(tensor, 1 / math.sqrt(fan_in))


class _Change:
    """What a rewrite does to the calls of a graph.

    Attributes:
        altered: calls that are new, or do something else than before.
        rewired: calls, or the output, that are given other activations and are otherwise the same.
        evaluated: the calls to evaluate.
    """

    def __init__(self, patch: Patch) -> None:
        self._patch, self._before, self._after = patch, patch.before, patch.after
        self.altered = {n.id for n in patch.added if n.is_call}
        self.rewired: set[int] = set()
        for node in patch.affected:
            if node.id not in self._before or not (node.is_call or node.op == OUTPUT):
                continue
            if node.is_call and self._is_altered(node):
                self.altered.add(node.id)
            elif node.arguments != self._before.node(node.id).arguments:
                self.rewired.add(node.id)
        self.evaluated = frozenset(self.altered | self._between())

    def _is_altered(self, node: Node) -> bool:
        """Say whether a call does something else than before, apart from being given other activations."""
        old = self._before.node(node.id)
        if node.op != old.op or node.results != old.results or _skeleton(node) != _skeleton(old):
            return True
        was = dict(old.operands())
        for use, value in node.operands():
            stored = self._after.node(value.node).op == PARAMETER or self._before.node(was[use].node).op == PARAMETER
            if value.node in self._patch.maps or (stored and value != was[use]):
                return True
            if self._after.type_of(value) != self._before.type_of(was[use]):
                return True
        return False

    def _between(self) -> set[int]:
        """Return the calls that lie between two places of change, before or after it: they are evaluated, too.

        Those are upstream of an altered call, or of what a rewired one was or is given, and downstream of any change.
        None is before the first change in the old order, for upstream of what has not been touched that order falls.
        """
        before, after, position = self._before, self._after, self._before.structure.position
        starts = self.altered | self.rewired
        first = min((position[i] for i in starts if i in position), default=len(position))
        swapped: set[int] = set()
        for i in self.rewired:
            swapped |= {v.node for _, v in {*before.node(i).operands()} ^ {*after.node(i).operands()}}

        def operands(id_: int) -> Iterator[int]:
            return (v.node for graph in (before, after) if id_ in graph for v in graph.node(id_).values)

        def users(id_: int) -> Iterator[int]:
            return (u.node for graph in (before, after) for u, _ in graph.structure.users.get(id_, ()))

        above = swapped | self._reach(self.altered | swapped, operands, first)
        inside = above | starts
        below = self._reach(starts, lambda i: filter(inside.__contains__, users(i)), 0)
        return {i for i in (below | self.rewired) & above if i in after and after.node(i).is_call}

    def _reach(self, starts: Collection[int], step: Callable[[int], Iterable[int]], first: int) -> set[int]:
        """Return the nodes that some steps lead to, those of the old graph before a position left out."""
        position, found, waiting = self._before.structure.position, set[int](), list(starts)
        while waiting:
            for near in step(waiting.pop()):
                if near not in found and position.get(near, first) >= first:
                    found.add(near)
                    waiting.append(near)
        return found

    @cached_property
    def calls(self) -> Sequence[Node]:
        """The calls to evaluate, each after those it needs."""
        inside = sorted(self.evaluated)
        needs = {i: [v.node for v in self._after.node(i).values if v.node in self.evaluated] for i in inside}
        return [self._after.node(i) for i in TopologicalSorter(needs).static_order()]

    @property
    def read(self) -> Iterator[Value]:
        """The values the evaluated calls read and do not make."""
        for id_ in self.evaluated:
            yield from (v for v in self._after.node(id_).values if v.node not in self.evaluated)

    def edges(self) -> dict[Edge, tuple[Value, Value]]:
        """Return, for each edge, the value on it before and after."""
        found: dict[Value, dict[Use, Value]] = {}
        renewed = {*self.evaluated, *self._patch.maps}
        users = {u.node for i in renewed for u, _ in self._after.structure.users.get(i, ())}
        for id_ in sorted((users | {n.id for n in self._patch.changed}) - self.evaluated):
            was = dict(self._before.node(id_).operands())
            for use, value in self._after.node(id_).operands():
                if value != was[use] or value.node in renewed:
                    found.setdefault(was[use], {})[use] = value
        edges: dict[Edge, tuple[Value, Value]] = {}
        for old, uses in found.items():
            new = set(uses.values())
            if len(new) == 1 and set(self._before.uses(old)) == set(uses):
                edges[old] = old, new.pop()
            else:
                edges |= {use: (old, value) for use, value in uses.items()}
        return edges

    def claims(self, changes: Mapping[Edge, tuple[Value, Value]]) -> frozenset[int]:
        """Return the calls it removes, alters or is attached to."""
        removed = {i for i in self._patch.removed if self._before.node(i).is_call}
        altered = {i for i in self.evaluated if i in self._before}
        return frozenset(removed | altered | {old.node for old, _ in changes.values()})


def _skeleton(node: Node) -> tuple[tuple[str, Argument], ...]:
    """Return the arguments of a call with all values taken for the same."""
    return tuple((name, map_values(a, lambda _: Value(0))) for name, a in node.arguments.items())
