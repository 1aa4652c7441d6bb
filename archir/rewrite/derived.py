"""The perturbation of any rewrite, derived from what it makes of the graph.

The rewritten graph is compared with the old one. What is new or altered is evaluated anew, its inputs held at their
present values; where what comes out of it is used by calls that stayed as they were, the difference is Δ.

Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import torch

from archir.axes.infer import infer_widths
from archir.errors import PassError
from archir.ir.execute import Call, compile_call
from archir.ir.graph import Graph
from archir.ir.node import OUTPUT, PARAMETER, Argument, Node, Use, Value, map_values
from archir.rewrite.equations import Miss
from archir.rewrite.perturbation import Edge, Members
from archir.rewrite.region import Values, members_of

Apply = Callable[[Graph], Graph]


@dataclass(frozen=True)
class DerivedPerturbation:
    """What one rewrite does to the activations: `Δ(θ) = f'(θ) − f` where its results are used.

    θ is added to what the rewrite brings: new stored tensors, numbered -1, -2, ... in the order they were made, and
    the new elements of those that grew.

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
    theta: Mapping[int, torch.Tensor]
    claims: frozenset[int]
    stored: Mapping[int, torch.Tensor]
    added: tuple[int, ...]
    calls: Mapping[int, Call]
    changes: Mapping[Edge, tuple[Value, Value]]
    masks: Mapping[int, torch.Tensor]
    needs: frozenset[Value]

    @property
    def members(self) -> int:
        """One."""
        return 1

    def initial_theta(self, values: Values, seed: int) -> Mapping[int, torch.Tensor]:
        """Return a tenth of the scale of each tensor, at random."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[int, torch.Tensor] = {}
        for key, like in self.theta.items():
            noise = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
            found[key] = self._masked(key, noise * like.square().mean().sqrt() * 0.01)
        return found

    def delta(self, values: Values, theta: Mapping[int, torch.Tensor]) -> Mapping[Edge, torch.Tensor]:
        """Return Δ on every edge."""
        masked = {key: self._masked(key, change) for key, change in theta.items()}
        new = {Value(i): t for i, t in add_theta(self.stored, self.added, masked).items()}

        def look_up(value: Value) -> torch.Tensor:
            return new[value] if value in new else values[value]

        for id_, call in self.calls.items():
            for i, result in enumerate(call(look_up)):
                new[Value(id_, i)] = result
        return {edge: look_up(after) - values[before] for edge, (before, after) in self.changes.items()}

    def _masked(self, key: int, change: torch.Tensor) -> torch.Tensor:
        return change * self.masks[key] if key in self.masks else change


def added_tensors(before: Graph, after: Graph) -> tuple[int, ...]:
    """Return the trainable stored tensors a rewrite has added, in the order it made them."""
    found = (n for n in after.parameters if n.id not in before and n.parameter and n.parameter.trainable)
    return tuple(sorted(n.id for n in found))


def add_theta(
    tensors: Mapping[int, torch.Tensor], added: Sequence[int], theta: Mapping[int, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """Return stored tensors with θ added; its key -1 is the first of `added`, and so on."""
    changes = {added[-1 - key] if key < 0 else key: change for key, change in theta.items()}
    return {i: t + changes[i].to(t) if i in changes else t for i, t in tensors.items()}


def with_theta(before: Graph, after: Graph, theta: Mapping[int, torch.Tensor]) -> Graph:
    """Return a rewritten graph with θ, found for the rewrite of `before`, added to its stored tensors.

    Raises:
        PassError: the rewrite has brought other tensors than θ was found for, as it may after other rewrites.
    """
    added = added_tensors(before, after)
    shapes = {-1 - i: after.tensors[node].shape for i, node in enumerate(added)}
    shapes |= {i: t.shape for i, t in after.tensors.items()}
    for key, change in theta.items():
        if shapes.get(key) != change.shape:
            raise PassError(
                "what the rewrite learned does not fit the tensors it brings",
                where=after.history[-1] if after.history else "",
                why=f"{list(change.shape)} was learned, {list(shapes.get(key, ()))} is there",
                mend="rewrites before it have changed its surroundings: apply it first, or alone",
            )
    changed = add_theta(after.tensors, added, theta)
    named = {n.parameter.names[0]: changed[n.id] for n in after.parameters if n.parameter}
    return after.with_tensors({name: t for name, t in named.items() if t is not after.tensor(name)})


def derive_perturbation(graph: Graph, apply: Apply) -> DerivedPerturbation | Miss:
    """Return what a rewrite does to the activations of a graph.

    Args:
        graph: the graph.
        apply: the rewrite; the function is kept, or what it removes is known.

    Raises:
        PassError: the rewrite does not apply.
    """
    after = apply(graph)
    found = _Comparison(graph, after)
    changes = found.changes()
    if not changes:
        return Miss("it changes no value that anything uses")
    widths = infer_widths(graph)
    edges: dict[Edge, Members] = {}
    for edge, (old, new) in changes.items():
        if graph.type_of(old) != after.type_of(new):
            return Miss("a value has another shape after it", (old.node,))
        members = members_of(widths, old, None)
        if members is None:
            return Miss("a value it changes does not depend on the examples of a batch", (old.node,))
        edges[edge] = members
    added = added_tensors(graph, after)
    theta = {-1 - i: measure(after.tensors[id_]) for i, id_ in enumerate(added)}
    masks: dict[int, torch.Tensor] = {}
    grown = [i for i in found.changed if _is_trainable(after, i) and after.tensors[i].shape != graph.tensors[i].shape]
    for id_, fresh in _fresh_elements(graph, after, grown, apply).items():
        if bool(fresh.any()):
            masks[id_] = fresh.to(after.tensors[id_].dtype)
        if bool(fresh.any()) or not added:
            theta[id_] = measure(after.tensors[id_])
    outer = {*found.read, *(new for _, new in changes.values() if new.node not in found.evaluated)}
    return DerivedPerturbation(
        edges=edges,
        theta=theta,
        claims=found.claims(changes),
        stored={v.node: after.tensors[v.node] for v in outer if v.node in after.tensors},
        added=added,
        calls={n.id: compile_call(n) for n in after.calls if n.id in found.evaluated},
        changes=changes,
        masks=masks,
        needs=frozenset({v for v in outer if v.node not in after.tensors} | {old for old, _ in changes.values()}),
    )


def measure(tensor: torch.Tensor) -> torch.Tensor:
    """Return what changes of a stored tensor are measured by: itself, or its usual size if it is nought.

    That is `1/√fan-in` for a matrix or kernel, 1 for a vector.
    """
    if bool(tensor.any()):
        return tensor
    fan_in = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 1
    return torch.full_like(tensor, 1 / math.sqrt(fan_in))


def _is_trainable(graph: Graph, node: int) -> bool:
    parameter = graph.node(node).parameter
    return parameter is not None and parameter.trainable


def _fresh_elements(graph: Graph, after: Graph, grown: Sequence[int], apply: Apply) -> dict[int, torch.Tensor]:
    """Return which elements of stored tensors that grew do not stem from the old ones.

    The rewrite is done once more on other numbers: what is the same then is new.
    """
    if not grown:
        return {}
    shifted = {n.parameter.names[0]: graph.tensors[n.id] + 1 for i in grown if (n := graph.node(i)).parameter}
    try:
        again = apply(graph.with_tensors(shifted))
    except PassError:
        return {i: torch.zeros_like(after.tensors[i], dtype=torch.bool) for i in grown}
    return {i: again.tensors[i] == after.tensors[i] for i in grown}


class _Comparison:
    """What a rewrite changed.

    Attributes:
        changed: stored tensors of both graphs that differ.
        evaluated: the calls of the new graph to evaluate.
    """

    def __init__(self, before: Graph, after: Graph) -> None:
        self.before, self.after = before, after
        kept = [n.id for n in after.parameters if n.id in before]
        self.changed = frozenset(i for i in kept if after.tensors[i] is not before.tensors[i])
        self.altered: set[int] = set()
        self.rewired: set[int] = set()
        for node in after.nodes:
            if node.is_call and (node.id not in before or self._is_altered(node)):
                self.altered.add(node.id)
            elif (node.is_call or node.op == OUTPUT) and node.arguments != before.node(node.id).arguments:
                self.rewired.add(node.id)
        self.evaluated = frozenset(self.altered | self._between())

    def _is_altered(self, node: Node) -> bool:
        """Say whether a call does something else than before, apart from being given other activations."""
        old = self.before.node(node.id)
        if node.op != old.op or node.results != old.results or _skeleton(node) != _skeleton(old):
            return True
        was = dict(old.operands())
        for use, value in node.operands():
            stored = self.after.node(value.node).op == PARAMETER or self.before.node(was[use].node).op == PARAMETER
            if value.node in self.changed or (stored and value != was[use]):
                return True
            if self.after.type_of(value) != self.before.type_of(was[use]):
                return True
        return False

    def _between(self) -> set[int]:
        """Return the calls that lie between two places of change: they are evaluated, too."""
        structure = self.after.networkx
        below: set[int] = set().union(*(nx.descendants(structure, i) for i in self.altered | self.rewired))
        above: set[int] = set().union(*(nx.ancestors(structure, i) for i in self.altered))
        return {i for i in (below | self.rewired) & above if self.after.node(i).is_call}

    @property
    def read(self) -> Iterator[Value]:
        """The values the evaluated calls read and do not make."""
        for id_ in self.evaluated:
            yield from (v for _, v in self.after.node(id_).operands() if v.node not in self.evaluated)

    def changes(self) -> dict[Edge, tuple[Value, Value]]:
        """Return, for each edge, the value on it before and after."""
        found: dict[Value, dict[Use, Value]] = {}
        for node in self.after.nodes:
            if node.id in self.evaluated or node.id not in self.before:
                continue
            was = dict(self.before.node(node.id).operands())
            for use, value in node.operands():
                if value != was[use] or value.node in self.evaluated:
                    found.setdefault(was[use], {})[use] = value
        edges: dict[Edge, tuple[Value, Value]] = {}
        for old, uses in found.items():
            new = set(uses.values())
            if len(new) == 1 and set(self.before.uses(old)) == set(uses):
                edges[old] = old, new.pop()
            else:
                edges |= {use: (old, value) for use, value in uses.items()}
        return edges

    def claims(self, changes: Mapping[Edge, tuple[Value, Value]]) -> frozenset[int]:
        """Return the calls it removes, alters or is attached to."""
        removed = {n.id for n in self.before.calls if n.id not in self.after}
        altered = {i for i in self.evaluated if i in self.before}
        return frozenset(removed | altered | {old.node for old, _ in changes.values()})


def _skeleton(node: Node) -> tuple[tuple[str, Argument], ...]:
    """Return the arguments of a call with all values taken for the same."""
    return tuple((name, map_values(a, lambda _: Value(0))) for name, a in node.arguments.items())
